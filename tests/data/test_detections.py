"""Box files and the way from a detector's boxes to MG-LLaVA's."""

import json

import numpy as np
import pytest

from mg_jax.boxes import BoxSpace
from mg_jax.data.detections import as_found, checked, prepare, read_box_file, suppress, to_canvas
from mg_jax.errors import BadRecord, UserError
from mg_jax.evals.metrics import iou_matrix
from mg_jax.example import Example

ENTRY = {"boxes": [[10, 5, 60, 44], [-3, 0, 9, 200]], "scores": [0.9, 0.5], "labels": ["a", "b"]}


@pytest.fixture
def write(tmp_path):
    def make(content):
        path = tmp_path / "boxes.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return make


# -- files ------------------------------------------------------------------------------------


def test_every_form_of_a_box_file(write):
    entries = {"7": ENTRY, "b/c": {"boxes": [], "scores": [], "labels": []}}
    rows = [{"id": 7, **ENTRY}, {"id": "b/c", **entries["b/c"]}]
    lines = "\n".join(map(json.dumps, rows))
    for content in (rows, entries, lines, "\ufeff" + json.dumps(entries)):
        found = read_box_file(write(content))
        assert len(found) == 2 and list(found) == ["7", "b/c"] and 7 in found and "8" not in found
        (first,) = found.lookup(7)
        np.testing.assert_array_equal(first.boxes, np.float32(ENTRY["boxes"]))
        np.testing.assert_array_equal(first.scores, np.float32([0.9, 0.5]))
        assert first.labels == ("a", "b") and first.boxes.dtype == np.float32
        (second,) = found.lookup("b/c")
        assert second.boxes.shape == (0, 4) and second.labels == ()


def test_videos_have_frames_and_go_without_their_ending(write):
    frames = [ENTRY, {"boxes": [], "scores": [], "labels": []}]
    found = read_box_file(write([{"video": "d/clip.v2", "frames": frames}]))
    first, second = found.lookup("d/clip.v2.mp4")
    assert len(first.labels) == 2 and len(second.labels) == 0
    assert len(found.lookup("d/clip.v2")) == 2


def test_the_last_entry_of_an_id_counts(write):
    found = read_box_file(write([{"id": 1, **ENTRY}, {"id": "1", **ENTRY, "labels": ["x", "y"]}]))
    assert len(found) == 1 and found.lookup(1)[0].labels == ("x", "y")


def test_large_files_stay_on_disk(write):
    found = read_box_file(write([{"id": n, **ENTRY} for n in range(300)]))
    assert len(found) == 300 and found.lookup(299)[0].labels == ("a", "b")
    assert not any(isinstance(value, dict) for value in vars(found._files[0]).values())


def test_several_files_are_one(tmp_path):
    """Pictures of one, films of another; an entry that both have must be the same in both."""
    films = [{"id": "v", "frames": [ENTRY] * 2}, {"id": 7, **ENTRY}]
    other = {"id": "7", **ENTRY, "labels": ["x", "y"]}
    for name, rows in {
        "a": [{"id": 7, **ENTRY}, {"id": 8, **ENTRY, "labels": ["c", "d"]}],
        "b": films,
        "c": [other],
        "d": [{"id": "v", **ENTRY}],
    }.items():
        (tmp_path / name).write_text(json.dumps(rows))
    found = read_box_file(f"{tmp_path}/a,{tmp_path}/b")
    assert list(found) == ["7", "8", "v"]
    assert found.lookup(8)[0].labels == ("c", "d") and len(found.lookup("v.mp4")) == 2
    with pytest.raises(BadRecord, match=rf"{tmp_path}/a,{tmp_path}/b: no entry for '9'"):
        found.lookup(9)
    for pair, name in ((("a", "c"), "7"), (("b", "d"), "v")):
        first, second = (f"{tmp_path}/{file}" for file in pair)
        message = rf"^{second}: \[0\]: id '{name}' has another entry in {first}: give"
        with pytest.raises(UserError, match=message):
            read_box_file(f"{first}, {second}")
    with pytest.raises(UserError, match="none: no such box file"):
        read_box_file(f"{tmp_path}/a,{tmp_path}/none")


