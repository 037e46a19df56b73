"""Media and lengths known before examples are read, and batches of one of each."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from mg_jax.data import build, pipeline
from mg_jax.data.sources import open_source
from mg_jax.data.sources.measures import PICTURE, TEXT, UNKNOWN, VIDEO, measure, tokens_about
from mg_jax.data.sources.split import by_medium
from mg_jax.data.write import write_jsonl
from mg_jax.errors import UserError
from mg_jax.example import Example, Turn
from mg_jax.models import build as build_system
from tests.mg_llava_micro import micro_config, noise

BUCKETS = (30, 48, 60, 160, 230)


def talk(words):
    return [{"from": "human", "value": "<image>\nSay"}, {"from": "gpt", "value": "dog " * words}]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A LLaVA file: 24 pictures, 16 videos and 12 texts, one after the other."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "film").mkdir()
    Image.fromarray(noise(40, 30)).save(folder / "a.png")
    for n in range(2):
        Image.fromarray(noise(40, 30, seed=n)).save(folder / "film" / f"{n}.png")
    media = [{"image": "a.png"}] * 24 + [{"video": "film"}] * 16 + [{}] * 12
    order = np.random.default_rng(0).permutation(len(media))
    rows = [
        {"id": f"row{n}", "conversations": talk(1 + n % 13), **media[k]}
        for n, k in enumerate(order)
    ]
    (folder / "talks.json").write_text(json.dumps(rows))
    return f"llava:{folder / 'talks.json'},{folder}"


def opened(data, **changes):
    changes = {"group_by_length": True, "single_source": False, "codec__buckets": BUCKETS} | changes
    config = micro_config(media="video", data=data, boxes="none", batch_size=4, **changes)
    return pipeline.open_batches(config, build_system(config.system, config.model.to_dict()).cfg)


def media_of(batch, cfg):
    """Of each row the medium."""
    counts = (batch["tokens"] == cfg.id("image")).sum(1)
    return [{0: TEXT, cfg.image_tokens(1): PICTURE}.get(int(n), VIDEO) for n in counts]


CFG = build_system("mg_llava", micro_config(media="video").model.to_dict()).cfg


def test_a_file_of_all_media_trains_grouped(mixed):
    assert CFG.video_pool == 2  # as context=fit has it
    iterator = opened(mixed)
    found = [next(iterator) for _ in range(13)]
    iterator.close()
    kinds = [media_of(b, CFG) for b in found]
    assert all(len(set(kind)) == 1 for kind in kinds)
    assert sorted(kind[0] for kind in kinds) == [TEXT] * 3 + [PICTURE] * 6 + [VIDEO] * 4
    for batch, kind in zip(found, kinds, strict=True):
        assert batch["high"].shape[1] == (8 if kind[0] == VIDEO else 1)
        longest = int(batch["valid"].sum(1).max())
        assert batch["tokens"].shape[1] == min(n for n in (*BUCKETS, 296) if n >= longest)


def test_pictures_and_videos_of_one_file_are_apart_in_single_source_batches_too(mixed):
    iterator = opened(mixed, group_by_length=False, single_source=True)
    kinds = [set(media_of(next(iterator), CFG)) for _ in range(13)]
    iterator.close()
    assert sum(kind == {VIDEO} for kind in kinds) == 4
    assert all(kind == {VIDEO} or VIDEO not in kind for kind in kinds)
    assert {TEXT, PICTURE} in kinds  # which share a batch, as in a file without videos
    iterator = opened(mixed, group_by_length=False)
    with pytest.raises(UserError, match="a picture and a video in one batch"):
        list(next(iterator) for _ in range(13))
    iterator.close()


def test_processes_agree_on_the_length_without_seeing_each_other(mixed, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parts = []
    for p in range(2):
        monkeypatch.setattr(jax, "process_index", lambda p=p: p)
        iterator = opened(mixed)
        parts.append([next(iterator) for _ in range(13)])
        iterator.close()
    shapes = [[{k: v.shape for k, v in b.items()} for b in part] for part in parts]
    assert shapes[0] == shapes[1]
    lengths = {b["tokens"].shape[1] for b in parts[0]}
    assert len(lengths) > 2 and lengths <= {*BUCKETS, 296}
    monkeypatch.undo()
    alone = opened(mixed)
    for batch, *own in zip((next(alone) for _ in range(13)), *parts, strict=True):
        for p, part in enumerate(own):  # the same rows, padded less where all can be seen
            size = min(batch["tokens"].shape[1], part["tokens"].shape[1])
            np.testing.assert_array_equal(batch["tokens"][p::2, :size], part["tokens"][:, :size])
            assert (batch["valid"][p::2].sum(1) == part["valid"].sum(1)).all()
    alone.close()


def test_a_row_longer_than_thought_is_replaced(mixed, monkeypatch):
    monkeypatch.setattr("mg_jax.data.sources.conversations.tokens_about", lambda turns: len(turns))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    iterator = opened(mixed, codec__buckets=(24, 60))
    found = [next(iterator) for _ in range(13)]
    iterator.close()
    assert iterator.unfit["longer than planned"] > 0
    assert {b["tokens"].shape[1] for b in found} <= {24, 60, 296}
    assert all(len(set(media_of(b, CFG))) == 1 for b in found)


def test_without_knowledge_the_longest_is_taken(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    data = "scenes:seed=1,n=40,size=64 + scenes:seed=2,n=40,size=64,frames=8"
    iterator = opened(data, codec__buckets=(181,))
    found = [next(iterator) for _ in range(8)]
    iterator.close()
    lengths = {VIDEO: 296, PICTURE: 181}  # of the medium: 20 positions of a picture and 160 of text
    assert {media_of(b, CFG)[0] for b in found} == {VIDEO, PICTURE}
    assert all(b["tokens"].shape[1] == lengths[media_of(b, CFG)[0]] for b in found)


def test_stages_without_text_have_no_lengths():
    config = micro_config("labels", group_by_length=True)
    with pytest.raises(UserError, match="config.group_by_length: stage labels has no text"):
        pipeline.open_batches(config, build_system("mg_llava", config.model.to_dict()).cfg)


def test_readers_measure_what_they_read(mixed, tmp_path):
    source = open_source(mixed)
    rows = [measure(source[i]) for i in range(len(source))]
    assert source.measures().tolist() == [list(row) for row in rows]
    assert {medium for medium, _ in rows} == {TEXT, PICTURE, VIDEO}
    parts = by_medium(source)
    assert [len(part) for part in parts] == [12, 24, 16]
    assert [set(part.measures()[:, 0].tolist()) for part in parts] == [{TEXT}, {PICTURE}, {VIDEO}]
    assert [part.name for part in parts][2] == "talks, videos" and parts[2][0].video
    assert [len(part) for part in by_medium(source, texts=False)] == [36, 16]
    pictures = parts[1]
    assert by_medium(pictures) == [pictures]
    held = open_source(f"{mixed},part=train")
    assert held.measures().tolist() == [list(measure(held[i])) for i in range(len(held))]
    viewed = open_source(f"{mixed},text=drop,views=2")
    assert viewed.measures().tolist() == [list(measure(viewed[i])) for i in range(len(viewed))]
    job, found = build.prepare(mixed, tmp_path / "shards", shards=3)
    build.run(job, found)
    build.finish(job, found)
    shards = open_source(f"shards:{tmp_path / 'shards'}")
    np.testing.assert_array_equal(shards.measures(), source.measures())
    e = Example(noise(), 90, 40, turns=(Turn("Hi", "Ho"),), id="a")
    file = write_jsonl([e], tmp_path / "own")
    assert open_source(f"jsonl:{file}").measures().tolist() == [list(measure(e))]
    films = open_source("scenes:seed=1,n=3,frames=8")
    assert films.measures().tolist() == [[VIDEO, UNKNOWN]] * 3


def test_older_shards_do_not_tell(mixed, tmp_path):
    job, found = build.prepare(mixed, tmp_path, shards=1)
    build.run(job, found)
    build.finish(job, found)
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    del manifest["files"][0]["measures"]
    (tmp_path / "dataset.json").write_text(json.dumps(manifest))
    source = open_source(f"shards:{tmp_path}")
    assert source.measures() is None and by_medium(source) == [source]


def test_estimates_are_rather_too_high():
    tokenizer = pipeline.make_codec(micro_config(), CFG).tokenizer
    for text in (
        "A red ball lies left of the dog. " * 9,
        "[0.28, 0.34, 0.40, 0.71]",
        "犬と猫",
        "\n\n1,472",
    ):
        assert tokens_about([Turn(text, "")]) >= len(tokenizer.encode_parts([text], bos=False))
    assert tokens_about([Turn("<r:0>", "yes")]) > 40
    assert tokens_about([Turn("\ud800", None)]) == 19
