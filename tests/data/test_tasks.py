"""Task builders: what they say is recomputed here from the annotations, on scenes and by hand."""

import re
import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mg_jax.boxes import iou
from mg_jax.data.tasks import NEGATIVES, TASKS
from mg_jax.data.tasks.asking import side
from mg_jax.errors import BadRecord
from mg_jax.example import Example, Expression, Question
from mg_jax.text import instructions, markup
from mg_jax.text.codecs.groma import GromaCodec
from mg_jax.text.instructions import llava
from tests.data.photos import DOGS, LONG, MAN, SIGN, annotated, box, name, photo, pointed

GROMA = instructions.get("groma")
BOX_SUBJECT = re.compile(r"(.*) (to the left of|to the right of|above|below) (.*)\.")


@pytest.fixture(scope="module")
def pictures():
    return [photo(), *map(annotated, range(12))]


def made(task, example, count=12, wording=GROMA):
    rng = np.random.default_rng(zlib.crc32(f"{task} {example.id}".encode()))
    found = [TASKS[task](example, rng, wording) for _ in range(count)]
    assert all(found), f"{task} of {example.id}"
    return found


@pytest.mark.parametrize("system", ["groma", "mg_llava", "ferret", "tiny_grounding_gpt", "llava"])
def test_every_task_gives_a_conversation_that_encodes(system, pictures, tokenizer):
    codec = GromaCodec(tokenizer, text_tokens=2000, image_tokens=4, max_regions=40)
    for task in TASKS:
        for example in pictures[:5]:
            if task == "region_description" and example.id != "photo":
                continue
            for e in made(task, example, 3, instructions.get(system)):
                used = []
                for turn, record in zip(e.turns, e.meta["turns"], strict=True):
                    assert turn.assistant.strip() and "{" not in turn.user + turn.assistant
                    used += markup.regions_of(turn.user + turn.assistant)
                    assert record["targets"] == list(
                        dict.fromkeys(markup.regions_of(turn.assistant))
                    )
                assert set(used) == set(range(len(e.regions)))  # these and no others
                assert len({t.user for t in e.turns}) == len(e.turns) <= 10
                encoded = codec.encode(e)
                refers = [k for t in e.turns for k in markup.regions_of(t.user)]
                np.testing.assert_allclose(
                    encoded["refer_boxes"], [e.regions[k].box for k in refers] or np.zeros((0, 4)),
                    atol=1e-6,
                )  # fmt: skip
                again = TASKS[task](example, np.random.default_rng(5), instructions.get(system))
                other = TASKS[task](example, np.random.default_rng(5), instructions.get(system))
                assert again.turns == other.turns and again.regions == other.regions


def test_rec_gives_the_regions_of_its_expression(pictures):
    seen = Counter()
    for example in pictures:
        texts = {e.text: [example.regions[k] for k in e.regions] for e in example.expressions}
        for e in made("rec", example, 40):
            turn, record = e.turns[0], e.meta["turns"][0]
            phrase = markup.parse(turn.user)[1].text
            seen[phrase] += 1
            if record["absent"]:
                assert record["task"] == "rec_absent" and markup.says_absent(turn.assistant)
                assert phrase == "the red car" or phrase in example.absent
                assert "red car" not in phrase or "no the" not in turn.assistant
            else:
                assert pointed(e, turn.assistant) == texts[phrase]
    # "the thing" names two places, and one expression holds a mark
    assert set(seen) & {e.text for e in photo().expressions} == {
        "the right dog", "both dogs", "the red car", LONG
    }  # fmt: skip


def test_rec_without_expressions_asks_for_what_is_there_once():
    example = photo(expressions=(), absent=())
    phrases = {markup.parse(e.turns[0].user)[1].text for e in made("rec", example, 60)}
    assert phrases == {"stop sign", "person", "umbrella"}
    several = photo(expressions=(), objects=DOGS, crowd=(), regions=())
    assert TASKS["rec"](several, np.random.default_rng(0), GROMA) is None  # nor what is absent


