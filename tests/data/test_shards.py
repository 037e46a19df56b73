"""Shards: examples to bytes and back, the folder, and reading it through the pipeline."""

import dataclasses
import io
import itertools
import json
import multiprocessing
import pickle
import shutil
import threading
from pathlib import Path

import msgpack
import numpy as np
import pytest
from PIL import Image

from mg_jax.data import build, records, shards
from mg_jax.data.batch import batches, stack
from mg_jax.data.sources import SceneSource, Source, open_source
from mg_jax.data.sources.shards import ShardSource
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Expression, Question, Region, Turn

SPEC = "scenes:seed=5,n=23,size=64"
PHOTO = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)


def made(spec, folder, **options):
    job, source = build.prepare(spec, folder, **options)
    build.run(job, source)
    return build.finish(job, source)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The scenes of SPEC in four shards."""
    out = tmp_path_factory.mktemp("shards") / "out"
    made(SPEC, out, shards=4)
    return out


def without_picture(example):
    return dataclasses.replace(example, image=None)


def full_example():
    """An example in which no field is empty."""
    mask = np.zeros((30, 40), bool)
    mask[3:9, 5:20] = True
    rle = Region.from_mask(mask).mask
    regions = (
        Region.from_box((0.1, 0.2, 0.30000000001, 0.4), label="café ☕", score=0.25),
        Region.from_point(0.3, 0.7),
        Region.from_polygon([(0, 0), (0.5, 0), (1 / 3, 1)], label="a kite"),
        Region.from_mask(mask, score=1.0),
        Region.from_mask({"size": [2, 2], "counts": b"13"}),
        Region("mask", (0.0, 0.0, 1.0, 1.0), mask={**rle, "counts": "0l3"}),
    )
    return Example(
        PHOTO,
        40,
        30,
        regions=regions,
        turns=(
            Turn("Where is <p>it</p>?", "<r:0>", (0, 2)),
            Turn("And \ud800?", None),
            Turn("x", "", ()),
            Turn("Is it left of it?", "No.", (0, 2), (2,)),
        ),
        id="7/ü",
        source="made up",
        objects=(Region("box", (0.25, 0.5, 0.75, 1.0), label="dog"), Region.from_box((0, 0, 1, 1))),
        crowd=(Region("box", (float(np.float32(0.1)), 0.0, 1.0, 1.0)),),
        absent=("cat",),
        captions=("<p>A dog</p><r:0> sleeps.", ""),
        expressions=(Expression("the dog", (0, 3)), Expression("a unicorn", ())),
        questions=(Question("How many?", ("2", "two")), Question("a", ("b",), ("b", "c"), "hint")),
        relations=((0, "left of", 1),),
        video="/clips/a.mp4",
        meta={"n": 1, "scene": (5, (6, 7.5)), "list": [None, True, b"\0"], "f": np.float32(0.5),
              3: {"k": np.int64(2)}, "big": 2**63},
    )  # fmt: skip


def test_every_field_comes_back_exactly():
    example = full_example()
    assert all(getattr(example, f.name) for f in dataclasses.fields(example) if f.name != "image")
    data = records.encode(example, b"bytes")
    found = records.decode(data, Path("/x"), "a")
    assert found.image.data == b"bytes"
    expected = dataclasses.replace(example, meta=example.meta | {"f": 0.5, 3: {"k": 2}})
    assert without_picture(found) == without_picture(expected)
    assert isinstance(found.meta["scene"], tuple) and isinstance(found.meta["scene"][1], tuple)
    assert records.encode(example, b"bytes") == data
    assert records.decode(records.encode(example, "a.jpg"), Path("/x"), "a").image == "/x/a.jpg"
    assert records.decode(records.encode(example, "/y/a.jpg"), Path("/x"), "").image == "/y/a.jpg"


def test_no_field_is_forgotten():
    """What `full_example` fills and `records` writes: a new field must be added to both."""
    known = {
        Example: "image width height regions turns id source objects absent crowd captions "
        "expressions questions relations video meta",
        Region: "kind box points mask label score",
        Turn: "user assistant about landmarks",
        Expression: "text regions",
        Question: "text answers choices hint",
    }
    for kind, names in known.items():
        assert {f.name for f in dataclasses.fields(kind)} == set(names.split()), kind


def test_an_empty_example_takes_few_bytes():
    data = records.encode(Example(None, 0, 0), None)
    assert len(data) < 20
    assert records.decode(data, Path(), "") == Example(None, 0, 0)


def test_boxes_take_half_the_bytes_where_float32_is_exact():
    single = tuple(float(np.float32(v)) for v in (0.1, 0.2, 0.3, 0.4))
    for box, size in ((single, 4 * 4), ((0.1, 0.2, 0.3, 0.4), 4 * 8)):
        example = Example(None, 0, 0, objects=tuple(Region("box", box) for _ in range(100)))
        data = records.encode(example, None)
        assert 100 * size < len(data) < 100 * size + 60
        assert records.decode(data, Path(), "").objects == example.objects


@pytest.mark.parametrize("value", [{1, 2}, np.zeros(2), Path("a"), 2**64, object()])
def test_meta_that_cannot_be_written_is_a_bad_record(value):
    with pytest.raises(BadRecord, match="example 'e': cannot be written as a record"):
        records.encode(Example(None, 1, 1, id="e", meta={"x": value}), None)


NO_RECORDS = (
    b"", b"\xc1", b"\x93\1\2\3", b"\x01x", msgpack.packb({"id": "x"}),
    msgpack.packb({"size": [1, 1], "objects": 4}),
    msgpack.packb({"size": [1, 1], "turns": [["a", "b", 3]]}),
)  # fmt: skip


@pytest.mark.parametrize("data", NO_RECORDS)
def test_bytes_that_are_no_record(data):
    with pytest.raises(BadRecord, match="here: is no record of version 1"):
        records.decode(data, Path(), "here")


def test_scenes_come_back_with_their_pixels(folder):
    source, found = open_source(SPEC), open_source(f"shards:{folder}")
    assert len(found) == len(source) == 23
    for i in (0, 5, 6, 22):
        a, b = source[i], found[i]
        assert without_picture(a) == without_picture(b)
        np.testing.assert_array_equal(a.pixels(), b.pixels())
    assert (found.name, found.head) == ("scenes", "coco")
    assert found.summary() == "scenes: 23 examples"
    for wrong in (-1, 23):
        with pytest.raises(IndexError):
            found[wrong]
    other = open_source(f"shards:{folder},name=mine,head=sa1b,tasks=rec")
    assert (other.name, other.head, dict(other.tasks)) == ("mine", "sa1b", {"rec": 1.0})


def test_one_example_a_shard_and_shards_of_shards(folder, tmp_path):
    made(f"shards:{folder}", tmp_path / "again", shards=23)
    first, again = ShardSource(folder), ShardSource(tmp_path / "again")
    assert len(shards.read_manifest(tmp_path / "again")["files"]) == 23
    for i in range(23):
        a, b = first[i], again[i]
        assert a.image.data == b.image.data and without_picture(a) == without_picture(b)


def record(example, rng):
    return {"number": np.int64(example.id.split("-")[-1]), "drawn": rng.random()}


def read(sources, count=None, batch_size=4, **options):
    """The numbers of the examples of each batch."""
    it = batches(sources, None, record, stack, batch_size, 3, **options)
    found = list(it) if count is None else [next(it) for _ in range(count)]
    it.close()
    return [b["number"].tolist() for b in found]


def flat(found):
    return list(itertools.chain(*found))


def test_processes_never_read_the_same(folder):
    source = ShardSource(folder)
    whole = read([source], batch_size=1, epochs=1)
    assert sorted(flat(whole)) == list(range(23)) != flat(whole)
    assert whole == read([open_source(SPEC)], batch_size=1, epochs=1)
    for processes in (2, 4):
        parts = [
            flat(read([source], epochs=1, process_count=processes, process_index=p))
            for p in range(processes)
        ]
        every = flat(parts)
        assert len(every) == len(set(every)) == 20  # the last batch would not be full
        assert {len(part) for part in parts} == {20 // processes}


def test_mixture_single_source_and_resumption(folder):
    sources = [ShardSource(folder), SceneSource(seed=9, n=40, size=32)]
    single = read(sources, 8, single_source=True)
    assert {max(batch) > 22 for batch in single} == {False, True}
    weighted = flat(read(sources, 15, weights=[3, 1]))
    assert len(set(weighted)) > 23
    whole = read(sources, 9)
    it = batches(sources, None, record, stack, 4, 3)
    next(it)
    it.restore(5)
    assert [next(it)["number"].tolist() for _ in range(4)] == whole[5:]
    assert it.state == 9


def test_worker_processes_read_the_same(folder):
    source = ShardSource(folder)
    assert source[3].id  # open files do not travel
    expected = read([source], 3)
    assert read([source], 3, workers=1) == expected
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3] == source[3]


def pixel_sum(source, i, queue):
    queue.put(int(source[i].pixels().sum()))


def test_forks_and_threads(folder):
    source = ShardSource(folder)
    expected = [int(source[i].pixels().sum()) for i in range(23)]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=pixel_sum, args=(source, 7, queue))
    child.start()
    assert queue.get(timeout=20) == expected[7]
    child.join()
    wrong = []

    def look(seed):
        for i in np.random.default_rng(seed).integers(0, 23, 40).tolist():
            if int(source[i].pixels().sum()) != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_few_files_stay_open(folder, monkeypatch):
    monkeypatch.setattr("mg_jax.data.sources.shards._OPEN", 2)
    source = ShardSource(folder)
    assert [source[i].id for i in range(23)] == [f"scenes-5-{i}" for i in range(23)]
    assert len(source._readers) == 2


def photos(folder, count=6):
    """A jsonl data set of photos in several formats; its spec."""
    folder.mkdir()
    rows = []
    for n in range(count):
        name = f"{n}.{('jpg', 'png', 'webp')[n % 3]}"
        image = Image.fromarray(np.roll(PHOTO, n, 1))
        exif = Image.Exif()
        exif[0x0112] = 6 if n == 3 else 1
        image.save(folder / name, exif=exif)
        box = {"box": [0, 0, 10, 15], "label": f"thing {n}"}
        rows.append({"image": name, "id": str(n), "objects": [box]})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{folder / 'data.jsonl'}"


@pytest.mark.parametrize("images", ["embed", "copy", "keep"])
def test_pictures_embedded_copied_or_kept(images, tmp_path):
    spec, out = photos(tmp_path / "in"), tmp_path / "out"
    made(spec, out, shards=2, images=images)
    source = open_source(spec)
    moved = tmp_path / "moved"
    shutil.move(out, moved)
    found = ShardSource(moved)
    for i in range(6):
        a, b = source[i], found[i]
        np.testing.assert_array_equal(a.pixels(), b.pixels())
        assert (b.width, b.height) == ((30, 40) if i == 3 else (40, 30))
        assert a.objects == b.objects
        data = b.image.data if images == "embed" else Path(b.image).read_bytes()
        assert data == Path(a.image).read_bytes()
    files = sorted(str(p.relative_to(moved)) for p in moved.rglob("*") if p.is_file())
    copied = ["images/00000/00000000.jpg", "images/00000/00000001.png",
              "images/00000/00000002.webp", "images/00001/00000003.jpg",
              "images/00001/00000004.png", "images/00001/00000005.webp"]  # fmt: skip
    shard = ["data-00000-of-00002.array_record", "data-00001-of-00002.array_record"]
    assert files == [*shard, "dataset.json", *(copied if images == "copy" else [])]
    shards.verify(moved)
    if images == "copy":
        (moved / copied[4]).write_bytes(b"other")
        with pytest.raises(UserError, match="images/00001 differs from its checksum"):
            shards.verify(moved)


def test_pictures_made_smaller(tmp_path):
    spec = photos(tmp_path / "in")
    made(spec, tmp_path / "out", resize=20)
    source, found = open_source(spec), ShardSource(tmp_path / "out")
    for i in range(6):
        example, kind = found[i], Image.open(io.BytesIO(found[i].image.data)).format
        assert (example.width, example.height) == ((15, 20) if i == 3 else (20, 15))
        assert example.pixels().shape == (example.height, example.width, 3)
        assert kind == ("PNG" if i % 3 == 1 else "JPEG")
        assert example.objects == source[i].objects  # shares of the picture do not change
    made(spec, tmp_path / "larger", resize=40)  # nothing to do: bytes as they were
    assert ShardSource(tmp_path / "larger")[0].image.data == Path(source[0].image).read_bytes()


def test_text_and_video_have_no_picture(tmp_path):
    class Mixed(Source):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            video = "clip.mp4" if i else ""
            return Example(None, 0, 0, turns=(Turn("a", "b"),), id=str(i), video=video)

    job = build.Job(str(tmp_path), "mixed", 2, "", 1, "embed", 0)
    source = Mixed("mixed")
    build.build_shard(job, source, 0)
    build.finish(job, source)
    text, film = ShardSource(tmp_path)[0], ShardSource(tmp_path)[1]
    assert text.image is None and text.video == "" and text.turns == (Turn("a", "b"),)
    assert Path(film.video).is_absolute() and film.video.endswith("clip.mp4")
    with pytest.raises(BadRecord, match="has no picture"):
        text.pixels()


def test_what_the_source_knows_is_handed_on(tmp_path):
    source = SceneSource(seed=1, n=8, size=32, tasks="none")
    from mg_jax.data.write import write_coco

    annotations, images = write_coco([source[i] for i in range(8)], tmp_path / "coco")
    spec = f"coco:{annotations},{images},tasks=rec*2+presence,head=sa1b,name=made"
    manifest = made(spec, tmp_path / "out")
    coco, found = open_source(spec), open_source(f"shards:{tmp_path / 'out'}")
    assert found.tasks == coco.tasks == {"rec": 2.0, "presence": 1.0}
    assert dict(found.frequency) == dict(coco.frequency) != {}
    assert (found.name, found.head) == ("made", "sa1b")
    assert found[2].absent == coco[2].absent
    assert manifest["spec"] == spec and manifest["version"] == records.VERSION


def test_damage_is_found(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shards.verify(copy)
    path = copy / "data-00002-of-00004.array_record"
    whole = path.read_bytes()
    at = whole.index(b"\x89PNG") + 200
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    with pytest.raises(UserError, match="data-00002-of-00004.array_record differs from its check"):
        shards.verify(copy)
    source = ShardSource(copy)
    bad = []
    for i in range(23):
        try:
            source[i]
        except BadRecord as e:
            bad.append(str(e))
    assert len(bad) == 1 and "data-00002-of-00004.array_record: record" in bad[0]
    path.write_bytes(whole[:1000])
    with pytest.raises(UserError, match="has 1000 bytes instead of"):
        ShardSource(copy)
    path.unlink()
    with pytest.raises(UserError, match="00002-of-00004.array_record: is missing"):
        ShardSource(copy)


def test_folders_that_do_not_open(folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_source(f"shards:{tmp_path / 'none'}")
    with pytest.raises(UserError, match="holds no dataset.json: make one with launch.build_data"):
        ShardSource(tmp_path)
    manifest = json.loads((folder / "dataset.json").read_text())
    for change, message in (
        ({"version": 2}, "shards of version 2, this is for version 1"),
        ({"format": "other"}, "describes no data set of shards"),
        ({"files": [{}]}, "is damaged"),
    ):
        (tmp_path / "dataset.json").write_text(json.dumps(manifest | change))
        with pytest.raises(UserError, match=message):
            ShardSource(tmp_path)
