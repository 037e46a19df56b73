"""MG-LLaVA's codec: where pictures and boxes stand, what is trained on, and boxes in text."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_jax.errors import UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.text import codecs, templates
from mg_jax.text.bpe import load_tokenizer
from mg_jax.text.codecs.mg_llava import MGLLaVACodec
from mg_jax.text.codecs.mg_llava_decode import STEP, format_box, parse_box
from mg_jax.text.tokenizer import Tokenizer
from tests.text import reading_ids
from tests.text.reading_ids import answers

GOLDEN = Path(__file__).parents[1] / "golden" / "groma_tokenizer"
TOKENIZER = Tokenizer.from_model_file(GOLDEN / "tokenizer.model")
REGIONS = (Region.from_box((0.1, 0.2, 0.5, 0.9)), Region.from_box((0.25, 0.5, 0.75, 1.0)))
TEXTS = ("[0.100,0.200,0.500,0.900]", "[0.250,0.500,0.750,1.000]")


@pytest.fixture(scope="module")
def plain():
    """The tiny tokenizer without added tokens."""
    return TOKENIZER


@pytest.fixture(scope="module")
def codec(plain):
    return MGLLaVACodec(plain, image_tokens=3, text_tokens=200)


def example(*pairs):
    return Example(None, 20, 10, REGIONS, tuple(Turn(*p) for p in pairs), id="e1")


def written(codec, tokens):
    """The text of ids; I, B and R for the ids of pictures, boxes and regions."""
    marks = {codec.image_id: "I", codec.box_id: "B", codec.refer_id: "R"}
    return reading_ids.written(codec, tokens, marks)


# -- to ids -----------------------------------------------------------------------------------


def test_get():
    assert codecs.get("mg_llava") is MGLLaVACodec
    with pytest.raises(UserError, match="choose groma, mg_llava, ferret"):
        codecs.get("llava")


def test_picture_precedes_the_first_question(codec):
    encoded = codec.encode(example(("What is it?", "A dog."), ("Why?", "So.")), box_counts=[2])
    assert re.sub(r"\s+", " ", written(codec, encoded["tokens"])) == (
        "<s> USER: IIIBB What is it? ASSISTANT: A dog.</s> <s> USER: Why? ASSISTANT: So.</s> "
    )
    assert answers(codec, encoded) == ["A dog.</s>", "So.</s>"]
    assert encoded["tokens"].dtype == np.int32 and encoded["loss_mask"].dtype == bool
    assert encoded["refer_boxes"].shape == (0, 4)


def test_each_chunk_is_tokenised_by_itself(codec):
    """Spec 7: what follows the picture begins with the tokenizer's leading space."""
    tokens = codec.encode(example(("What?", "A dog.")), box_counts=[1])["tokens"]
    sides = [codec.tokenizer.encode_parts([part], bos=False)
             for part in ("USER: ", "\nWhat? ASSISTANT:", "A dog.", "\n")]  # fmt: skip
    want = [1, *sides[0], *[codec.image_id] * 3, codec.box_id, *sides[1], *sides[2], 2, *sides[3]]
    assert tokens.tolist() == want


def test_frames_are_interleaved_with_their_boxes(plain):
    codec = MGLLaVACodec(plain, image_tokens=3, frame_tokens=2)
    tokens = codec.encode(example(("What?", "A dog.")), box_counts=[1, 0, 2])["tokens"]
    assert "IIBIIIIBB" in written(codec, tokens)
    still = codec.encode(example(("What?", "A dog.")), box_counts=[1])["tokens"]
    assert "IIIB" in written(codec, still)


def test_text_alone_has_no_placeholder(codec):
    tokens = codec.encode(example(("What?", "A dog.")), box_counts=[])["tokens"]
    assert tokens.max() < codec.vocab
    assert "USER: What? ASSISTANT:" in written(codec, tokens)