def test_all_instances_gives_every_box_of_the_class(pictures):
    for example in pictures:
        for e in made("all_instances", example, 30):
            turn = e.turns[0]
            asked = markup.parse(turn.user)[1].text
            boxes = [r.box for r in example.objects if name(r) == asked]
            found = [r.box for r in pointed(e, turn.assistant)]
            assert sorted(found) == sorted(boxes)
            assert [b[0] + b[2] for b in found] == sorted(b[0] + b[2] for b in found)
            assert bool(boxes) != markup.says_absent(turn.assistant)
            assert boxes or (asked in example.absent and asked not in ("dog", "stop sign", "bird"))
    partial = photo(absent=(), meta={"not_exhaustive": ["person"]}, crowd=(box(0, 0, 1, 1, "Dog"),))
    asked = {markup.parse(e.turns[0].user)[1].text for e in made("all_instances", partial, 40)}
    assert asked == {"stop sign", "umbrella"}


def test_ferret_repeats_the_phrase_and_counts():
    ferret = instructions.get("ferret")
    e = made("rec", photo(absent=(), expressions=(Expression("both", (0, 1)),)), 1, ferret)[0]
    assert e.turns[0].user == "What is the location of <p>both</p> in the image?"
    assert e.turns[0].assistant == "<p>both</p><r:0><r:1>"
    e = made("dense_referring", photo(objects=DOGS, regions=()), 1, ferret)[0]
    assert e.turns[0].user.endswith("locations. 1: <r:0>, 2: <r:1>")
    assert e.turns[0].assistant == "Here are the categories: 1: dog, 2: dog"


@pytest.mark.parametrize("share_of", ["rec", "all_instances"])
def test_share_of_negatives(share_of):
    example = photo()
    negative = [e.meta["turns"][0]["absent"] for e in made(share_of, example, 600)]
    assert abs(np.mean(negative) - NEGATIVES) < 0.05
    empty = photo(objects=(), crowd=(), regions=(), captions=(), expressions=(), relations=())
    assert made(share_of, empty, 5)[0].meta["turns"][0]["absent"]
    nothing = replace(empty, absent=())
    assert TASKS[share_of](nothing, np.random.default_rng(0), GROMA) is None
    # a picture whose only class is a crowd has nothing to locate and is not denied anything
    crowded = replace(empty, crowd=(box(0, 0, 1, 1, "bird"),))
    assert TASKS[share_of](crowded, np.random.default_rng(0), GROMA) is None


def test_presence_is_balanced_and_true(pictures):
    yes = []
    for example in pictures:
        there = {name(r) for r in (*example.objects, *example.crowd)}
        for e in made("presence", example, 60):
            noun = re.search(r"(?:Is there|see|show) an? (.*?)(?: in |\?)", e.turns[0].user)[1]
            yes.append(e.turns[0].assistant.startswith("Yes, there is a"))
            assert yes[-1] == (noun in there) and yes[-1] != e.meta["turns"][0]["absent"]
            assert noun in there or noun in example.absent
            assert yes[-1] or e.turns[0].assistant == f"No, there is no {noun} in the image."
    assert abs(np.mean(yes) - 0.5) < 0.06
    assert TASKS["presence"](photo(absent=()), np.random.default_rng(0), GROMA) is None
    words = [e.turns[0].user for e in made("presence", photo(absent=("orange", "unicorn")), 60)]
    assert any("an orange" in w for w in words) and any("a unicorn" in w for w in words)


def test_how_common_a_thing_is_does_not_tell_whether_it_is_there():
    rng = np.random.default_rng(3)
    labels = [f"kind {k}" for k in range(20)]
    shown = rng.random((800, 20)) < 0.5 / np.arange(1, 21)  # the first in every second picture
    shown[:, 19] |= ~shown.any(1)
    frequency = dict(zip(labels, shown.sum(0).tolist(), strict=True))

    def yes_of_common(meta):
        yes = []
        for row in shown:
            objects = tuple(box(0, 0, 1, 1, labels[k]) for k in np.flatnonzero(row))
            absent = tuple(labels[k] for k in np.flatnonzero(~row))
            e = TASKS["presence"](
                Example("x", 9, 9, objects=objects, absent=absent, meta=meta), rng, GROMA
            )
            if "kind 0 " in e.turns[0].user or "kind 0?" in e.turns[0].user:
                yes.append(e.turns[0].assistant.startswith("Yes"))
        return np.mean(yes)

    assert yes_of_common({}) > 0.85  # a model would learn to say yes to it
    assert 0.4 < yes_of_common({"frequency": frequency}) < 0.75


