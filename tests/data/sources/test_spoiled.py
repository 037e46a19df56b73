"""Whatever stands where in the files of a data set: nothing but the errors of the library."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mg_jax.data import write
from mg_jax.data.inspect import inspect
from mg_jax.data.sources import open_source
from mg_jax.errors import UserError
from tests.data.sources import asked, boxed_scenes, grounded_scenes

VALUES = (None, True, -1, 0, 0.5, 10**400, float("inf"), float("nan"), "", "x", [], {}, [None],
          [[1, 2]], {"a": 1}, "<r:9>", "\ud800", 1e300, [1, 2, 3, 4, 5, 6])  # fmt: skip


def boxed(writer, *options, **keys):
    return lambda folder: writer(boxed_scenes.scenes(3), folder, *options, **keys)


def grounded(writer, *options):
    return lambda folder: writer(grounded_scenes.scenes(3), folder, *options)


def questions(writer):
    return lambda folder: writer(asked.scenes(3), folder)


def ferret(folder):
    rows = [grounded_scenes.masked(e) for e in grounded_scenes.scenes(3)]
    return write.write_ferret_grit(rows, folder)


def dialogues(folder):
    rows = [replace(e, id=f"d{n}") for n, e in enumerate(grounded_scenes.scenes(3))]
    return write.write_llava(rows, folder)


# kind: how its files are written, and further options of its text
FILES = {
    "coco": (boxed(write.write_coco), "masks=keep"),
    "objects365": (boxed(write.write_objects365), "empty=keep"),
    "v3det": (boxed(write.write_v3det), "empty=keep"),
    "lvis": (boxed(write.write_lvis), "masks=keep"),
    "sa1b": (boxed(write.write_sa1b), ""),
    "jsonl": (lambda folder: write.write_jsonl(grounded_scenes.scenes(3), folder), ""),
    "refcoco": (lambda folder: write.write_refcoco(grounded_scenes.scenes(3), folder), ""),
    "rec_lines": (grounded(write.write_rec_lines), "per=picture"),
    "groma": (grounded(write.write_groma, "rec"), ""),
    "groma ": (grounded(write.write_groma, "regions"), "form=regions"),
    "groma  ": (grounded(write.write_groma, "flickr"), "form=flickr"),
    "groma_instruct": (grounded(write.write_groma_instruct), ""),
    "lvis_ground": (boxed(write.write_lvis_ground), ""),
    "vg": (grounded(write.write_vg), ""),
    "grit": (grounded(write.write_grit), ""),
    "grit_groma": (grounded(write.write_grit_groma), ""),
    "ferret_grit": (ferret, ""),
    "llava": (dialogues, "boxes=regions"),
    "docvqa": (questions(write.write_docvqa), ""),
    "dvqa": (questions(write.write_dvqa), ""),
    "textvqa": (questions(write.write_textvqa), ""),
    "vqav2": (questions(write.write_vqav2), ""),
    "gqa": (questions(write.write_gqa), "answer=full"),
    "ai2d": (questions(write.write_ai2d), "split=all,letters=draw"),
    "scienceqa": (questions(write.write_scienceqa), ""),
    "captions": (questions(write.write_coco_captions), ""),
    "textcaps": (questions(write.write_textcaps), ""),
}


def places(value, path=()):
    """The path of every value in JSON content."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in inner:
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from places(part, (*path, key))


def spoiled(content, path, value):
    """The content with a value exchanged."""
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return content


WORDS = (b"", b"x", b"nan", b"inf", b"-1", b"0", b"1e400", b"9" * 40, "é".encode(), b"[/EN#1/x",
         b"</object>", b'"', b"\xe9", b"\xff\xfe", b"\0")  # fmt: skip
