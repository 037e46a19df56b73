"""From a config to batches."""

import pickle

import numpy as np
import pytest

from mg_jax.config import build
from mg_jax.data import pipeline
from mg_jax.errors import Unfit, UserError
from mg_jax.models.groma import GromaConfig, example_batch
from tests.train.micro import micro_config, save_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder


def model(config):
    return build(GromaConfig, config.model.to_dict())


def test_mixtures():
    sources, ratios = pipeline.open_mixture("scenes:seed=1,n=10,tasks=rec*2+presence")
    assert len(sources) == 1 and ratios == [1.0]
    sources, ratios = pipeline.open_mixture("scenes:seed=1,n=10 * 0.5 + scenes:seed=2,n=4")
    assert [len(s) for s in sources] == [10, 4] and ratios == [0.5, 1.0]


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "config.data is empty"),
        ("scenes:n=3 * half", "the share 'half' is no positive number"),
        ("scenes:n=3 * 0", "the share '0' is no positive number"),
        ("scene:n=3", "unknown kind 'scene'"),
        ("scenes:seed=700000,n=3", "kept for evaluation"),
        ("voc:nowhere", "nowhere"),
    ],
)
def test_wrong_mixtures_are_named(text, message):
    with pytest.raises(UserError, match=message):
        pipeline.open_mixture(text)


@pytest.mark.parametrize("stage", ["detection", "alignment", "instruction"])
def test_batches_have_the_shapes_the_system_states(tokenizer, stage):
    config = micro_config(stage, tokenizer)
    cfg = model(config)
    iterator = pipeline.open_batches(config, cfg)
    batch = next(iterator)
    stated = example_batch(cfg, stage, config.batch_size, **pipeline.batch_sizes(config, cfg))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in stated.items()
    }
    assert iterator.state == 1
    second = next(iterator)
    again = pipeline.open_batches(config, cfg).restore(1)
    for k, v in next(again).items():
        np.testing.assert_array_equal(v, second[k])


@pytest.mark.parametrize("stage", ["detection", "alignment"])
def test_boxes_past_the_slots_are_counted_in_the_run(tokenizer, stage):
    data = "scenes:seed=3,n=20,tasks=grounded_caption,size=64,min_objects=4,max_objects=8"
    changes = {"data": data, "target_slots": 2, "model__detection_weight": 1.0}
    config = micro_config(stage, tokenizer, **changes)
    cfg = model(config)
    iterator = pipeline.open_batches(config, cfg)
    batch = next(iterator)
    assert batch["region_mask"].sum(1).max() == 2 and iterator.dropped > config.batch_size
    assert "dropped" not in batch
    config.target_slots = 40
    iterator = pipeline.open_batches(config, cfg)
    next(iterator)
    assert iterator.dropped == 0


def test_buckets_and_the_work_of_processes(tokenizer):
    config = micro_config("alignment", tokenizer, codec__buckets=(100, 200))
    cfg = model(config)
    samples = pickle.loads(pickle.dumps(pipeline.open_samples(config, cfg)))
    make, collate = samples.make, samples.collate
    fixed = cfg.image_tokens + 2 * cfg.max_regions
    source = pipeline.open_mixture("scenes:seed=1,n=6,tasks=presence,size=64")[0][0]
    rows = [make(source[i], np.random.default_rng(i)) for i in range(2)]
    longest = max(len(r["tokens"]) for r in rows)
    expected = min(fixed + b for b in (100, 200, 400) if fixed + b >= longest)
    assert collate(rows)["tokens"].shape == (2, expected)


def test_too_long_examples_are_skipped_or_named(tokenizer):
    data = "scenes:seed=1,n=50,tasks=presence+dialogue,size=64"
    config = micro_config("alignment", tokenizer, data=data)
    source = pipeline.open_mixture(data)[0][0]
    make = pipeline.open_samples(config, model(config)).make
    lengths = [len(make(source[i], np.random.default_rng(0))["tokens"]) for i in range(20)]
    cut = sorted(lengths)[10] - model(config).image_tokens - 2 * config.model.max_regions
    assert lengths.count(max(lengths)) < 9
    config.codec.text_tokens = cut
    make = pipeline.open_samples(config, model(config)).make
    for i, length in enumerate(lengths):
        if length <= sorted(lengths)[10]:
            make(source[i], np.random.default_rng(0))
        else:
            with pytest.raises(Unfit, match="the longest bucket is"):
                make(source[i], np.random.default_rng(0))
    config.codec.too_long = "error"
    make = pipeline.open_samples(config, model(config)).make
    with pytest.raises(UserError, match=f"text_tokens is {cut}"):
        for i in range(20):
            make(source[i], np.random.default_rng(0))
    config.codec.too_long = "never"
    with pytest.raises(UserError, match="config.codec.too_long: 'never'"):
        pipeline.open_samples(config, model(config))


def test_tokenizers_that_do_not_fit_are_named(tokenizer, tmp_path):
    config = micro_config("alignment", tokenizer)
    config.model.lm.vocab = 7
    with pytest.raises(UserError, match=r"config.model.lm.vocab is 7, but the tokenizer .* pieces"):
        pipeline.open_batches(config, model(config))
    config.codec.tokenizer = str(tmp_path)
    with pytest.raises(UserError, match="no folder with a tokenizer.model"):
        pipeline.open_batches(config, model(config))
    assert pipeline.tokenizer_folder(config) is None