def test_region_captions_are_of_the_region_and_apart(pictures):
    for example in pictures:
        for e in made("region_caption", example, 6):
            boxes = []
            for turn in e.turns:
                (region,) = pointed(e, turn.user)
                boxes.append(region.box)
                texts = {
                    x.text.lower()
                    for x in example.expressions
                    if [example.regions[k] for k in x.regions] == [region]
                }
                assert turn.assistant.lower() in texts and turn.assistant[0].isupper()
            over = iou(np.array(boxes), np.array(boxes)) - np.eye(len(boxes))
            assert over.max() <= 0.6
    crowd = tuple(box(0.05 * k, 0, 0.05 * k + 0.04, 1, f"n{k}") for k in range(20))
    near = (box(0.3, 0, 0.342, 1, "near"), box(0, 0, 0.04, 1, "again"))
    sizes = set()
    for e in made("region_caption", photo(regions=(), objects=crowd + near, expressions=())):
        sizes.add(len(e.turns))
        said = {t.assistant for t in e.turns}
        assert not {"Near", "N6"} <= said and not {"Again", "N0"} <= said
    assert sizes == {10}
    for e in made("region_description", photo(), 3):
        assert e.turns[0].assistant == LONG.lower().capitalize()
        assert pointed(e, e.turns[0].user) == [MAN]
    assert TASKS["region_description"](annotated(0), np.random.default_rng(0), GROMA) is None


def test_captions(pictures):
    for example in pictures:
        plain = [markup.strip(c) for c in example.captions]
        assert all(e.turns[0].assistant in plain for e in made("caption", example, 6))
        for e in made("grounded_caption", example, 6):
            text = e.turns[0].assistant
            want = markup.parse(example.captions[0])
            got = [s for s in markup.parse(text) if s.kind == "phrase"]
            assert markup.strip(text) == plain[0]
            assert [(s.text, [e.regions[k] for k in s.regions]) for s in got] == [
                (s.text, [example.regions[k] for k in s.regions])
                for s in want
                if s.kind == "phrase" and s.regions
            ]
    detailed = photo(captions=(" ".join(["word"] * 60),))
    asked = made("caption", detailed, 1)[0].turns[0].user
    assert asked in GROMA.texts["detailed_caption"]
    assert TASKS["grounded_caption"](detailed, np.random.default_rng(0), GROMA) is None


def test_dense_tasks_name_at_most_ten_objects(pictures):
    for example in pictures:
        names = {r.box: name(r) for r in reversed((*example.objects, *example.regions))}
        for e in made("dense_detection", example, 4):
            segments = markup.parse(e.turns[0].assistant)
            found = [(s.text, e.regions[s.regions[0]].box) for s in segments if s.regions]
            assert all(names[b] == text for text, b in found)
            assert [b[1] for _, b in found] == sorted(b[1] for _, b in found)
            assert len({b for _, b in found}) == len(found) == min(len(names), 10)
        for e in made("dense_detection_centres", example, 4):
            said = markup.parse(e.turns[0].assistant)
            boxes = [e.regions[s.regions[0]].box for s in said if s.regions]
            middles = [b[1] + b[3] for b in boxes]
            assert middles == sorted(middles) and len(boxes) == min(len(names), 10)
        for e in made("dense_referring", example, 4):
            places = pointed(e, e.turns[0].user)
            listed = ", ".join(f"{n}: {names[r.box]}" for n, r in enumerate(places, 1))
            assert e.turns[0].assistant == listed and len(places) == min(len(names), 10)


def test_relations_hold(pictures):
    seen = set()
    for example in pictures:
        for e in made("relation", example, 8):
            turn = e.turns[0]
            one, other = pointed(e, turn.user)
            assert pointed(e, turn.assistant) == [one, other]
            said = markup.strip(turn.assistant)
            if example.relations:
                seen.add(said)
                continue
            a, b = one.box, other.box
            link = BOX_SUBJECT.fullmatch(said)[2]
            sides = {"to the left of": b[0] - a[2], "to the right of": a[0] - b[2],
                     "above": b[1] - a[3], "below": a[1] - b[3]}  # fmt: skip
            assert sides[link] >= 0 and sum(v >= 0 for v in sides.values()) == 1
    assert seen == {"person next to stop sign.", "dog left of dog."}
    assert side(DOGS[0], MAN) == "above" and side(SIGN, DOGS[0]) is None
    assert side(MAN, SIGN) == "to the right of"


