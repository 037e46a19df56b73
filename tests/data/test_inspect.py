"""What is said of a data set before training, and the split by hash."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mg_jax.data.inspect import inspect, sample_sheet, spellings
from mg_jax.data.sources import open_source
from mg_jax.data.sources.split import parts
from mg_jax.data.sources.voc import split_of
from mg_jax.data.text_report import rendered, text_report
from mg_jax.data.write import write_coco, write_jsonl, write_voc, write_yolo
from mg_jax.errors import UserError
from mg_jax.example import Region


def scenes(n=12, **options):
    more = "".join(f",{k}={v}" for k, v in options.items())
    source = open_source(f"scenes:seed=5,n={n},size=96x64{more}")
    return [replace(source[i], turns=() if not options else source[i].turns) for i in range(n)]


def picture(path, width=200, height=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), "grey").save(path)


def coco(folder, boxes, names=("cat",), count=5, size=(200, 100)):
    """count pictures of one size, each with all of `boxes` (bbox, category)."""
    images = [
        {"id": n, "file_name": f"{n}.png", "width": size[0], "height": size[1]}
        for n in range(count)
    ]
    for row in images:
        picture(folder / "images" / row["file_name"], *size)
    annotations = [
        {"id": 100 * n + k, "image_id": n, "bbox": list(box), "category_id": label, "iscrowd": 0}
        for n in range(count) for k, (box, label) in enumerate(boxes)
    ]  # fmt: skip
    categories = [{"id": k, "name": name} for k, name in enumerate(names)]
    file = folder / "a.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    return f"coco:{file},{folder / 'images'}"


def jsonl(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{folder / 'a.jsonl'}"


# -- split -----------------------------------------------------------------------------------------


def test_parts_do_not_overlap_and_are_those_of_the_file_name(tmp_path):
    write_voc(scenes(40), tmp_path / "v")
    spec = f"voc:{tmp_path / 'v'}"
    whole, train, held = (open_source(spec + more) for more in ("", ",part=train", ",part=heldout"))
    assert len(train) + len(held) == len(whole) == 40 and len(held) > 0
    assert {split_of(train[i].meta["image_id"]) for i in range(len(train))} == {"train"}
    assert {split_of(held[i].meta["image_id"]) for i in range(len(held))} == {"heldout"}
    assert train.frequency == whole.frequency and train.exhaustive
    assert "train: " in train.summary() and f"{len(train)} examples" in train.summary()


@pytest.mark.parametrize("kind", ["coco", "yolo", "jsonl"])
def test_a_picture_falls_into_the_same_part_whatever_the_format(kind, tmp_path):
    examples = scenes(20)
    write = {"coco": write_coco, "yolo": write_yolo, "jsonl": write_jsonl}[kind]
    written = write(examples, tmp_path / kind)
    spec = {
        "coco": f"coco:{tmp_path / 'coco' / 'annotations.json'},{tmp_path / 'coco' / 'images'}",
        "yolo": f"yolo:{tmp_path / 'yolo'}",
        "jsonl": f"jsonl:{written}",
    }[kind]
    source = open_source(spec)
    stems = [source[i].image.rpartition("/")[2].rpartition(".")[0] for i in range(len(source))]
    assert list(parts(source)) == [split_of(s) for s in stems] and len(set(parts(source))) == 2


def test_wrong_parts_are_named(tmp_path):
    spec = coco(tmp_path, [((10, 10, 50, 50), 0)], count=1)
    with pytest.raises(UserError, match="part=test: choose train or heldout"):
        open_source(f"{spec},part=test")
    only = split_of("0")
    other = "train" if only == "heldout" else "heldout"
    with pytest.raises(UserError, match=f"part={other} holds none of its 1 examples"):
        open_source(f"{spec},part={other}")
    with pytest.raises(UserError, match="part is for data sets of files"):
        open_source("scenes:n=3,part=train")


# -- numbers and warnings --------------------------------------------------------------------------


def test_numbers_are_those_of_the_annotations(tmp_path):
    boxes = [((10, 10, 40, 10), 0), ((10, 30, 40, 10), 0), ((100, 20, 80, 80), 1)]
    found = inspect(open_source(coco(tmp_path, boxes, ("cat", "dog"), count=10)))
    assert (found.examples, found.boxes, found.empty, found.crowd) == (10, 30, 0, 0)
    assert found.classes == {"cat": 20, "dog": 10} and found.pictures_of == {"cat": 10, "dog": 10}
    assert found.boxes_per_picture["median"] == 3 and found.width["max"] == 200
    assert found.box_side["min"] == pytest.approx(20, abs=1e-2)
    assert found.box_side["max"] == pytest.approx(80, abs=1e-2)
    assert found.parts["train"] + found.parts["heldout"] == 10 and found.decoded == 10
    assert not found.warnings() and not found.refusal()
    assert json.loads(json.dumps(found.as_dict()))["boxes"] == 30
    assert "class cat: 20 boxes in 10 pictures" in "\n".join(found.lines())


def test_large_sets_are_sampled_evenly(tmp_path):
    found = inspect(open_source(coco(tmp_path, [((10, 10, 40, 10), 0)], count=10)), most=4)
    assert (found.examples, found.examined, found.boxes) == (10, 4, 4)
    assert "an even sample of 4" in found.lines()[0]


def test_odd_boxes_are_counted(tmp_path):
    boxes = [((10, 10, 40, 10), 0), ((10, 10, 40, 10), 0), ((50, 50, 1, 1), 1), ((5, 5, 9, 9), 2)]
    found = inspect(open_source(coco(tmp_path, boxes, ("Traffic_light", "traffic lights", "cow"))))
    assert found.duplicated == 5 and found.tiny == 5
    text = "\n".join(found.lines())
    assert "5 boxes stand twice" in text and "5 boxes are tiny" in text
    spelled = "one class spelled in several ways? 'Traffic_light' (10 boxes), 'traffic lights' (5"
    assert spelled in text and not found.refusal()


def test_spellings():
    same = [["Stop sign", "stop_sign"], ["berries", "berry"], ["bus", "buses"], ["cup", "cups"]]
    labels = [label for group in same for label in group]
    assert sorted(spellings([*labels, "glass", "gas", "x"])) == sorted(same)


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    spec = coco(tmp_path, [((10, 10, 40, 10), 0)], count=5)
    (tmp_path / "images" / "3.png").write_bytes(b"no picture")
    found = inspect(open_source(f"{spec},max_bad=0.2"))
    assert len(found.unreadable) == 1 and "3.png" in found.unreadable[0] and not found.refusal()
    refused = inspect(open_source(spec)).refusal()
    assert "1 of 5 pictures cannot be read, more than max_bad=0.05 allows; the first: " in refused
    assert "3.png" in refused
    for file in (tmp_path / "images").iterdir():
        file.write_bytes(b"no picture")
    assert "no picture can be read; the first: " in inspect(open_source(spec)).refusal()


def test_too_many_malformed_records_are_refused(tmp_path):
    picture(tmp_path / "0.png")
    objects = [{"box": [10, 10, 50, 50], "label": "a"}]
    rows = [{"image": f"{n % 12}.png", "objects": objects} for n in range(13)]  # 0 and 12 are there
    spec = jsonl(tmp_path, rows)
    found = inspect(open_source(spec))
    assert (found.malformed, found.misread) == (11, 11)
    wanted = "data a: 11 of 13 records are malformed, more than max_bad=0.05 allows; the first: "
    assert found.refusal().startswith(f"{wanted}{tmp_path / 'a.jsonl'}:2: {tmp_path / '1.png'}: no")
    assert not inspect(open_source(f"{spec},max_bad=0.9")).refusal()
    assert not inspect(open_source(f"{spec},max_bad=0.7"), most=10).refusal()  # 8 of 10, by chance


def test_boxes_without_a_label_are_told(tmp_path):
    spec = coco(tmp_path, [((10, 10, 40, 10), 5), ((10, 30, 40, 10), 5)], ())
    assert any("no box has a label" in line for line in inspect(open_source(spec)).warnings())
    some = [{"image": "1.png", "objects": [{"box": [1, 1, 9, 9], "label": label}]}
            for label in ("a", None)]  # fmt: skip
    picture(tmp_path / "j" / "1.png")
    found = inspect(open_source(jsonl(tmp_path / "j", some)))
    assert "1 boxes have no label" in found.warnings()


@pytest.mark.parametrize(
    "boxes,said",
    [
        (
            [[5000, 5000, 6000, 6000]] * 2,
            "data a: 20 of its 20 boxes have no area inside their picture, the boxes reach to "
            "x 6000 and y 6000; expected x0, y0, x1, y1 in pixels",
        ),
        ([[0.1, 0.2, 0.5, 0.6], ["a", 1, 2, 3]], "they look like shares of 1"),
        ([[0.1, 0.2, 0.5, 0.6], [0.3, 0.3, 0.9, 0.8]], "they look like shares of 1"),
        ([[300, 10, 340, 60], [250, 20, 420, 80]], "they look like y before x"),
    ],
)
def test_boxes_of_another_space_are_refused(boxes, said, tmp_path):
    picture(tmp_path / "1.png", 100, 500)
    rows = [
        {"image": "1.png", "objects": [{"box": box, "label": "a"} for box in boxes]}
        for _ in range(10)
    ]
    assert said in inspect(open_source(jsonl(tmp_path, rows))).refusal()


def test_sets_with_nothing_to_train_on_are_refused(tmp_path):
    picture(tmp_path / "1.png")
    spec = jsonl(tmp_path, [{"image": "1.png"}] * 3)
    assert "has no boxes and no text" in inspect(open_source(spec)).refusal()
    empty = inspect(open_source(coco(tmp_path / "c", [], count=3)))
    assert empty.refusal() == (
        "data a: holds no example to train on: 3 pictures without boxes"
    )  # fmt: skip


def test_text_alone_is_enough(tmp_path):
    picture(tmp_path / "1.png")
    turns = [{"user": "What?", "assistant": "A grey picture."}]
    rows = [{"image": "1.png", "id": str(n), "turns": turns} for n in range(3)]
    found = inspect(open_source(jsonl(tmp_path, rows)))
    assert found.text == {"turns": 3} and found.empty == 3
    assert found.refusal() == ""


# -- drawn, and text -------------------------------------------------------------------------------


def test_sheet_shows_the_boxes(tmp_path):
    spec = coco(tmp_path, [((50, 25, 100, 50), 0)], count=6)
    (tmp_path / "images" / "0.png").write_bytes(b"no picture")
    sheet = sample_sheet(open_source(spec))
    assert sheet.size == (1440, 720)  # five pictures in rows of four
    away = np.abs(np.asarray(sheet).reshape(-1, 3).astype(int) - (230, 57, 70)).max(1)
    assert (away < 20).sum() > 500  # the first colour of draw.py, scaled down
    assert sample_sheet(open_source(jsonl(tmp_path / "j", [{"image": "no.png"}]))) is None


@pytest.fixture(scope="module")
def config():
    from configs import groma

    return groma.get_config("stage=instruction,size=tiny")


@pytest.fixture(scope="module")
def cfg(config):
    from mg_jax.config import build
    from mg_jax.models.groma import GromaConfig

    return build(GromaConfig, config.model.to_dict())


def test_text_report_of_turns_and_of_labels(tmp_path, config, cfg):
    spec = write_jsonl(scenes(6, tasks="rec"), tmp_path / "j")
    report = text_report(open_source(f"jsonl:{spec}"), config, cfg)
    assert report.examined == 6 and not report.problems and not report.untrained
    assert 0.02 < report.trained < 0.7 and report.limit == config.codec.text_tokens
    assert report.tokens["min"] > 20 and report.too_long == 0
    head, _, answer = report.example.partition("«")
    assert "USER: " in head and answer.endswith("»") and report.example.count("<image>") == 1
    assert report.example.count("<region>") == 1

    labelled = open_source(coco(tmp_path / "c", [((10, 10, 40, 10), 0)], count=4))
    report = text_report(labelled, config, cfg)
    assert report.refused == 0 and "cat" in report.example.lower()
    assert any(line.startswith("  trained on: ") for line in report.lines())


def test_text_report_counts_long_and_impossible_ones(tmp_path, config, cfg):
    picture(tmp_path / "1.png")
    long = {"user": "What?", "assistant": "a very long answer " * 200}
    rows = [{"image": "1.png", "turns": [long]}, {"image": "1.png"},
            {"image": "1.png", "turns": [{"user": "What?"}]},
            {"image": "1.png", "turns": [{"user": "What?", "assistant": ""}]}]  # fmt: skip
    config = config.copy_and_resolve_references()
    config.codec.template = "default"  # no end of the answer to train on
    report = text_report(open_source(jsonl(tmp_path, rows)), config, cfg)
    assert (report.too_long, report.refused, report.untrained) == (1, 1, 1)
    assert "turn 0 has no answer" in report.problems[0]
    text = "\n".join(report.lines())
    assert "1 conversations are longer than the limit" in text
    assert "1 conversations have no token to train on" in text


def test_rendered_marks_what_is_trained_on(config, cfg):
    from mg_jax.data.pipeline import make_codec
    from mg_jax.example import Example, Turn

    codec = make_codec(config, cfg)
    region = Region.from_box((0.1, 0.1, 0.5, 0.5))
    turns = (Turn("Where is <p>it</p>?", "<r:0>"), Turn("And this, <r:0>?", "A dog."))
    record = codec.encode(Example(None, 9, 9, (region,), turns))
    text = rendered(codec, record["tokens"], record["loss_mask"])
    assert text.count("«") == text.count("»") == 2
    assert "«<roi> <ground_box> </roi> </s>»" in text and "«A dog.</s>»" in text