# kind: how its files are written, their endings
TEXTS = {
    "voc": (lambda folder: write.write_voc(boxed_scenes.scenes(3), folder), (".xml",)),
    "yolo": (lambda folder: write.write_yolo(boxed_scenes.scenes(3), folder), (".txt", ".yaml")),
    "openimages": (boxed(write.write_openimages), (".csv",)),
    "flickr30k": (grounded(write.write_flickr30k), (".xml", ".txt")),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_no_word_breaks_a_reader(kind, tmp_path, rng):
    written, endings = TEXTS[kind]
    found = written(tmp_path)
    found = found if isinstance(found, tuple) else (found,)
    spec = f"{kind}:{','.join(map(str, found))},max_bad=1"
    assert len(open_source(spec))
    files = sorted(f for f in tmp_path.rglob("*") if f.suffix in endings)
    for _ in range(120):
        file = files[rng.integers(len(files))]
        text = file.read_bytes()
        words = list(re.finditer(rb"[^\s<>,/]+|[<>]|\n", text))
        spot = words[rng.integers(len(words))]
        word = WORDS[rng.integers(len(WORDS))]
        file.write_bytes(text[: spot.start()] + word + text[spot.end() :])
        read(spec, f"{file.name}: {word!a} for {spot[0]!a} at {spot.start()}")
        file.write_bytes(text)


# kind: how its files are written, a file among them that is a list, further options of its text
LISTS = {
    "yolo": (TEXTS["yolo"][0], "classes.txt", ""),
    "yolo ": (TEXTS["yolo"][0], "images/train.txt", ""),
    "voc": (TEXTS["voc"][0], "ImageSets/Main/train.txt", "split=train"),
    "flickr30k": (TEXTS["flickr30k"][0], "train.txt", "split=train"),
    "flickr30k ": (TEXTS["flickr30k"][0], "UNRELATED_CAPTIONS", "split=all"),
    "ai2d": (questions(write.write_ai2d), "ai2d_test_ids.csv", "split=train"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_in_another_encoding_is_named(kind, tmp_path):
    written, name, options = LISTS[kind]
    found = written(tmp_path / "d")
    found = found if isinstance(found, tuple) else (found,)
    for file in (tmp_path / "d").rglob("*.yaml"):  # names then stand in classes.txt
        file.unlink() if name == "classes.txt" else file.write_text(f"names: [a]\ntrain: {name}\n")
    path = Path(found[0]) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("Schlüssel 1\n".encode("latin-1"))
    text = ",".join([f"{kind.strip()}:{','.join(map(str, found))}", *filter(None, [options])])
    with pytest.raises(UserError, match=f"{path.name}: is no UTF-8: byte 4 is 0xfc: save it as"):
        open_source(text)


@pytest.mark.parametrize("declared", ["gb2312", "no-such-encoding"])
@pytest.mark.parametrize("kind", ["voc", "flickr30k"])
def test_an_xml_of_an_unknown_encoding_is_a_malformed_record(kind, declared, tmp_path):
    found = TEXTS[kind][0](tmp_path)
    found = found if isinstance(found, tuple) else (found,)
    file = sorted(tmp_path.rglob("*.xml"))[0]
    body = file.read_text(encoding="utf-8").partition("?>")[2] or file.read_text(encoding="utf-8")
    file.write_text(f'<?xml version="1.0" encoding="{declared}"?>{body}', encoding="utf-8")
    source = open_source(f"{kind}:{','.join(map(str, found))},max_bad=1")
    assert source.bad == 1 and f"{file.name}: no valid XML: " in source.problems[0]
    file.write_text(f'<?xml version="1.0" encoding="latin-1"?>{body}', encoding="latin-1")
    assert not open_source(f"{kind}:{','.join(map(str, found))}").bad


@pytest.mark.parametrize("kind", FILES)
def test_no_value_breaks_a_reader(kind, tmp_path, rng):
    written, options = FILES[kind]
    found = written(tmp_path)
    found = found if isinstance(found, tuple) else (found,)
    spec = ",".join([f"{kind.strip()}:{','.join(map(str, found))}", "max_bad=1",
                     *filter(None, [options])])  # fmt: skip
    whole = open_source(spec)
    assert len(whole) and whole[0]
    files = [f for f in tmp_path.rglob("*.json*") if f.is_file()]
    tried = 0
    for file in files:
        text = file.read_text(encoding="utf-8")
        lines = file.suffix == ".jsonl"
        content = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
        every = list(places(content))
        for k in rng.permutation(len(every))[: 160 // len(files) + 4]:
            value = VALUES[rng.integers(len(VALUES))]
            changed = spoiled(content, every[k], value)
            rows = changed if lines else [changed]
            file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
            tried += 1
            read(spec, f"{file.name} {every[k]} = {ascii(value)[:20]}")
        file.write_text(text, encoding="utf-8")
    assert tried > 40


def read(spec, where):
    """Open a data set and take all its examples; only the library's errors are let pass."""
    try:
        source = open_source(spec)
        assert not any("\n" in line for line in inspect(source, pictures=1).lines()), where
        for i in range(len(source)):
            try:
                check(source[i])
            except UserError as e:
                assert "\n" not in str(e), where
    except UserError as e:
        assert "\n" not in str(e), where
    except Exception as e:
        raise AssertionError(f"{where}: {type(e).__name__}: {e!a}") from e


def check(example):
    """What every Example keeps to."""
    assert example.width >= 0 and example.height >= 0
    assert example.image is None or isinstance(example.image, str | Path) or callable(example.image)
    for region in (*example.regions, *example.objects, *example.crowd):
        x0, y0, x1, y1 = region.box
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, region
        assert np.isfinite(region.box).all()
        assert region.label is None or isinstance(region.label, str), region
        assert region.score is None or np.isfinite(region.score), region
    numbers = [k for e in example.expressions for k in e.regions]
    numbers += [k for a, _, b in example.relations for k in (a, b)]
    assert all(0 <= k < len(example.regions) for k in numbers)