def test_an_image_mark_says_which_turn(codec):
    turns = ("Hello", "Hi"), ("Look.\n<image>", "A dog.")
    text = written(codec, codec.encode(example(*turns), box_counts=[1])["tokens"])
    assert "USER: Hello ASSISTANT" in text and re.search(r"USER: IIIB\s+Look\. ASSISTANT", text)
    marked = codec.encode(example(("<image>\nWhat?", "A dog.")), box_counts=[1])
    implied = codec.encode(example(("What?", "A dog.")), box_counts=[1])
    assert marked["tokens"].tolist() == implied["tokens"].tolist()


def test_regions_in_text(codec):
    pairs = [
        ("What is <r:1> beside <p>this</p><r:0>?", "<p>A dog</p><r:0><r:1> and <p>a cat</p>."),
        ("Where?", "<r:1>"),
    ]
    encoded = codec.encode(example(*pairs), box_counts=[1])
    assert f"What is {TEXTS[1]} beside this {TEXTS[0]}?" in written(codec, encoded["tokens"])
    assert answers(codec, encoded) == [
        f"<p>A dog</p>{TEXTS[0]}{TEXTS[1]} and a cat.</s>", f"{TEXTS[1]}</s>",
    ]  # fmt: skip
    assert encoded["refer_boxes"].shape == (0, 4)


def test_regions_as_tokens_of_their_own(plain):
    codec = MGLLaVACodec(plain, image_tokens=3, refer="token")
    turns = [Turn("What is <r:1>?", "A dog: <r:0>."), Turn("And <p>this</p><r:0><r:1>?")]
    prompt = codec.encode_prompt(turns, REGIONS, box_counts=[1])
    assert "loss_mask" not in prompt
    text = written(codec, prompt["tokens"])
    assert "What isR?" in text and "And thisRR?" in text and TEXTS[0] in text
    np.testing.assert_allclose(prompt["refer_boxes"], [REGIONS[k].box for k in (1, 0, 1)])


def test_a_prompt_is_the_beginning_of_the_sample(codec):
    turns = ("What is <r:0>?", "A dog."), ("Why?", "So.")
    sample = codec.encode(example(*turns), box_counts=[2])["tokens"]
    prompt = codec.encode_prompt(
        [Turn(*turns[0]), Turn("Why?")], REGIONS, box_counts=[2]
    )["tokens"]  # fmt: skip
    assert sample[: len(prompt)].tolist() == prompt.tolist()
    tail = codec.tokenizer.encode_parts(["USER: Why? ASSISTANT:"], bos=False)
    assert prompt[-len(tail) :].tolist() == tail


def test_control_tokens_in_a_text_stay_text(tokenizer):
    codec = MGLLaVACodec(tokenizer, image_tokens=3)
    encoded = codec.encode(example(("</s> [PAD] <r5>?", "</s><sep>")), box_counts=[1])
    assert (encoded["tokens"] == tokenizer.eos_id).sum() == 1
    assert encoded["tokens"][encoded["tokens"] < codec.vocab].max() < tokenizer.vocab_size


def test_errors(codec, plain):
    def encode(*pairs, boxes=(1,)):
        return codec.encode(example(*pairs), box_counts=boxes)

    with pytest.raises(UserError, match=r"example 'e1'.*region 7"):
        encode(("What is <r:7>?", "A dog."))
    with pytest.raises(UserError, match=r"example 'e1': turn 0 has no answer"):
        encode(("What?", None))
    with pytest.raises(UserError, match=r"e1.*text_tokens is 200"):
        encode(("What?", "very " * 300))
    with pytest.raises(UserError, match=r"e1.*2 <image> marks"):
        encode(("<image>a<image>", "A dog."))
    with pytest.raises(UserError, match=r"turn 0 has an <image> mark, but there is no picture"):
        encode(("<image>a", "A dog."), boxes=())
    with pytest.raises(UserError, match="turn 0 of 2 has no answer"):
        codec.encode_prompt([Turn("a"), Turn("b")], box_counts=[1])
    with pytest.raises(UserError, match="no question"):
        codec.encode_prompt([], box_counts=[1])
    with pytest.raises(UserError, match="unknown chat template 'llava': choose vicuna, phi3_chat"):
        MGLLaVACodec(plain, "llava")
    with pytest.raises(UserError, match="refer is 'box'"):
        MGLLaVACodec(plain, refer="box")
    with pytest.raises(UserError, match="do not belong together"):
        MGLLaVACodec(plain, vocab=10)
    with pytest.raises(UserError, match=r"<\|end\|>, which is no token"):
        _ = MGLLaVACodec(plain, "phi3_chat").end_id