def test_a_path_ends_with_its_id(write, tmp_path, monkeypatch):
    """As launch.boxes makes ids: paths below a folder, without ending."""
    ids = ["sub/a", "b", "films/clip.v2", "two/c", "c"]
    found = read_box_file(write([{"id": n, **ENTRY, "labels": [n, n]} for n in ids]))

    def label(path):
        return found.of_file(str(path))[0].labels[0]

    assert label(tmp_path / "in" / "sub" / "a.png") == label("in/sub/../sub/a.jpg") == "sub/a"
    assert label("b.jpg") == label("/elsewhere/b") == "b"
    assert label("films/clip.v2") == label("x/films/clip.v2.mp4") == "films/clip.v2"
    assert label("one/c.png") == "c"
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert label("a.png") == "sub/a"
    with pytest.raises(UserError, match=r"in/two/c.png may be any of 'two/c', 'c': .*--boxes-id"):
        found.of_file("in/two/c.png")
    with pytest.raises(BadRecord, match="no entry for 'x.png'"):
        found.of_file("in/x.png")


def test_an_example_is_looked_up_before_its_own_detections_count(write):
    found = read_box_file(write([{"id": 1, **ENTRY}]))
    mine = ENTRY | {"labels": ["c", "d"]}

    def about(**meta):
        return found.about(Example(None, 0, 0, id="x", meta=meta))

    assert about(id=1, detections=mine)[0].labels == ("a", "b")
    assert about(id=2, detections=mine) is mine
    with pytest.raises(BadRecord, match="no entry for '2'"):
        about(id=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no valid JSON"),
        ("[1]", r"boxes.json: \[0\]: expected an object"),
        ([ENTRY], "the entry has no id"),
        ('{"id": 1}\nnonsense', "boxes.json:2: no valid JSON"),
    ],
)
def test_no_box_file(write, content, message):
    with pytest.raises(UserError, match=message):
        read_box_file(write(content))


def test_missing_box_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such box file"):
        read_box_file(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": None}, "has no list 'scores'"),
        ({"labels": ["a", None]}, "box 1 has no label"),
        ({"scores": [0.5, True]}, "box 1 has true or false where a number"),
        ({"boxes": [[True, 5, 60, 44], [0, 0, 3, 200]]}, "box 0 has true or false where a number"),
        ({"labels": ["a"]}, "2 boxes but 1 labels"),
        ({"scores": [0.1]}, "2 boxes but 1 scores"),
        ({"boxes": [[10, 5, 60, 44], [9, 0, 3, 200]]}, r"box 1 \[9, 0, 3, 200\] is reversed"),
        ({"boxes": [[10, 5, 60], [9, 0, 3]]}, "four numbers"),
        ({"boxes": [[10, 5, 60, 44], [9, 0]]}, "four numbers"),
        ({"boxes": [["a", 5, 60, 44]] * 2}, "four numbers"),
        ({"scores": ["high", 1]}, "four numbers"),
        ({"scores": [0.1, float("nan")]}, "no finite number"),
        ({"frames": []}, "frames is no list"),
        ({"frames": [ENTRY, 3]}, "frame 1: expected an object"),
        ({"frames": [ENTRY, {"boxes": []}]}, "frame 1: has no list 'scores'"),
    ],
)
def test_malformed_entries(write, change, message):
    found = read_box_file(write([{"id": 1, **ENTRY}, {"id": "bad", **ENTRY, **change}]))
    assert found.lookup(1)
    with pytest.raises(BadRecord, match=rf"boxes\.json: entry 'bad'.*{message}"):
        found.lookup("bad")


