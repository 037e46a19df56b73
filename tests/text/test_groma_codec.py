"""Groma's codec: recorded ids and labels, expansion, batches, and reading answers back."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg_jax.errors import UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.text import codecs
from mg_jax.text.codecs.groma import GROMA_TOKENS, GromaCodec

CONVERSATIONS = {
    "rec": [("Locate <p>man in a red shirt</p> in the image.", "<r:0>")],
    "coco": [("Locate all <p>dog</p> in this image.", "<r:0><r:1><r:2>")],
    "flickr": [
        (
            "[grounding]Give me a concise description of the image.",
            "<p>A dog</p><r:0> chases <p>two cats</p><r:1><r:2> .",
        )
    ],
    "vg_multi": [
        ("What is <r:0>?", "Red car on street"),
        ("Please give a concise description of region <r:1>.", "A tall tree"),
    ],
    "refcoco_cap": [("Please describe <r:0> in details.", "The man on the left")],
    "llava": [
        (
            "What is in the photo?  Two  spaces.",
            "There are 2 dogs (brown & white), don't you think?",
        ),
        ("Why?", "Because."),
    ],
    "groma_instruct": [
        ("[grounding]Can you describe what you see?", "Sure, I see <p> a woman </p> <r:0> walking.")
    ],
}
PROMPTS = {
    "rec": "Locate <p>man in a red shirt</p> in the image.",
    "cap": "Please describe <r:0> in details.",
    "issue30": "Please briefly describe <r:0>.",
    "free": "[grounding] What do you see?",
}
REGIONS = tuple(Region.from_box((0.1 * k, 0.1, 0.1 * k + 0.3, 0.5)) for k in range(4))
BOXES = np.array([r.box for r in REGIONS], np.float32)
SCORES = np.array([0.9, 0.8, 0.7, 0.6], np.float32)


def example(*pairs, regions=REGIONS, name="e1"):
    image = np.zeros((10, 20, 3), np.uint8)
    return Example(image, 20, 10, regions, tuple(Turn(*p) for p in pairs), id=name)


@pytest.mark.parametrize("template", ["default", "llava"])
@pytest.mark.parametrize("task", CONVERSATIONS)
def test_recorded_training_ids(recorded, tokenizer, template, task):
    case = recorded["legacy_false"]["train"][f"{template}/{task}"]
    codec = GromaCodec(tokenizer, template)
    turns = [Turn(*pair) for pair in CONVERSATIONS[task]]
    raw, ids, labels = codec.upstream_ids(turns, REGIONS)
    assert raw == case["raw_ids"] and ids == case["input_ids"] and labels == case["labels"]


@pytest.mark.parametrize("name", PROMPTS)
def test_recorded_prompt_ids(recorded, codec, name):
    case = recorded["legacy_false"]["infer"][name]
    _, ids, labels = codec.upstream_ids([Turn(PROMPTS[name])], REGIONS)
    assert ids == case["input_ids"] and set(labels) == {-100}


def test_expansion(codec):
    pairs = [("What is <r:2>?", "It is <p>a dog</p><r:1> near <r:0><r:3>."), ("Why?", "So.")]
    encoded = codec.encode(example(*pairs))
    _, ids, labels = codec.upstream_ids([Turn(*p) for p in pairs], REGIONS)
    tokens, mask = encoded["tokens"], encoded["loss_mask"]
    assert tokens.dtype == np.int32 and mask.dtype == bool and tokens.shape == mask.shape
    slots = [i for k in range(6) for i in (codec.ids[f"<r{k}>"], codec.ids["<region>"])]
    start = ids.index(codec.ids["<region>"]) + 9 - 1
    assert tokens[start : start + 12].tolist() == slots
    assert (tokens == codec.ids["<image>"]).sum() == 9
    assert len(tokens) == len(ids) + 8 + 11
    assert tokens[mask].tolist() == [i for i in labels if i >= 0]
    np.testing.assert_allclose(encoded["refer_boxes"], BOXES[[2]])
    np.testing.assert_allclose(encoded["ground_boxes"], BOXES[[1, 0, 3]])
    assert len(tokens) <= codec.length


@pytest.mark.parametrize(
    ("refer_format", "tokens"),
    [
        ("roi", ["<roi>", "<refer_box>", "</roi>", "<refer_feat>"]),
        ("paper", ["<refer_box>", "<refer_feat>"]),
        ("feature_only", ["<refer_feat>"]),
    ],
)
def test_refer_formats(tokenizer, refer_format, tokens):
    codec = GromaCodec(tokenizer, refer_format=refer_format)
    _, ids, _ = codec.upstream_ids([Turn("What is <p>this</p><r:0>?")], REGIONS)
    start = ids.index(codec.ids["</p>"]) + 1
    assert [tokenizer.token(i) for i in ids[start : start + len(tokens)]] == tokens
    with pytest.raises(UserError, match="refer_format"):
        GromaCodec(tokenizer, refer_format="box")


def test_prompt_with_history(codec):
    """An earlier answer reads as in training; its boxes come back as ground boxes."""
    turns = [Turn("Where is <p>dog</p>?", "<p>dog</p><r:0>"), Turn("What is <r:1> near <r:0>?")]
    prompt = codec.encode_prompt(turns, REGIONS)
    assert "loss_mask" not in prompt
    np.testing.assert_allclose(prompt["ground_boxes"], BOXES[[0]])
    np.testing.assert_allclose(prompt["refer_boxes"], BOXES[[1, 0]])
    answered = codec.encode(example(("Where is <p>dog</p>?", "<p>dog</p><r:0>")))
    n = len(answered["tokens"])
    assert prompt["tokens"][:n].tolist() == answered["tokens"].tolist()
    tail = codec.tokenizer.encode_parts([" ASSISTANT:"], bos=False)[-4:]
    assert prompt["tokens"][-4:].tolist() == tail


def test_literal_tokens_stay_text(codec):
    """Characters of control tokens in data are characters; only [grounding] is one."""
    encoded = codec.encode(example(("[grounding] is </s> <roi> <sep>?", "</s><r5> <sep>")))
    count = {t: int((encoded["tokens"] == i).sum()) for t, i in codec.ids.items()}
    assert count["[grounding]"] == 1 and count["<roi>"] == count["<sep>"] == 0
    assert count["<r5>"] == 1  # the slot of the region list
    assert (encoded["tokens"] == codec.tokenizer.eos_id).sum() == 2


def test_image_mark_is_implied(codec):
    a = codec.encode(example(("<image>\nWhat is this?", "A dog.")))
    b = codec.encode(example(("What is this?", "A dog.")))
    assert a["tokens"].tolist() == b["tokens"].tolist()
    with pytest.raises(UserError, match="2 <image> marks"):
        codec.encode(example(("<image><image>What is this?", "A dog.")))


def test_encode_errors(codec, tokenizer):
    with pytest.raises(UserError, match=r"example 'e1'.*region 7"):
        codec.encode(example(("What is <r:7>?", "A dog.")))
    with pytest.raises(UserError, match=r"example 'e1'.*turn 0 has no answer"):
        codec.encode(example(("What?", None)))
    with pytest.raises(UserError, match=r"example 'e1'.*text_tokens is 300"):
        codec.encode(example(("What?", "very " * 300)))
    with pytest.raises(UserError, match="6 region slots"):
        codec.encode(example(("<r:0>" * 7, "A dog.")))
    with pytest.raises(UserError, match=r"<roi> is a control token"):
        codec.encode_prompt([Turn("Describe <roi><refer_box></roi>")], REGIONS)
    with pytest.raises(UserError, match="turn 0 of 2"):
        codec.encode_prompt([Turn("a"), Turn("b")])
    with pytest.raises(UserError, match="no question"):
        codec.encode_prompt([])
    with pytest.raises(UserError, match="max_regions is 101"):
        GromaCodec(tokenizer, max_regions=101)
    from mg_jax.text.tokenizer import Tokenizer

    with pytest.raises(UserError, match="lacks 114"):
        GromaCodec(Tokenizer(tokenizer.model, {}))
    with pytest.raises(UserError, match="unknown codec"):
        codecs.get("gorma")
    assert codecs.get("groma") is GromaCodec
    with pytest.raises(UserError, match="codec of groma: .*unexpected.* 'tokens'.*text_tokens"):
        codecs.build("groma", None, {"template": "llava", "tokens": 3})


def test_collate(codec):
    samples = [
        codec.encode(example(("What is <r:2>?", "A dog."))),
        codec.encode(example(("Where is <p>dog</p> in this picture?", "<r:0><r:1>"))),
    ]
    lengths = [len(s["tokens"]) for s in samples]
    batch = codec.collate(samples, (190, 250, 320), refer_slots=2, ground_slots=3)
    assert batch["tokens"].shape == (2, 190 if max(lengths) <= 190 else 250)
    assert batch["valid"].sum(1).tolist() == lengths
    assert (batch["tokens"][~batch["valid"]] == codec.ids["[PAD]"]).all()
    assert not (batch["loss_mask"] & ~batch["valid"]).any()
    assert batch["refer_mask"].tolist() == [[True, False], [False, False]]
    assert batch["ground_mask"].sum(1).tolist() == [0, 2]
    np.testing.assert_allclose(batch["ground_boxes"][1, :2], BOXES[:2])
    with pytest.raises(UserError, match=r"second: 2 ground regions.*1 slots"):
        codec.collate(samples, (320,), ground_slots=1, names=["first", "second"])
    with pytest.raises(UserError, match="longest bucket is 100"):
        codec.collate(samples, (100,))
    prompt = codec.encode_prompt([Turn("Hi")])
    assert "loss_mask" not in codec.collate([prompt])


def answer_ids(codec, text):
    return codec.tokenizer.encode(text, bos=False)


def decode(codec, text, **kw):
    kw = {"region_mask": np.array([True, True, True, False]), "width": 200, "height": 100} | kw
    return codec.decode(answer_ids(codec, text), BOXES, SCORES, **kw)


def test_decode_grounded_caption(codec):
    a = decode(
        codec,
        "<p>A dog</p><roi><r0></roi> chases <p>two cats</p><roi><r1><r2></roi>, slowly.</s>junk",
    )
    assert a.text == "A dog chases two cats, slowly."
    assert [a.text[slice(*p.span)] for p in a.phrases] == ["A dog", "two cats"]
    assert a.phrases[1].scores == pytest.approx((0.8, 0.7))
    np.testing.assert_allclose(a.phrases[0].boxes[0], (0, 10, 60, 50), atol=1e-4)
    assert a.notes == () and not a.absent
    assert a.markup == "<p>A dog</p><r:0> chases <p>two cats</p><r:1><r:2>, slowly."
    json.dumps(a.to_json())


def test_decode_regions_alone(codec):
    a = decode(codec, "<roi><r1><r0></roi>", question="Locate <p>the dog</p> please.")
    assert a.text == "the dog" and a.phrases[0].span == (0, 7)
    assert len(a.phrases[0].boxes) == 2 and a.markup == "<r:0><r:1>"
    nameless = decode(codec, "<roi><r1></roi>")
    assert nameless.text == "" and nameless.phrases[0].text == "" and len(nameless.regions()) == 1


def test_history_encodes_like_the_answer(codec):
    a = decode(codec, "<p>A dog</p><roi><r0></roi> and <p>two cats</p><roi><r1><r2></roi>.")
    text, found = a.history(first=1)
    turns = [Turn("What is <r:0>?", text), Turn("Why?")]
    prompt = codec.encode_prompt(turns, (REGIONS[3], *found))
    np.testing.assert_allclose(prompt["ground_boxes"], BOXES[[0, 1, 2]], atol=1e-6)
    np.testing.assert_allclose(prompt["refer_boxes"], BOXES[[3]])


def test_decode_absent(codec):
    a = decode(codec, "There is no red ball in the image.</s>")
    assert a.absent and a.phrases == ()
    assert not decode(codec, "A red ball.").absent


@pytest.mark.parametrize(
    ("text", "boxes", "words", "fault"),
    [
        ("<p>a dog<roi><r0></roi>", 1, "a dog", "unclosed <p>"),
        ("<p>a dog</p><roi><r0>", 1, "a dog", "unclosed <roi>"),
        ("<p>a dog</p><roi><r0> and more", 1, "a dog and more", "text inside <roi>"),
        ("<p>a dog</p><roi><r3></roi>", 0, "a dog", "<r3> that names no region"),
        ("<p>a dog</p><roi><r99></roi>", 0, "a dog", "<r99> that names no region"),
        ("<p>a dog</p><roi><r0><r0></roi>", 1, "a dog", "repeated <r0>"),
        ("a dog <r1>", 1, "a dog", "region outside <roi>"),
        ("a dog</p></roi>", 0, "a dog", "</p> without <p>"),
        ("<p></p><roi><r0></roi>", 1, "", "empty phrase"),
        ("<p>a <p>dog</p><roi><r0></roi>", 1, "a dog", "unclosed <p>"),
        ("a <ground_box><image> dog", 0, "a dog", "stray <ground_box>"),
        ("<p>a dog", 0, "a dog", "unclosed <p>"),
    ],
)
def test_decode_malformed(codec, text, boxes, words, fault):
    a = decode(codec, text)
    assert a.text == words and len(a.regions()) == boxes
    assert "malformed" in a.notes[-1] and fault in a.notes[-1]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(-5, 1200),
            st.integers(900, 920),
            st.sampled_from([904, 905, 906, 907, 914, 915, 2]),
        ),
        max_size=25,
    )
)
def test_decode_never_raises(codec, ids):
    boxes = np.array([[0, 0, 0.5, 0.5], [np.nan, 0, 1, 1], [-1, -1, 2, 2]])
    a = codec.decode(ids, boxes, np.ones(3), None, 64, 48, question="<p>x</p>")
    for p in a.phrases:
        assert a.text[slice(*p.span)] == p.text and p.boxes and len(p.boxes) == len(p.scores)
        assert all(0 <= b[0] <= b[2] <= 64 and 0 <= b[1] <= b[3] <= 48 for b in p.boxes)
    a.history(3)
    json.dumps(a.to_json())


PLAIN = st.text("abc xyz", min_size=1).map(lambda s: " ".join(s.split())).filter(bool)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(PLAIN, st.lists(st.integers(0, 3), unique=True, min_size=1, max_size=3)),
        min_size=1,
        max_size=4,
    )
)
def test_round_trip(codec, groups):
    """What encode writes, with the proxies put in, decode reads back."""
    marks = " then ".join(
        f"<p>{words}</p>" + "".join(f"<r:{k}>" for k in ks) for words, ks in groups
    )
    encoded = codec.encode(example(("What do you see?", marks)))
    target = encoded["tokens"][encoded["loss_mask"]].copy()
    order = [k for _, ks in groups for k in ks]
    target[target == codec.ids["<ground_box>"]] = [codec.proxy0 + k for k in order]
    a = codec.decode(target, BOXES, SCORES, None, 1, 1)
    assert [(p.text, len(p.boxes)) for p in a.phrases] == [(w, len(ks)) for w, ks in groups]
    np.testing.assert_allclose([b for p in a.phrases for b in p.boxes], BOXES[order], atol=1e-6)
    assert a.text == " then ".join(w for w, _ in groups) and a.notes == ()


def test_tokens_are_upstreams():
    assert len(GROMA_TOKENS) == 114 and GROMA_TOKENS[13:15] == ("[grounding]", "<r0>")


def test_gaze_says_where_answers_look(tokenizer):
    codec = GromaCodec(tokenizer, image_tokens=4, max_regions=6)
    sample = example(
        ("Locate all <p>dog</p> in this image.", "<r:0><r:2>", (0, 2)),
        ("[grounding] Describe.", "<p>A dog</p><r:2> by <p>two cats</p><r:1><r:3>.", (2, 1)),
        ("Is there a cow?", "No.", ()),
        ("Is there a cat?", "Yes.", (1,)),
        ("Why?", "Because."),
        regions=REGIONS,
    )
    record = codec.encode(sample)
    tokens, mask, before = record["tokens"], record["loss_mask"], record["ground_boxes"]
    codec.add_gaze(record, sample.turns, sample.regions)
    boxes = record["ground_boxes"]
    assert np.array_equal(boxes[: len(before)], before) and len(boxes) == len(before)

    token = {i: t for t, i in codec.ids.items()}
    looks = {}
    for (position, number), weight in zip(record["gaze"], record["gaze_weight"], strict=True):
        region = -1 if number < 0 else int(np.abs(BOXES - boxes[number]).sum(1).argmin())
        looks.setdefault(int(position), []).append((region, float(weight)))
    # before every <ground_box> its own region, whole weight
    marks = np.flatnonzero(tokens == codec.ids["<ground_box>"])
    assert [looks[m - 1] for m in marks] == [[(k, 1.0)] for k in (0, 2, 2, 1, 3)]
    # before the words of a phrase of the answer, its regions; not at the question's <p>
    phrases = [t for t in np.flatnonzero(tokens == codec.ids["<p>"]) if mask[t]]
    assert [looks[t] for t in phrases] == [[(2, 1.0)], [(1, 0.5), (3, 0.5)]]
    # before each answer what it is about; the last says nothing of that
    starts = np.flatnonzero(mask[1:] & ~mask[:-1])
    assert [looks.get(int(t)) for t in starts] == [
        [(0, 0.5), (2, 0.5)], [(2, 0.5), (1, 0.5)], [(-1, 1.0)], [(1, 1.0)], None
    ]  # fmt: skip
    assert len(looks) == len(marks) + len(phrases) + 4
    assert all(token.get(tokens[m - 1]) in ("<roi>", "<ground_box>") for m in marks)

    batch = codec.collate([record, record])
    count = len(record["gaze"])
    assert np.array_equal(batch["gaze"][1, :count], record["gaze"])
    assert batch["gaze_weight"][:, count:].sum() == 0


def test_gaze_adds_boxes_that_no_answer_names(tokenizer):
    codec = GromaCodec(tokenizer)
    sample = example(("Is there a cat?", "Yes.", (3, 1)), ("A dog?", "<r:1>", (1,)))
    record = codec.encode(sample)
    codec.add_gaze(record, sample.turns, sample.regions)
    np.testing.assert_allclose(record["ground_boxes"], BOXES[[1, 3]])