def test_placeholders_lie_behind_the_language_model(plain):
    codec = MGLLaVACodec(plain, vocab=5000, image_tokens=3, max_boxes=4, text_tokens=20, frames=8)
    assert (codec.image_id, codec.box_id, codec.refer_id) == (5000, 5001, 5002)
    assert codec.length == 20 + 8 * 7
    assert MGLLaVACodec(plain).length == 1472 + 576 + 256


def test_the_published_tokenizer_of_vicuna(shared):
    """Spec 7: `USER: ` ends with 29871, and so begins what follows the picture."""
    tokenizer = Tokenizer.from_model_file(shared / "tokenizers" / "llama2" / "tokenizer.model")
    codec = MGLLaVACodec(tokenizer, image_tokens=1)
    ids = codec.encode_prompt([Turn("What is it?")], box_counts=[1])["tokens"].tolist()
    assert ids[:9] == [1, 3148, 1001, 29901, 29871, 32000, 32001, 29871, 13]
    assert codec.end_id == 2


def test_chatml_on_its_tokenizer(shared):
    """One end token a turn, no start token in Qwen's tokenizer, separators not trained."""
    tokenizer = load_tokenizer(shared / "tokenizers" / "qwen")
    codec = MGLLaVACodec(tokenizer, "qwen_chat", image_tokens=2)
    encoded = codec.encode(example(("What?", "A dog."), ("Why?", "So.")), box_counts=[1])
    start, end = tokenizer.id("<|im_start|>"), tokenizer.id("<|im_end|>")
    assert codec.end_id == end
    tokens = encoded["tokens"].tolist()
    assert tokens[0] == start and tokens.count(start) == tokens.count(end) == 4
    assert answers(codec, encoded) == ["A dog.<|im_end|>", "So.<|im_end|>"]
    assert "<|im_start|>user\nIIB\nWhat?<|im_end|>" in written(codec, encoded["tokens"])
    answer = tokenizer.encode_parts(["So.", end, "rest"], bos=False)
    assert codec.decode(answer, None, 9, 9).text == "So."


# -- batches ----------------------------------------------------------------------------------


def test_collate(plain):
    codec = MGLLaVACodec(plain, image_tokens=3, refer="token")
    pairs = [("What is <r:1>?", "A dog.")], [("Why?", "So."), ("And <r:0><r:1>?", "Yes.")]
    samples = [codec.encode(example(*p), box_counts=[k + 1]) for k, p in enumerate(pairs)]
    longest = max(len(s["tokens"]) for s in samples)
    batch = codec.collate(samples, buckets=(longest + 9, 9, longest + 2), refer_slots=3)
    assert batch["tokens"].shape == batch["valid"].shape == (2, longest + 2)
    for n, sample in enumerate(samples):
        size = len(sample["tokens"])
        assert batch["valid"][n].sum() == size and batch["valid"][n, :size].all()
        assert batch["tokens"][n, :size].tolist() == sample["tokens"].tolist()
        assert (batch["tokens"][n, size:] == codec.pad_id).all()
        assert batch["loss_mask"][n].sum() == sample["loss_mask"].sum()
    assert batch["refer_mask"].tolist() == [[True, False, False], [True, True, False]]
    np.testing.assert_allclose(batch["refer_boxes"][1, :2], samples[1]["refer_boxes"])
    prompts = [codec.encode_prompt([Turn("a")], box_counts=[1])]
    assert "loss_mask" not in codec.collate(prompts)
    with pytest.raises(UserError, match=r"sample 1.*longest bucket is 9"):
        codec.collate(samples, buckets=(9,))
    with pytest.raises(UserError, match=r"b: 2 refer regions, but there are 1 slots"):
        codec.collate(samples, refer_slots=1, names=["a", "b"])