def test_dialogues_lead_from_region_to_region(pictures):
    kinds = Counter()
    for example in pictures:
        things = {r.box: name(r) for r in reversed((*example.objects, *example.regions))}
        for e in made("dialogue", example, 25):
            assert 2 <= len(e.turns) <= 5
            here = pointed(e, e.turns[0].user)[0]
            assert e.turns[0].assistant == things[here.box].capitalize()
            for turn in e.turns[1:]:
                shown, found = pointed(e, turn.user), pointed(e, turn.assistant)
                said = markup.strip(turn.assistant)
                there = found[-1]
                if len(shown) == 2:
                    kinds["relation"] += 1
                    assert shown == found and shown[0] == here
                    if not example.relations:
                        assert BOX_SUBJECT.fullmatch(said)[2] == side(*shown)
                elif '"' in turn.user:
                    kinds["related"] += 1
                    assert shown == [here]
                    predicate = re.search('"(.*)"', turn.user)[1]
                    pair = [example.regions.index(r) for r in (there, here)]
                    assert (pair[0], predicate, pair[1]) in example.relations
                elif not shown:
                    kinds["rec"] += 1
                    phrase = markup.parse(turn.user)[1].text
                    assert [b for b, n in things.items() if n == phrase] == [there.box]
                else:
                    kinds["nearest"] += 1
                    assert shown == [here] and said == f"{things[there.box]}."
                    far = sorted(
                        ((b[0] + b[2] - here.box[0] - here.box[2]) ** 2
                        + (b[1] + b[3] - here.box[1] - here.box[3]) ** 2) ** 0.5
                        for b in things if b != here.box
                    )  # fmt: skip
                    b = there.box
                    near = np.hypot(b[0] + b[2] - here.box[0] - here.box[2],
                                    b[1] + b[3] - here.box[1] - here.box[3])  # fmt: skip
                    assert near == pytest.approx(far[0]) and far[1] > 1.2 * far[0]
                here = there
    assert set(kinds) == {"relation", "related", "rec", "nearest"} and min(kinds.values()) > 5


def test_questions_and_choices():
    rounds = Counter()
    for e in made("vqa", photo(), 30):
        users = [t.user for t in e.turns]
        rounds[len(users)] += 1
        if users == ["Why?"]:  # a long answer, so not asked for a word
            continue
        assert users[0].endswith(f"\n{llava.SHORT_ANSWER}") and llava.SHORT_ANSWER not in users[1]
        answers = {t.user.split("\n")[0]: t.assistant for t in e.turns}
        assert answers == {"How many dogs?": "2", "What is <r:0>?": "A sign"}
        assert e.regions == (SIGN,)
    assert set(rounds) == {1, 2}
    hinted = [Question(f"Q{k}?", ("yes",), hint="Words: a, b") for k in range(12)]
    (e,) = made("vqa", photo(questions=tuple(hinted)), 1)
    assert len(e.turns) == 10 and sum("Words" in t.user for t in e.turns) == 1
    assert e.turns[0].user.startswith("Words: a, b\nQ")
    (e,) = made("choice", photo(), 1)
    assert e.turns[0].user == f"A hint.\nWhich?\nA. dog\nB. cat\n{llava.LETTER}"
    assert e.turns[0].assistant == "B"
    many = Question("Which?", ("0",), tuple(map(str, range(27))))
    assert TASKS["choice"](photo(questions=(many,)), np.random.default_rng(0), GROMA) is None


def test_a_mark_without_region_is_a_bad_record():
    for task, broken in (("grounded_caption", photo(captions=("<p>a</p><r:9>",))),
                         ("vqa", photo(questions=(Question("<r:4>?", ("a",)),)))):  # fmt: skip
        with pytest.raises(BadRecord, match="example 'photo': .* 4 regions"):
            TASKS[task](broken, np.random.default_rng(0), GROMA)