def test_what_an_example_brings_is_read_as_an_entry_is(write):
    (first,) = read_box_file(write([{"id": 1, **ENTRY}])).lookup(1)
    arrays = {"boxes": np.asarray(ENTRY["boxes"]), "scores": np.ones(2), "labels": ("a", "b")}
    for given in (ENTRY, [ENTRY], {"frames": [ENTRY]}, first, (first,), arrays):
        (found,) = as_found(given, "here")
        np.testing.assert_array_equal(found.boxes, first.boxes)
        assert found.labels == first.labels
    assert len(as_found({"frames": [ENTRY, first]}, "here", 2)) == 2
    looked_up = [checked([], [], [], "file: entry 'v'")] * 2
    with pytest.raises(BadRecord, match=r"^file: entry 'v': boxes of 2 .*--video --frames 8 makes"):
        as_found(looked_up, "here", 8)
    with pytest.raises(BadRecord, match="^here: boxes of 2 pictures or frames, but 8 are"):
        as_found([ENTRY] * 2, "here", 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"boxes": [[1, 2, 3, 4]], "labels": ["a"]}, "here: has no list 'scores'"),
        ({"boxes": [], "scores": []}, "here: has no list 'labels'"),
        (ENTRY | {"scores": [0.5]}, "here: 2 boxes but 1 scores"),
        ([[1, 2, 3, 4]], "here: expected an object with boxes, scores and labels"),
        ({"frames": [ENTRY | {"boxes": [[9, 9, 1, 1]] * 2}]}, "here: box 0 .* is reversed"),
    ],
)
def test_malformed_detections_of_an_example(given, message):
    with pytest.raises(BadRecord, match=message):
        as_found(given, "here")


def test_a_picture_without_an_entry(write):
    with pytest.raises(BadRecord, match=r"no entry for 'x\.jpg' \(its 1 ids: 1.*launch\.boxes"):
        read_box_file(write([{"id": 1, **ENTRY}])).lookup("x.jpg")


# -- preparation ------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("name", ["wide", "tall", "nodet", "many", "many15"])
def test_recorded_cases(shared, name):
    folder = shared / "golden" / "mg_llava" / "preproc"
    case = json.loads((folder / "config.json").read_text())["cases"][name]
    with np.load(folder / "inputs.npz") as archive:
        height, width = archive[f"{name}_image_u8"].shape[:2]
    with np.load(folder / "outputs.npz") as archive:
        recorded = archive[f"{name}_gt_boxes"]
    found = prepare(
        case["boxes"], case["scores"], case["labels"], width, height, case["image_size_aux"]
    )
    np.testing.assert_array_equal(found.boxes, recorded)
    assert list(found.labels) == case["out_labels"]
    lost = len(case["boxes"]) - len(found.labels)
    assert sum(found.dropped.values()) == lost


def grid(count):
    """Boxes of 8 x 8 pixels that do not touch, in a picture of 768 x 768."""
    x, y = np.arange(count) % 60 * 12, np.arange(count) // 60 * 12
    return np.stack([x, y, x + 8, y + 8], 1).astype(np.float32)


def test_limits(rng):
    boxes, scores = grid(150), rng.random(150)
    labels = [("x", "y", "z")[n % 3] for n in range(150)]

    def run(**kw):
        return prepare(boxes, scores, labels, 768, 768, **kw)

    few = run()
    assert len(few.labels) == 60 and few.dropped == {"limit": 90}
    for label in "xyz":
        mine = [n for n in range(150) if labels[n] == label]
        best = sorted(mine, key=lambda n: -scores[n])[:20]
        at = [k for k, name in enumerate(few.labels) if name == label]
        assert at == list(range(at[0], at[0] + 20))
        np.testing.assert_array_equal(few.boxes[at], boxes[best])
    assert len(run(limit=None).labels) == len(run(limit=150).labels) == 150
    assert len(run(limit=149).labels) == len(run(limit=51).labels) == 60
    assert len(run(limit=50).labels) == len(run(limit=40).labels) == 15
    assert len(run(one_each=True).labels) == 3
    assert len(prepare(boxes[:6], scores[:6], labels[:6], 768, 768, one_each=True).labels) == 3


def test_cap_drops_the_lowest_scores_and_says_so(rng):
    boxes, scores = grid(150), rng.random(150)
    labels = [str(n % 15) for n in range(150)]
    whole = prepare(boxes, scores, labels, 768, 768)
    assert len(whole.labels) == 150  # the published limit of 100 is no cap
    found = prepare(boxes, scores, labels, 768, 768, cap=32)
    assert found.dropped == {"slots": 118} and found.boxes.shape == (32, 4)
    kept = {tuple(b) for b in found.boxes.tolist()}
    assert kept == {tuple(b) for b in boxes[np.argsort(-scores)[:32]].tolist()}
    order = [whole.boxes.tolist().index(b) for b in found.boxes.tolist()]
    assert order == sorted(order)