# -- from ids ---------------------------------------------------------------------------------


def decode(codec, text, question=None, logprobs=None):
    ids = codec.tokenizer.encode_parts([text], bos=False)
    return codec.decode([*ids, codec.end_id, 5, 6], logprobs, 200, 100, question)


@pytest.mark.parametrize("added", [False, True])
def test_grounded_answer_comes_back(plain, tokenizer, added):
    """With `<p>` in the vocabulary as well as without."""
    codec = MGLLaVACodec(tokenizer if added else plain, image_tokens=3)
    said = "There is <p>a dog</p><r:0><r:1> (near <p>two cats</p><r:1>).\nAnd <p>a cup</p>."
    encoded = codec.encode(example(("What?", said)), box_counts=[1])
    ids = encoded["tokens"][encoded["loss_mask"]]
    answer = codec.decode(ids, np.full(len(ids), -0.5), 200, 100, notes=("a note",))
    assert answer.text == "There is a dog (near two cats).\nAnd a cup."
    assert answer.notes == ("a note",) and not answer.absent
    assert (
        answer.markup == "There is <p>a dog</p><r:0><r:1> (near <p>two cats</p><r:2>).\nAnd a cup."
    )
    assert [answer.text[slice(*p.span)] for p in answer.phrases] == ["a dog", "two cats"]
    boxes = np.array([b for p in answer.phrases for b in p.boxes])
    np.testing.assert_allclose(boxes, [[20, 20, 100, 90], [50, 50, 150, 100], [50, 50, 150, 100]])
    scores = [s for p in answer.phrases for s in p.scores]
    np.testing.assert_allclose(scores, np.exp(-0.5), rtol=1e-6)


def test_score_is_of_the_tokens_that_write_the_box(codec):
    ids = codec.tokenizer.encode_parts([f"A dog {TEXTS[0]} near {TEXTS[1]} here."], bos=False)
    text = codec.tokenizer.decode(ids)
    ends = [len(codec.tokenizer.decode(ids[: k + 1])) for k in range(len(ids))]
    logs = np.full(len(ids), -9.0)
    for n, box in enumerate(TEXTS):
        first = text.index(box)
        inside = [k for k in range(len(ids))
                  if ends[k] > first and (ends[k - 1] if k else 0) < first + len(box)]  # fmt: skip
        logs[inside] = -1.0 - n
    phrases = codec.decode(ids, logs, 10, 10).phrases
    np.testing.assert_allclose([p.scores[0] for p in phrases], np.exp([-1.0, -2.0]), rtol=1e-6)


def test_boxes_alone_are_what_was_asked_for(codec):
    answer = decode(codec, TEXTS[0] + TEXTS[1], "Where is <p>the dog</p>?")
    assert answer.text == "the dog" and len(answer.phrases) == 1
    assert answer.phrases[0].boxes == ((20.0, 20.0, 100.0, 90.0), (50.0, 50.0, 150.0, 100.0))
    assert answer.phrases[0].scores == (1.0, 1.0)
    assert decode(codec, "There is no dog here.", "Where is <p>the dog</p>?").absent


