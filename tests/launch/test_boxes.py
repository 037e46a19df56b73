"""`python -m launch.boxes` on a small random OWLv2: the same boxes as transformers' own detector
finds one picture at a time, resumable, its files as MG-LLaVA's reader takes them."""

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from launch import box_files, boxes, cli
from mg_jax.data.detections import read_box_file
from tests.launch.owlv2_folder import write_owlv2

pytestmark = pytest.mark.torch
TAGS = ["red star", "dog", "Cat", "traffic light"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_owlv2(tmp_path_factory.mktemp("owlv2"))


@pytest.fixture
def pictures(tmp_path, rng):
    folder = tmp_path / "in"
    for name, size in (("a.png", (90, 120)), ("sub/b.jpg", (64, 64)), ("c.png", (150, 40))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)
    (tmp_path / "tags.txt").write_text("\n".join(TAGS) + "\n\n")
    return folder


def run(monkeypatch, capsys, *arguments):
    """(exit status, stdout, stderr) of the command."""
    monkeypatch.setattr(sys, "argv", ["boxes", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.run(boxes.main)
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


def reference(model, image, tags):
    """Boxes, scores and labels by transformers' processor and forward, prompts as upstream's."""
    import torch
    import transformers
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    class Grey(Owlv2ImageProcessorPil):  # transformers 5 pads with black; the model knows grey
        def pad(self, image, constant_value=0.5):
            return super().pad(image, constant_value)

    processor = Grey(size={"height": 64, "width": 64})
    net = transformers.Owlv2ForObjectDetection.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    prompts = [f"a photo of {tag}" for tag in tags]
    text = tokenizer(prompts, padding="max_length", max_length=16, return_tensors="pt")
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = net(pixel_values=pixels, **text)
    (found,) = processor.post_process_object_detection(out, 0.2, [image.shape[:2]])
    return (found["boxes"].int().tolist(), found["scores"].tolist(),
            [tags[k] for k in found["labels"]])  # fmt: skip


def test_pixels_are_those_of_transformers(rng):
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    from launch.owlv2 import pixels

    processor = Owlv2ImageProcessorPil(size={"height": 48, "width": 48})
    for side in (31, 48, 130):
        image = rng.integers(0, 256, (side, side, 3), np.uint8)
        want = processor(images=image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(pixels(image, 48), want, atol=2e-5)
    image = np.full((10, 40, 3), 255, np.uint8)
    assert pixels(image, 40)[0, 30, 3] == pytest.approx((0.5 - 0.48145466) / 0.26862954)


def test_same_boxes_as_transformers_one_by_one(monkeypatch, capsys, tmp_path, model, pictures):
    """Pictures of different sizes with different tags in one batch."""
    captions = tmp_path / "captions.json"
    said = {"a": "A red star near two dogs.", "sub/b": "a cat", "c": "a traffic light, a dog, cats"}
    captions.write_text(json.dumps([{"id": k, "caption": v} for k, v in said.items()]))
    code, out, _ = run(
        monkeypatch, capsys, pictures, tmp_path / "out.json", "--model", model, "--tags",
        tmp_path / "tags.txt", "--captions", captions, "--batch-size", 3,
    )  # fmt: skip
    assert code == 0 and "3 pictures" in out and "as found" in out
    rows = {row["id"]: row for row in json.loads((tmp_path / "out.json").read_text())}
    assert list(rows) == ["a", "c", "sub/b"]
    tags = {"a": ["red star", "dog"], "sub/b": ["cat"], "c": ["traffic light", "cat", "dog"]}
    counts = []
    for name, file in (("a", "a.png"), ("sub/b", "sub/b.jpg"), ("c", "c.png")):
        image = np.asarray(Image.open(pictures / file).convert("RGB"))
        want, scores, labels = reference(model, image, tags[name])
        assert rows[name]["boxes"] == want and rows[name]["labels"] == labels
        np.testing.assert_allclose(rows[name]["scores"], scores, atol=1e-5)
        counts.append(len(want))
    assert min(counts) > 0 and max(counts) < 64  # the threshold decides
    file = read_box_file(tmp_path / "out.json")
    assert [len(file.lookup(n)[0].labels) for n in ("a", "sub/b.jpg", "c")] == counts
    assert not (tmp_path / "out.json.part").exists()


def test_resumes_where_it_was_stopped(monkeypatch, capsys, tmp_path, model, pictures):
    out, options = tmp_path / "o.json", ("--model", model, "--tags", tmp_path / "tags.txt")
    from launch.owlv2 import Detector

    detect, seen = Detector.detect, []

    def failing(self, batch, sides, tags):
        seen.append(len(sides))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return detect(self, batch, sides, tags)

    monkeypatch.setattr(Detector, "detect", failing)
    code, _, err = run(monkeypatch, capsys, pictures, out, *options, "--batch-size", 1)
    assert code == 130 and not out.exists()
    part = tmp_path / "o.json.part"
    assert len(part.read_text().splitlines()) == 2
    with part.open("a") as file:
        file.write('{"file": "torn')
    code, _, err = run(monkeypatch, capsys, pictures, out, *options, "--threshold", 0.3)
    assert code == 2 and "begun with another threshold" in err and err.count("\n") == 1
    others = shutil.copytree(pictures, tmp_path / "others")  # of the same names
    code, _, err = run(monkeypatch, capsys, others, out, *options)
    assert code == 2 and "begun with another PICTURES:" in err and err.count("\n") == 1
    code, _, err = run(monkeypatch, capsys, pictures, out, *options, "--batch-size", 2)
    assert code == 0 and "1 of 3 are done already" in err and seen == [1, 1, 2]
    monkeypatch.setattr(Detector, "detect", detect)
    run(monkeypatch, capsys, pictures, tmp_path / "whole.json", *options)
    both = [json.loads(p.read_text()) for p in (out, tmp_path / "whole.json")]
    for one, other in zip(*both, strict=True):
        assert one["boxes"] == other["boxes"] and one["labels"] == other["labels"]
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-5)
    code, _, err = run(monkeypatch, capsys, pictures, out, *options)
    assert code == 2 and "--overwrite" in err


def test_a_part_without_entries_takes_other_options(monkeypatch, capsys, tmp_path, model, pictures):
    out, empty = tmp_path / "o.json", tmp_path / "no-model"
    empty.mkdir()
    words = tmp_path / "words"
    words.write_text("dog\n")
    code, _, err = run(monkeypatch, capsys, pictures, out, "--model", empty, "--tags", words)
    assert code == 2 and "no-model" in err and (tmp_path / "o.json.part").exists()
    code, _, _ = run(monkeypatch, capsys, pictures, out, "--model", model, "--tags", words)
    assert code == 0 and out.exists()
    options = ("--model", model, "--tags", words, "--frames", 3, "--overwrite")
    code, _, err = run(monkeypatch, capsys, pictures, out, *options)
    assert code == 2 and "--frames is of videos: add --video" in err


def test_a_changed_plug_in_does_not_go_on(monkeypatch, capsys, tmp_path, model, pictures):
    monkeypatch.chdir(tmp_path)
    plugin = tmp_path / "changing_tagger.py"
    monkeypatch.setattr(boxes, "MAX_BAD", 0)  # so that the .part stays
    (pictures / "bad.png").write_bytes(b"no picture")
    for word, message in (("dog", "bad.png"), ("cat", "begun with another tagger:")):
        plugin.write_text(f"def tags(images):\n    return [['{word}']] * len(images)\n")
        monkeypatch.delitem(sys.modules, "changing_tagger", raising=False)
        importlib.invalidate_caches()
        options = ("--model", model, "--tagger", "changing_tagger:tags")
        code, _, err = run(monkeypatch, capsys, "in", "o.json", *options)
        assert code == 2 and message in err


def test_a_list_gives_the_ids(monkeypatch, capsys, tmp_path, model, pictures):
    rows = [
        {"question_id": 7, "image": "a.png"},
        {"question_id": 8, "image": "a.png"},
        {"id": "x", "image": "sub/b.jpg"},
        {"id": "y", "conversations": []},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    options = ("--model", model, "--tags", tmp_path / "tags.txt", "--list", tmp_path / "rows.jsonl")
    code, _, err = run(monkeypatch, capsys, pictures, tmp_path / "o.json", *options)
    assert code == 0 and "1 rows of" in err
    made = json.loads((tmp_path / "o.json").read_text())
    assert [row["id"] for row in made] == [7, 8, "x"]  # of the types that they had
    assert made[0]["boxes"] == made[1]["boxes"] != made[2]["boxes"]


def test_videos(monkeypatch, capsys, tmp_path, model, pictures, rng):
    folder = tmp_path / "films"
    (folder / "one").mkdir(parents=True)
    for i in range(12):
        frame = rng.integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(frame).save(folder / "one" / f"{i}.png")
    first = Image.fromarray(frame)
    first.save(folder / "two.gif", save_all=True, append_images=[first.rotate(180)])
    options = ("--model", model, "--tags", tmp_path / "tags.txt", "--video", "--batch-size", 3)
    code, out, err = run(monkeypatch, capsys, folder, tmp_path / "o.json", *options)
    assert code == 0 and "2 videos" in out
    assert "two.gif: has 2 frames, 8 are asked: some are repeated" in err
    made = {row["id"]: row["frames"] for row in json.loads((tmp_path / "o.json").read_text())}
    assert list(made) == ["one", "two"] and [len(made[k]) for k in made] == [8, 8]
    image = np.asarray(Image.open(folder / "one" / "1.png"))  # the second of linspace(0, 11, 8)
    assert made["one"][1]["boxes"] == reference(model, image, [t.lower() for t in TAGS])[0]
    assert len(read_box_file(tmp_path / "o.json").lookup("two.gif")) == 8


def test_unreadable_pictures_are_left_out(monkeypatch, capsys, tmp_path, model, pictures):
    (pictures / "bad.png").write_bytes(b"\x89PNG no picture")
    options = ("--model", model, "--tags", tmp_path / "tags.txt")
    code, _, err = run(monkeypatch, capsys, pictures, tmp_path / "o.json", *options)
    assert code == 2 and "bad.png" in err and "1 of 4 cannot be read" in err
    monkeypatch.setattr(boxes, "MAX_BAD", 0.5)
    code, out, err = run(monkeypatch, capsys, pictures, tmp_path / "o.json", *options)
    assert code == 0 and "left out:" in err and "3 pictures" in out and "3 of 4 are done" in err
    assert len(json.loads((tmp_path / "o.json").read_text())) == 3


def test_a_picture_without_tags_is_asked_for_anything(model, rng):
    """Upstream's single prompt "a photo of "."""
    from launch.owlv2 import Detector

    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    (found,) = Detector(model, "cpu")([image], [[]])
    want, _, labels = reference(model, image, [""])
    assert found["boxes"] == want and set(labels) <= {""} and len(want) > 0


def test_histogram(monkeypatch, capsys, tmp_path):
    def entry(name, count, label=lambda k: f"t{k}"):
        boxes = [[20 * k, 0, 20 * k + 15, 15] for k in range(count)]
        return {"id": name, "boxes": boxes, "scores": [0.5] * count,
                "labels": [label(k) for k in range(count)]}  # fmt: skip

    rows = [entry("a", 0), entry("b", 1), entry("c", 10), entry("d", 11),
            entry("e", 150, lambda k: f"t{k % 4}")]  # fmt: skip
    rows.append({"id": "f", "boxes": [[0, 0, 9, 9]] * 30, "scores": [0.5] * 30,
                 "labels": ["x"] * 30})  # fmt: skip
    (tmp_path / "b.json").write_text(json.dumps(rows))
    code, out, _ = run(monkeypatch, capsys, "--histogram", tmp_path / "b.json")
    table = {line[:9].strip(): line[9:].split() for line in out.splitlines()}
    assert code == 0
    assert table["0"] == ["1", "(16.7%)", "1", "(16.7%)"]
    assert table["1-10"] == ["2", "(33.3%)", "3", "(50.0%)"]  # thirty on one place become one
    assert table["11-20"] == ["1", "(16.7%)", "1", "(16.7%)"]
    assert table["21-30"] == ["1", "(16.7%)", "0", "(0.0%)"]
    assert table["71-80"][2] == "1" and table["over 100"][0] == "1"  # 150 of 4 labels: 80 stay
    assert table["most"] == ["150", "80"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "nowhere"}, "no such folder"),
        ({"--tags": "nowhere.txt"}, "No such file"),
        ({"--tags": None}, "say what to look for"),
        ({"--captions": "nowhere.json"}, "no such file"),
        ({"--tagger": "nothing:f"}, "No module named"),
        ({"--tagger": "nothing"}, "MODULE:FUNCTION"),
        ({"--threshold": "1.5"}, "--threshold 1.5"),
        ({"--batch-size": "0"}, "at least 1"),
        ({"--device": "nonsense"}, "--device nonsense"),
        ({"--list": "nowhere.jsonl"}, "no such file"),
        ({"--video": ""}, "are asked: some"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, model, pictures, change, message):
    options = {"--model": model, "--tags": tmp_path / "tags.txt"} | change
    given = [x for k, v in options.items() if v is not None for x in (k, v) if x != ""]
    code, _, err = run(monkeypatch, capsys, pictures, tmp_path / "o.json", *given)
    if "--video" in change:  # a folder with a picture in it is a video of one frame
        assert code == 0 and message in err
    else:
        assert code == 2 and message in err and err.count("\n") == 1


def test_wrong_folders(monkeypatch, capsys, tmp_path, model, pictures):
    options = ("--model", model, "--tags", tmp_path / "tags.txt")
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "none", "no such folder"),
                            (tmp_path / "empty", "holds no picture")):  # fmt: skip
        code, _, err = run(monkeypatch, capsys, folder, tmp_path / "o.json", *options)
        assert code == 2 and message in err
    Image.new("RGB", (9, 9)).save(pictures / "a.jpg")
    code, _, err = run(monkeypatch, capsys, pictures, tmp_path / "o.json", *options)
    assert code == 2 and "a.jpg and a.png would have one id" in err
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    (pictures / "a.jpg").unlink()
    code, _, err = run(monkeypatch, capsys, pictures, tmp_path / "o.json",
                       "--model", tmp_path / "clip", *options[2:])  # fmt: skip
    assert code == 2 and "'clip', expected owlv2" in err
    (tmp_path / "o.json.part").write_text("[1]\n")
    code, _, err = run(monkeypatch, capsys, pictures, tmp_path / "o.json", *options)
    assert code == 2 and "not what launch.boxes left" in err


def test_two_files_of_one_id(tmp_path, pictures):
    rows = [{"id": 1, "image": "a.png"}, {"id": "1", "image": "c.png"}]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    from mg_jax.errors import UserError

    with pytest.raises(UserError, match="id 1 has two files"):
        box_files.listing(pictures, str(tmp_path / "r.json"), False)
