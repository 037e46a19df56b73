"""From annotation files to conversations and batches: what is absent, options, the pipeline."""

import json
import pickle
import re
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from mg_jax.config import build
from mg_jax.data import pipeline
from mg_jax.data.sources import open_source
from mg_jax.data.write import write_coco, write_jsonl, write_voc
from mg_jax.errors import Unfit, UserError
from mg_jax.models.groma import GromaConfig, example_batch
from mg_jax.text import markup
from tests.train.micro import micro_config


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """ "annotations.json,images" of eight scenes, written as COCO."""
    source = open_source("scenes:seed=61,n=8,size=64,tasks=none")
    paths = write_coco([source[i] for i in range(8)], tmp_path_factory.mktemp("coco"))
    return "{},{}".format(*paths)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


def coco(tmp_path, *pictures):
    """The text of a COCO set; pictures: lists of (category, width of the box, crowd)."""
    names = {1: "dog", 2: "cat", 3: "bird", 4: "Dog ", 5: "stop_sign", 6: "Stop sign"}
    rows, notes = [], []
    for n, boxes in enumerate(pictures):
        Image.new("RGB", (20, 10)).save(tmp_path / f"{n}.png")
        rows.append({"id": n, "file_name": f"{n}.png", "width": 20, "height": 10})
        for category, width, crowd in boxes:
            notes.append({"id": len(notes), "image_id": n, "category_id": category,
                          "bbox": [1, 1, width, 5], "iscrowd": crowd})  # fmt: skip
    categories = [{"id": k, "name": name} for k, name in names.items()]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": rows, "annotations": notes, "categories": categories}))
    return f"coco:{path},{tmp_path}"


def test_what_an_exhaustive_set_says_is_absent(tmp_path):
    spec = coco(
        tmp_path,
        [(1, 5, 0), (3, 5, 1), (2, 0, 0)],  # a dog, a crowd of birds, a cat's box without area
        [(4, 5, 0), (2, 5, 0), (5, 5, 0), (6, 5, 0)],
        [(1, 5, 0), (9, 5, 0)],  # one box without label: it may be anything
        [(2, 5, 0), (2, 6, 0)],
    )
    source = open_source(spec)
    signs = {"stop_sign", "Stop sign"}
    wanted = [signs, {"bird"}, set(), {"dog", "Dog", "bird"} | signs]
    assert [set(source[i].absent) for i in range(4)] == wanted
    count = {"dog": 2, "bird": 1, "Dog": 1, "cat": 2, "stop_sign": 1, "Stop sign": 1}
    assert source.frequency == count
    silent = open_source(f"{spec},exhaustive=no")
    assert not any(silent[i].absent for i in range(4)) and silent.frequency == {}
    assert silent[3].objects == source[3].objects


def test_which_sets_are_exhaustive(scenes, tmp_path):
    assert open_source(f"coco:{scenes}").exhaustive
    examples = open_source("scenes:seed=61,n=3,size=64,tasks=none")
    voc = open_source(f"voc:{write_voc([examples[i] for i in range(3)], tmp_path)}")
    named = {r.label for i in range(3) for r in examples[i].objects}
    for i in range(3):
        assert set(voc[i].absent) == named - {r.label for r in voc[i].objects}
    from mg_jax.data.sources.lvis import LvisSource
    from mg_jax.data.sources.v3det import V3DetSource

    assert not LvisSource.exhaustive and not V3DetSource.exhaustive


