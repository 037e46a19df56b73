"""Which examples are held out: the same whatever form the data are in."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mg_jax.data import build
from mg_jax.data.sources import open_source
from mg_jax.data.sources.split import parts, split_of
from mg_jax.data.write import (
    write_coco,
    write_grit,
    write_jsonl,
    write_llava,
    write_sa1b,
    write_voc,
)
from mg_jax.errors import UserError
from mg_jax.example import Example, Turn
from tests.data.sources.boxed_scenes import scenes


def captioned():
    return [
        replace(e, regions=e.objects, captions=("<p>it</p><r:0>",)) for e in scenes(12) if e.objects
    ]


FORMS = {
    "coco": lambda folder: "coco:{},{}".format(*write_coco(scenes(12), folder)),
    "voc": lambda folder: f"voc:{write_voc(scenes(12), folder)}",
    "sa1b": lambda folder: f"sa1b:{write_sa1b(scenes(12), folder)}",
    "jsonl": lambda folder: f"jsonl:{write_jsonl(scenes(12), folder)}",
    "grit": lambda folder: f"grit:{write_grit(captioned(), folder)}",
    "llava": lambda folder: "llava:{},{}".format(
        *write_llava([replace(e, turns=(Turn("Hi", "Ho"),)) for e in scenes(12)], folder)
    ),
}  # fmt: skip


@pytest.mark.parametrize("images", ["embed", "copy", "keep"])
@pytest.mark.parametrize("form", FORMS)
def test_shards_hold_out_the_same_pictures(form, images, tmp_path):
    spec = FORMS[form](tmp_path / "files")
    job, source = build.prepare(spec, tmp_path / "shards", images=images)
    build.run(job, source)
    build.finish(job, source)
    found = open_source(f"shards:{tmp_path / 'shards'}")
    assert list(parts(found)) == list(parts(source))
    assert set(parts(source)) == {"train", "heldout"}


def test_a_jsonl_file_that_names_the_first_file_holds_out_the_same(tmp_path):
    coco = open_source(FORMS["coco"](tmp_path / "coco"))
    rows = [replace(coco[i], id=f"renamed-{i}") for i in range(len(coco))]
    again = open_source(f"jsonl:{write_jsonl(rows, tmp_path / 'jsonl')}")
    assert list(parts(again)) == list(parts(coco))


def test_all_conversations_of_a_video_are_in_one_part(tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.new("RGB", (8, 8)).save(frames / "0.png")
    rows = [
        Example(None, 0, 0, turns=(Turn(f"Q{n}", "A"),), id=f"v{n % 4}", video=str(frames))
        for n in range(40)
    ]
    source = open_source("llava:{},{}".format(*write_llava(rows, tmp_path / "files")))
    by_video: dict[str, set[str]] = {}
    for i, part in enumerate(parts(source)):
        by_video.setdefault(source[i].video, set()).add(part)
    assert len(by_video) == 4 and all(len(found) == 1 for found in by_video.values())


def test_a_picture_without_any_name_goes_by_its_id():
    source = open_source("scenes:seed=3,n=4,tasks=none")
    assert list(parts(source)) == [split_of(source[i].id) for i in range(4)]


def test_videos_that_are_no_files_are_not_put_into_shards(tmp_path):
    example = Example(None, 9, 9, id="v", source="moving", video=lambda n: np.zeros((n, 9, 9, 3)))
    job, source = build.prepare("scenes:seed=3,n=1", tmp_path / "shards")
    source.__class__ = type("Moving", (type(source),), {"__getitem__": lambda self, i: example})
    with pytest.raises(UserError, match="data moving: its videos are no files"):
        build.run(job, source)


def test_editions_of_coco_hold_out_the_same_photos():
    class Named(list):
        name = "named"

        def file_name(self, i):
            return self[i]

    numbers = [f"{n:012d}" for n in range(60)]
    names = [Named(f"{start}{n}.jpg" for n in numbers) for start in ("", "COCO_train2014_")]
    assert list(parts(names[0])) == list(parts(names[1]))