@pytest.mark.parametrize(
    ("text", "plain_text", "boxes", "fault"),
    [
        ("a [0.1,0.2,0.3]", "a", 0, "1 box that is not four numbers"),
        ("a [0.1,0.2,0.3,", "a", 0, "1 box without end"),
        ("a [0.", "a", 0, "1 box without end"),
        ("a [0.1,0.2,0.3 and b", "a and b", 0, "1 box without end"),
        ("a [0.5,0.2,0.3,0.4] b", "a b", 0, "1 reversed or empty box"),
        ("a [0.1,0.2,0.3,1.4].", "a.", 0, "1 box outside the picture"),
        ("a [-0.1,0.2,0.3,0.4].", "a.", 0, "1 box outside the picture"),
        ("<p>a[0.1,0.2,0.3,0.4]", "a", 1, "1 unclosed <p>"),
        ("<p>a<p>b</p>[0.1,0.2,0.3,0.4]", "a b", 1, "1 unclosed <p>"),
        ("<p>a", "a", 0, "1 unclosed <p>"),
        ("a</p> b", "a b", 0, "1 </p> without <p>"),
        ("<p></p>[0.1,0.2,0.3,0.4] b", "b", 1, "1 empty phrase"),
        ("[.1,.2,.3,.4][0.1,0.2,0.3,0.4]", "", 1, "1 repeated box"),
    ],
)
def test_malformed_marks_are_counted(codec, text, plain_text, boxes, fault):
    answer = decode(codec, text)
    assert answer.text == plain_text
    assert sum(len(p.boxes) for p in answer.phrases) == boxes
    assert answer.notes == (f"1 malformed mark in the answer: {fault}",)


@pytest.mark.parametrize(
    "text", ["See [1] and [2, 3].", "a [0.5 m] b [0.1, 0.9]", "1. dog\n2. cat", ""]
)
def test_ordinary_brackets_stay(codec, text):
    answer = decode(codec, text)
    assert answer.text == text and not answer.notes and not answer.phrases


def test_lists_keep_their_lines(codec):
    answer = decode(codec, f"1. <p>dog</p>{TEXTS[0]}\n2. <p>cat</p> {TEXTS[1]}\n<p>cup</p>")
    assert answer.text == "1. dog\n2. cat\ncup" and not answer.notes
    assert [p.text for p in answer.phrases] == ["dog", "cat"]


def test_stop_text_and_strange_ids(plain):
    codec = MGLLaVACodec(plain, "phi3_chat", image_tokens=3)
    ids = codec.tokenizer.encode_parts(["A dog.<|end|> more"], bos=False)
    answer = codec.decode([plain.size + 3, *ids], None, 10, 10)
    assert answer.text == "A dog." and "1 id outside the vocabulary" in answer.notes[0]


@given(ids=st.lists(st.integers(-3, 400), max_size=60))
def test_any_ids_are_read(ids):
    codec = MGLLaVACodec(TOKENIZER)
    codec.decode(ids, [-1.0] * len(ids), 10, 10).to_json()


@given(text=st.text(alphabet="<p>/[]0.19, a\n-", max_size=60))
def test_any_text_is_read(text):
    codec = MGLLaVACodec(TOKENIZER)
    answer = decode(codec, text)
    for phrase in answer.phrases:
        assert answer.text[slice(*phrase.span)] == phrase.text


coordinate = st.floats(0, 1, allow_nan=False)


@given(st.tuples(coordinate, coordinate, coordinate, coordinate))
def test_boxes_come_back_to_the_step(numbers):
    x0, y0, x1, y1 = numbers
    box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    text = format_box(box)
    assert re.fullmatch(r"\[\d\.\d{3}(,\d\.\d{3}){3}\]", text)
    back = parse_box(text)
    assert not isinstance(back, str), back
    sides = min(box[2] - box[0], box[3] - box[1])
    assert np.abs(np.subtract(back, box)).max() <= (0.5 if sides >= STEP else 1.5) * STEP + 1e-9


def test_a_box_without_area_is_written_with_one():
    assert format_box((0.5, 0.5, 0.5, 0.5)) == "[0.500,0.500,0.501,0.501]"
    assert format_box((1, 1, 1, 1)) == "[0.999,0.999,1.000,1.000]"
    assert format_box((-3, 0, 0, 9)) == "[0.000,0.000,0.001,1.000]"


@pytest.mark.parametrize("name", templates.FORMATS)
def test_every_format_ends_and_stops_alike(name):
    form = templates.get_format(name)
    assert form.suffix in (*form.stops, "")