def test_tasks_of_a_data_set(scenes, tmp_path):
    spec = f"coco:{scenes}"
    assert open_source(spec).tasks is None
    assert open_source(f"{spec},tasks=rec*2+presence").tasks == {"rec": 2.0, "presence": 1.0}
    rows = [open_source(spec)[0]]
    jsonl = f"jsonl:{write_jsonl(rows, tmp_path)}"
    assert set(open_source(f"{jsonl},tasks=vqa").tasks) == {"vqa"}
    for text, message in (
        (f"{spec},tasks=recc", "unknown task 'recc' (did you mean rec?)"),
        (f"{spec},exhaustive=maybe", "exhaustive=maybe: yes or no"),
        (f"{jsonl},exhaustive=yes", "for data sets of labelled boxes"),
        ("scenes:exhaustive=no", "exhaustive is for data sets of files"),
        ("scenes:max_bad=0.1", "max_bad is for data sets of files"),
        ("scenes:tasks=vqa", "scenes: unknown task 'vqa'"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            open_source(text)


def asked(batch, tokenizer):
    """The trained answers and the whole text of the rows of a batch."""
    rows = zip(batch["tokens"], batch["valid"], batch["loss_mask"], strict=True)
    return [(tokenizer.decode(t[v].tolist()), tokenizer.decode(t[m].tolist())) for t, v, m in rows]


def test_a_batch_from_a_coco_file(scenes, folder, tokenizer):
    config = micro_config("alignment", folder, data=f"coco:{scenes}", codec__ground_slots=12)
    cfg = build(GromaConfig, config.model.to_dict())
    batch = next(pipeline.open_batches(config, cfg))
    stated = example_batch(cfg, "alignment", 8, **pipeline.batch_sizes(config, cfg))
    assert {k: v.shape for k, v in batch.items()} == {k: v.shape for k, v in stated.items()}
    again = next(pipeline.open_batches(config, cfg))
    np.testing.assert_array_equal(batch["tokens"], again["tokens"])
    assert len({text for text, _ in asked(batch, tokenizer)}) > 4


def test_tasks_of_the_set_win_over_those_of_the_config(scenes, folder, tokenizer):
    spec = f"coco:{scenes},tasks=presence"
    config = micro_config("alignment", folder, data=spec, tasks="all_instances")
    cfg = build(GromaConfig, config.model.to_dict())
    for text, answer in asked(next(pipeline.open_batches(config, cfg)), tokenizer):
        assert re.search(r"\b(Yes, there is|No, there is no)\b", answer), text
    config.data = f"coco:{scenes}"
    config.turns = 3
    for text, _ in asked(next(pipeline.open_batches(config, cfg)), tokenizer):
        assert not re.search(r"\bYes, there is\b", text) and text.count("ASSISTANT:") == 4
    config.instructions = "ferret"
    for text, _ in asked(next(pipeline.open_batches(config, cfg)), tokenizer):
        assert text.count("What are the locations of") == 3


def test_examples_with_turns_are_left_alone(folder):
    config = micro_config("alignment", folder)
    cfg = build(GromaConfig, config.model.to_dict())
    example = open_source("scenes:seed=3,n=2,size=64,tasks=rec")[0]
    make = [pipeline.open_samples(config, cfg).make]
    config.tasks = "vqa"
    make.append(pipeline.open_samples(config, cfg).make)
    records = [m(example, np.random.default_rng(k)) for k, m in enumerate(make)]
    np.testing.assert_array_equal(records[0]["tokens"], records[1]["tokens"])


def test_what_does_not_fit_is_cut_by_rounds_or_refused(scenes, folder):
    config = micro_config("alignment", folder, tasks="region_caption", codec__refer_slots=2)
    cfg = build(GromaConfig, config.model.to_dict())
    source = open_source(f"coco:{scenes}")
    make = pickle.loads(pickle.dumps(pipeline.open_samples(config, cfg).make))
    example = max((source[i] for i in range(8)), key=lambda e: len(e.objects))
    assert len(example.objects) > 4
    assert len(make(example, np.random.default_rng(0))["refer_boxes"]) == 2
    config.tasks = "dense_referring"  # one question with too many regions
    with pytest.raises(Unfit, match=r"refer regions, but there are 2 slots"):
        pipeline.open_samples(config, cfg).make(example, np.random.default_rng(0))

    def made(seed):
        with suppress(Unfit):
            return pipeline.open_samples(config, cfg).make(example, np.random.default_rng(seed))

    config.tasks = "dense_referring*100+presence"  # another one is drawn instead
    assert not all(made(k) for k in range(30))
    config.tasks = "dense_referring+presence"
    assert sum(made(k) is not None for k in range(30)) > 24
    config.tasks = "vqa"
    with pytest.raises(Unfit, match="none of vqa fits its annotations"):
        pipeline.open_samples(config, cfg).make(example, np.random.default_rng(0))


def test_wrong_settings_are_named(folder):
    config = micro_config("alignment", folder)
    cfg = build(GromaConfig, config.model.to_dict())
    for key, value, message in (
        ("tasks", "recc", "config: unknown task 'recc'"),
        ("turns", 0, "config.turns is 0"),
        ("instructions", "gromma", "unknown instructions 'gromma': choose from groma"),
    ):
        config = micro_config("alignment", folder, **{key: value})
        with pytest.raises(UserError, match=re.escape(message)):
            pipeline.open_samples(config, cfg)


def test_negatives_of_files_are_truly_absent(scenes):
    """Over a whole epoch of batches' worth of conversations."""
    from mg_jax.data.tasks import converse, parse_tasks
    from mg_jax.text import instructions

    source = open_source(f"coco:{scenes}")
    words, rng = instructions.get("groma"), np.random.default_rng(0)
    denied = 0
    for i in range(8):
        example = source[i]
        example.meta["frequency"] = source.frequency
        there = {r.label for r in example.objects}
        for _ in range(30):
            e = converse(example, rng, parse_tasks("rec+all_instances"), words)
            phrase = markup.parse(e.turns[0].user)[1].text
            denied += e.meta["turns"][0]["absent"]
            assert e.meta["turns"][0]["absent"] == (phrase not in there)
            assert e.meta["turns"][0]["absent"] == markup.says_absent(e.turns[0].assistant)
    assert 20 < denied < 80
