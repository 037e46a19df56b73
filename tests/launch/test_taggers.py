"""Words for an open-vocabulary detector: lists, captions, plug-ins, RAM++'s rule."""

import json

import numpy as np
import pytest
from PIL import Image

from launch import taggers
from launch.taggers import caption_tags, open_tagger, ram_pixels, ram_tags
from mg_jax.errors import UserError
from mg_jax.vision.preprocess import IMAGENET_MEAN, IMAGENET_STD


def test_ram_rule():
    """Above the threshold of each class, in the order of the list, lower case, split at commas."""
    names = ["Dog", "traffic light", "salt, pepper", "cat"]
    thresholds = np.asarray([0.5, 0.9, 0.68, 0.68])
    at = np.log(thresholds / (1 - thresholds))  # exactly on the threshold is not above it
    logits = np.stack([at + 0.01, at - 0.01, at + np.asarray([1, -1, 1, -1])])
    assert ram_tags(logits, names, thresholds) == [
        ["dog", "traffic light", "salt", "pepper", "cat"],
        [],
        ["dog", "salt", "pepper"],
    ]
    assert ram_tags(np.asarray([[0.74, 0.76]]), ["a", "b"]) == [["b"]]  # sigmoid(0.754) = 0.68


def test_ram_pixels(rng):
    image = rng.integers(0, 256, (50, 90, 3), np.uint8)
    small = np.asarray(Image.fromarray(image).resize((384, 384), Image.Resampling.BILINEAR))
    want = (small / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(ram_pixels([image, image])[1], want, atol=1e-5)


@pytest.mark.parametrize(
    ("caption", "tags"),
    [
        ("A man riding a red horse on the beach.", ["man", "red horse", "beach"]),
        ("two dogs and a traffic light", ["dogs", "traffic light"]),
        ("The picture shows nothing", ["nothing"]),
        ("", []),
    ],
)
def test_words_of_a_caption(caption, tags):
    assert caption_tags(caption) == tags


def test_known_tags_of_a_caption():
    known = ["dog", "hot dog", "box", "light", "cat"]
    assert caption_tags("Two hot dogs, boxes; a catalogue.", known) == ["hot dog", "box"]
    assert caption_tags("Hot dog and a DOG", known) == ["hot dog", "dog"]


def test_files_of_captions(tmp_path):
    forms = {
        "rows.json": [{"id": 3, "caption": ["a dog", "a cat"]}],
        "coco.json": {
            "images": [{"id": 9, "file_name": "x/3.jpg"}],
            "annotations": [{"image_id": 9, "caption": c} for c in ("a dog", "a cat")],
        },
        "llava.json": [
            {"id": "3", "conversations": [{"from": "human", "value": "what is here, a bird?"},
                                          {"from": "gpt", "value": "a dog. a cat"}]}
        ],
    }  # fmt: skip
    for name, content in forms.items():
        (tmp_path / name).write_text(json.dumps(content))
        tagger = open_tagger(None, str(tmp_path / name), None, None)
        assert tagger(["3"], [None]) == [["dog", "cat"]]
    with pytest.raises(UserError, match=r"has no caption of 4, 5, 6, \.\.\. and 1 more"):
        tagger.check("34567")
    (tmp_path / "bad.json").write_text('[{"id": 1}]')
    with pytest.raises(UserError, match=r"bad.json: \[0\]: expected an id and a caption"):
        open_tagger(None, str(tmp_path / "bad.json"), None, None)


def test_plugins(tmp_path, monkeypatch, rng):
    images = [rng.integers(0, 256, (20, 30, 3), np.uint8)] * 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_tagger_for_tests.py").write_text(
        "import numpy as np\n"
        "def tags(images): return [['Dog', 'cat, dog'] for _ in images]\n"
        "def logits(pixels):\n"
        "    assert pixels.shape[1:] == (384, 384, 3) and pixels.dtype == np.float32\n"
        "    return np.asarray([[-9, 0.1, 9]] * len(pixels))\n"
        "def wrong(images): return 'dog'\n"
        "def missing(images): pass\n"
        "nothing = 3\n"
    )
    module = "my_tagger_for_tests"
    assert open_tagger(None, None, f"{module}:tags", None)("ab", images) == [["dog", "cat"]] * 2
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "limits.txt").write_text("0.5\n0.5\n0.5\n")
    plain = open_tagger("names.txt", None, f"{module}:logits", None)
    assert plain("ab", images) == [["three"]] * 2
    with_limits = open_tagger("names.txt", None, f"{module}:logits", "limits.txt")
    assert with_limits("ab", images) == [["two", "three"]] * 2
    with pytest.raises(UserError, match="return a list of tags for each"):
        open_tagger(None, None, f"{module}:wrong", None)("ab", images)
    with pytest.raises(UserError, match="gave no list of lists for 2 pictures"):
        open_tagger(None, None, f"{module}:missing", None)("ab", images)
    with pytest.raises(UserError, match="is no function"):
        open_tagger(None, None, f"{module}:nothing", None)
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"shape \[2, 3\], expected \[2, 2\]"):
        open_tagger("names.txt", None, f"{module}:logits", None)("ab", images)
    with pytest.raises(UserError, match="3 numbers for the 2 tags"):
        open_tagger("names.txt", None, f"{module}:logits", "limits.txt")
    with pytest.raises(UserError, match="is for --tagger"):
        open_tagger("names.txt", None, None, "limits.txt")
    with pytest.raises(UserError, match="give one of them"):
        open_tagger(None, "c.json", f"{module}:tags", None)


def test_word_list(tmp_path):
    (tmp_path / "w.txt").write_text(" Dog\n\ntraffic light\ndog\n")
    assert open_tagger(str(tmp_path / "w.txt"), None, None, None)("ab", [0, 0]) == (
        [["dog", "traffic light"]] * 2
    )
    (tmp_path / "w.txt").write_text("\n")
    with pytest.raises(UserError, match="empty: write one tag a line"):
        taggers.read_lines(str(tmp_path / "w.txt"), "--tags")