def test_what_lies_outside_is_cut_or_counted():
    boxes = [[-30, -40, 50, 60], [90, 10, 300, 40], [10, -90, 20, -60], [250, 0, 270, 9]]
    found = prepare(boxes, [0.9, 0.8, 0.7, 0.6], list("abcd"), 200, 100, canvas=768)
    assert found.labels == ("a", "b") and found.dropped == {"outside": 2}
    assert found.boxes.tolist() == [[0, 38, 192, 422], [346, 230, 768, 346]]


def test_nothing_found_is_one_empty_box():
    for boxes, scores, labels in (([], [], []), ([[300, 0, 310, 9]], [0.5], ["a"])):
        found = prepare(boxes, scores, labels, 100, 100)
        assert found.boxes.tolist() == [[0, 0, 0, 0]] and found.labels == ()
        assert found.boxes.dtype == np.float32


def test_coordinates_are_rounded_half_to_even():
    found = prepare([[1, 2, 5, 7]], [1.0], ["a"], 1536, 1536)
    assert found.boxes.tolist() == [[0, 1, 2, 4]]


def test_the_published_canvas_is_one_unit_off_for_some_sides():
    """Upstream's int(side * scale) is 767 for them, so that its crop begins at -1."""
    assert prepare([[10, 10, 20, 20]], [1.0], ["a"], 384, 384).boxes.tolist() == [[20, 20, 40, 40]]
    assert prepare([[10, 10, 20, 20]], [1.0], ["a"], 383, 383).boxes.tolist() == [[21, 21, 41, 41]]


def test_suppression_is_within_a_label():
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10]])
    scores = np.float32([0.5, 0.9, 0.7, 0.9])
    assert suppress(boxes, scores, ["a", "a", "b", "a"], 0.2).tolist() == [1, 3, 2]
    # an IoU of a fifth: in float32 it is above 0.2
    pair = np.float32([[0, 0, 3, 1], [2, 0, 5, 1]])
    assert suppress(pair, np.float32([0.9, 0.8]), ["a", "a"], 0.2).tolist() == [0]
    assert suppress(pair, np.float32([0.9, 0.8]), ["a", "a"], 0.21).tolist() == [0, 1]
    empty = np.float32([[1, 1, 1, 1], [1, 1, 1, 1]])
    assert suppress(empty, np.float32([0.9, 0.8]), ["a", "a"], 0.2).tolist() == [0, 1]


def test_suppression_is_greedy(rng):
    """Against the definition, box by box, with ties of scores and of labels."""
    corner = rng.integers(0, 60, (200, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 40, (200, 2))], 1).astype(np.float32)
    scores = rng.integers(0, 30, 200).astype(np.float32) / 30
    labels = [str(k) for k in rng.integers(0, 5, 200)]
    kept = []
    for n in sorted(range(200), key=lambda n: (-scores[n], n)):
        rivals = [k for k in kept if labels[k] == labels[n]]
        if not rivals or iou_matrix(boxes[[n]], boxes[rivals]).max() <= 0.2:
            kept.append(n)
    assert 20 < len(kept) < 180
    assert suppress(boxes, scores, labels, 0.2).tolist() == kept


@pytest.mark.parametrize("size", [(300, 200), (61, 200), (96, 96)])
def test_given_boxes_follow_the_padding(size, rng):
    corner = rng.random((9, 2)) * 0.5
    boxes = np.concatenate([corner, corner + rng.random((9, 2)) * 0.5], 1)
    expected = BoxSpace.pad(*size, 768).to_view(boxes) * 768
    np.testing.assert_allclose(to_canvas(boxes, *size), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("boxes", "scores", "message"),
    [
        ([[5, 0, 3, 9]], [1.0], "detections: box 0 .* is reversed"),
        ([[0, 0, 3, 9]], [1.0, 2.0], "four numbers"),
        ([[0, 0, np.inf, 9]], [1.0], "no finite number"),
    ],
)
def test_bad_boxes_are_refused(boxes, scores, message):
    with pytest.raises(BadRecord, match=message):
        prepare(boxes, scores, ["a"], 100, 100)
