"""`launch.features`: training on kept hidden states is training on the pictures; releases leave the
encoder out and answer as before. A small encoder stands in for the package's."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import mg_jax
from configs import mg_llava
from conversion import trunks
from launch import features, fitting, ship, train
from mg_jax import checkpoint, models
from mg_jax.data import pipeline
from mg_jax.data.sources import open_source
from mg_jax.data.write import write_jsonl, write_voc
from mg_jax.errors import BadRecord, UserError
from mg_jax.plan import initial_params, plan
from tests import fake_trunk
from tests.train.micro import micro_config, save_tokenizer


@pytest.fixture
def fake(monkeypatch, tmp_path, rng):
    return fake_trunk.known(monkeypatch, tmp_path / "site", rng)


@pytest.fixture
def voc(tmp_path):
    source = open_source("scenes:seed=9,n=12,tasks=none,size=96x64")
    write_voc([source[i] for i in range(12)], tmp_path / "shapes")
    return f"voc:{tmp_path / 'shapes'}"


def made(voc, tmp_path, name="f", views=2, taps=""):
    return features.make(f"{voc},views={views}", tmp_path / name, "fake", 56, taps, batch_size=5)


def config(stage, tmp_path, **changes):
    """A micro config on the small encoder, frozen."""
    save_tokenizer(tmp_path / "t")
    c = micro_config(stage, tmp_path / "t")
    c.model.vision.update({"width": 16, "layers": 3, "heads": 2, "mlp_ratio": 4.0})
    c.trunk, c.init_stages, c.loader.threads = "fake", (), 0
    if stage == "detection":
        c.trainable = ("proposer/.*", "region_encoder/.*", "labels/.*")
        c.init_from = "fake"
    else:
        c.trainable = ("region_encoder/.*", "projector/.*", "new_tokens/.*", "lm/.*")
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def encoded(fake, example, taps=()):
    """The hidden states of an example's picture, float32 [M, P, C]."""
    from mg_jax.vision.preprocess import groma_pil
    from mg_jax.vision.vit import ViT

    params = checkpoint.unflatten(fake.params)["vision"]
    pixels = groma_pil(example.pixels(), 56)[None]
    found, _ = ViT(fake_trunk.config()).apply({"params": params}, pixels)
    return np.asarray(found)[list(taps) or slice(-4, None), 0]


def test_rows_are_what_the_encoder_gives(fake, voc, tmp_path):
    folder = made(voc, tmp_path)
    source = open_source(f"features:{folder}")
    assert source.made["trunk"] == "fake" and len(source) == 24
    for i in (0, 3, 23):
        expected, found = encoded(fake, source[i]), source[i].meta["states"]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    release = trunks.save("fake", tmp_path / "release")
    again = features.make(f"{voc},views=2", tmp_path / "g", str(release), 56)
    other = np.load(again / "states.npy")
    np.testing.assert_allclose(other, source.states, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "stage,taps",
    [("detection", ""), pytest.param("alignment", "1,0,3,2", marks=pytest.mark.slow)],
)
def test_a_step_on_features_is_a_step_on_pictures(fake, voc, tmp_path, stage, taps):
    """The same loss and gradient norm, to the rounding of float16 (that of the language stages
    could choose other regions, so their rows are made here unrounded)."""
    folder = made(voc, tmp_path, views=1, taps=taps)
    c = config(stage, tmp_path, target_slots=16)
    c.model.taps = tuple(int(n) for n in taps.split(",") if n)
    c.init_from, c.init_required = trunks.start("fake", tmp_path / "trunk"), ()
    system = models.build(c.system, c.model.to_dict())
    p = plan(c, 4, system=system, sizes=pipeline.batch_sizes(c, system.cfg))
    flat = initial_params(p, c)
    params = {path: flat[path] for path in p.state.params}
    frozen = {path: flat[path] for path in p.frozen}
    kept, _ = pipeline.open_mixture(f"features:{folder}")
    plain, _ = pipeline.open_mixture(voc)
    samples = pipeline.open_samples(c, system.cfg)
    losses = []
    for source in (kept[0], plain[0]):
        rows = []
        for i in range(c.batch_size):
            example = source[i]
            example.meta |= {"head": "coco", "tasks": None, "frequency": source.frequency}
            if stage == "detection" and source is plain[0]:  # as it is, not cut at random
                from mg_jax.data.transforms import detection_targets
                from mg_jax.vision.preprocess import get

                row = detection_targets(example, np.random.default_rng(i), 16, c.label_words)
                row["pixels"] = get(c.preprocess).squash(example.pixels(), 56)
            else:
                row = samples.make(example, np.random.default_rng(i))
            if stage != "detection" and "states" in row:
                row["states"] = encoded(fake, plain[0][i], c.model.taps)
            rows.append(row)
        batch = samples.finish(samples.collate(rows))
        assert ("states" in batch) == (source is kept[0]) != ("pixels" in batch)
        loss = jax.jit(jax.value_and_grad(
            lambda own, batch: system.loss(stage)(
                checkpoint.unflatten({**own, **frozen}), batch, jax.random.key(1)
            )[0]
        ))  # fmt: skip
        value, grads = loss(params, batch)
        losses.append((value, sum(np.sum(np.square(g)) for g in grads.values()) ** 0.5))
    np.testing.assert_allclose(losses[0], losses[1], rtol=5e-3)
    assert losses[0][1] > 0


def test_configs_that_do_not_fit_are_named(fake, voc, tmp_path):
    folder = made(voc, tmp_path)

    def opened(**changes):
        c = config("detection", tmp_path, data=f"features:{folder}", **changes)
        pipeline.open_batches(c, models.build(c.system, c.model.to_dict()).cfg)

    opened()
    with pytest.raises(UserError, match="config.trainable names the encoder"):
        opened(trainable=(".*",))
    with pytest.raises(UserError, match=r"made with trunk='fake', but config.trunk is 'other'"):
        opened(trunk="other")
    with pytest.raises(UserError, match=r"made with image_size=56, but config.image_size is 112"):
        opened(image_size=112)
    with pytest.raises(UserError, match=r"made with model.taps=\[\], but .* is \[0, 1, 2, 3\]"):
        opened(model__taps=(0, 1, 2, 3))
    c = config("detection", tmp_path, data=f"features:{folder} + {voc}")
    with pytest.raises(UserError, match="features: and data sets of pictures cannot be mixed"):
        pipeline.open_batches(c, None)
    c = mg_llava.get_config("llm=tiny")
    c.data = f"features:{folder}"
    with pytest.raises(UserError, match="features: are read by Groma alone, not by mg_llava"):
        pipeline.open_batches(c, None)


def test_bad_pictures_have_no_row_and_end_nothing(fake, voc, tmp_path, capsys):
    pictures = sorted((tmp_path / "shapes" / "JPEGImages").iterdir())
    pictures[1].write_bytes(pictures[1].read_bytes()[:300])
    Image.new("RGB", (9, 9)).save(pictures[7])
    with pytest.raises(UserError, match="could not be read, more than max_bad=0.05 allows; the fi"):
        made(voc, tmp_path)
    folder = made(f"{voc},max_bad=0.2", tmp_path)
    assert (
        f"left out: {pictures[1]}: the picture cannot be read to its end" in capsys.readouterr().err
    )
    source = open_source(f"features:{folder}")
    assert source.max_bad == 0.2 and open_source(f"features:{folder},max_bad=0.3").max_bad == 0.3
    bad = [k for k in range(24) if source.file_name(k) in (pictures[1].name, pictures[7].name)]
    assert len(bad) == 4 and sorted(source.made["malformed"]) == sorted(map(str, bad))
    for k in range(24):
        if k in bad:
            assert not source.states[k].any()
            with pytest.raises(BadRecord, match=r"1\.png|7\.png|picture is 9x9 px"):
                source[k]
        else:
            expected, found = encoded(fake, source[k]), source[k].meta["states"]
            np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_malformed_examples_have_no_row(fake, voc, tmp_path):
    """Also where views are cut around the boxes of an example that is none."""
    source = open_source(voc)
    file = write_jsonl([source[i] for i in range(12)], tmp_path / "j")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[3]["objects"][0]["box"] = [900, 900, 950, 950]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    folder = made(f"jsonl:{file},max_bad=0.1", tmp_path)
    found = open_source(f"features:{folder}")
    assert sorted(found.made["malformed"]) == ["6", "7"]
    assert ":4: objects[0]: box [900, 900, 950, 950] has no area" in found.made["malformed"]["6"]


def test_room_for_features_is_needed_in_time(fake, voc, tmp_path, monkeypatch):
    changes = {"data": f"{voc},part=train", "views": 16}
    configs = {s: config(s, tmp_path, **changes) for s in ("detection", "alignment")}
    for stage in configs:
        (tmp_path / "work" / stage / "checkpoints").mkdir(parents=True)
    free = 2 * 4 * (1 + 4 * 4) * 16 * 16 * 10
    monkeypatch.setattr("mg_jax.disk.free_bytes", lambda folder: free)
    fitting.need_room(configs, tmp_path / "work", 10)
    with pytest.raises(UserError, match="the disk is full"):
        fitting.need_room(configs, tmp_path / "work", 11)
    row = features.row_bytes(fake_trunk.config(), 0, 56)
    folder = made(voc, tmp_path / "work", "features", views=1)
    assert row * 12 == open_source(f"features:{folder}").states.nbytes
    fitting.need_room(configs, tmp_path / "work", 11)  # they are there


def test_bad_input_is_one_line(fake, voc, tmp_path):
    for options, match in (
        ({"image_size": 57}, "--image-size 57: give a multiple of 14"),
        ({"taps": "1,4"}, "--taps 1,4: give numbers from 0 to 3"),
        ({"batch_size": 0}, "--batch-size 0: give at least 1"),
        ({"trunk": "nowhere"}, "nowhere: no such folder"),
        ({"preprocess": "none"}, "preprocess='none': choose one of"),
    ):
        with pytest.raises(UserError, match=match):
            features.make(voc, tmp_path / "x", **{"trunk": "fake", "image_size": 56, **options})
        assert not (tmp_path / "x").exists()


def test_a_shipped_run_leaves_the_encoder_to_its_package(fake, voc, tmp_path, monkeypatch, capsys):
    """Detection through launch.train, then launch.ship, load() and a start from what was shipped:
    what the shipped release proposes is what the run's own does."""
    folder = made(voc, tmp_path)
    run, out = tmp_path / "run", tmp_path / "shipped" / "mini"
    c = config("detection", tmp_path, data=f"features:{folder}", train__steps=2)
    command = f"python -m launch.train --workdir {run}"
    assert train.run(c, str(run), command) == 0
    whole = checkpoint.open_release(run / "release")[1]
    assert any(path.startswith("vision/") for path in whole.shapes)
    assert checkpoint.is_release(run / "trunk-fake")

    data = f"{voc},part=heldout"
    argv = [str(run), "--out", str(out), "--measure", f"proposals={data}"]
    ship.main(argv)
    config_json, params = checkpoint.open_release(out)
    assert config_json["trunk"] == fake.trunk.record
    assert not any(path.startswith("vision/") for path in params.shapes)
    assert set(params.shapes) == {p for p in whole.shapes if not p.startswith("vision/")}
    card = (out / "README.md").read_text()
    assert f"launch.features --data {voc},views=2 --trunk fake --image-size 56" in card
    assert f"--taps '' --out {folder}" in card
    assert f"| `{voc},views=2` |" in card and "`pip install --no-deps fake-trunk==1.0`" in card
    assert "| proposals | ar@100 | " in card

    picture = open_source(voc)[0].pixels()
    expected, found = (mg_jax.load(f).propose([picture])[0] for f in (run / "release", out))
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-2, atol=0.5)  # bfloat16 encoder
    start = fitting.open_start(str(out), tmp_path / "work")
    assert start.size == "mini"
    c = config("detection", tmp_path, data=f"features:{folder}", train__steps=1)
    c.init_from = str(out)
    assert train.run(c, str(tmp_path / "again")) == 0
    assert c.init_from == f"{out},{tmp_path / 'again' / 'trunk-fake'}"

    fake.trunk.path().unlink()
    with pytest.raises(UserError, match="make setup EXTRAS=weights"):
        mg_jax.load(out)
    assert mg_jax.load(run / "release")  # which has it all


def test_fit_computes_features_once_for_all_stages(fake, voc, tmp_path, monkeypatch):
    configs = {
        stage: config(stage, tmp_path, data=f"{voc},part=train", views=2)
        for stage in ("detection", "alignment")
    }
    fitting.cache(configs, tmp_path / "work")
    folder = tmp_path / "work" / "features"
    assert {c.data for c in configs.values()} == {f"features:{folder}"}
    assert json.loads((folder / "features.json").read_text())["data"] == f"{voc},part=train,views=2"
    monkeypatch.setattr(features, "make", None)  # it is there
    again = {"detection": config("detection", tmp_path, data=f"{voc},part=train", views=2)}
    fitting.cache(again, tmp_path / "work")
    assert again["detection"].data == f"features:{folder}"
    other = {"detection": config("detection", tmp_path, data=voc, views=2)}
    with pytest.raises(UserError, match="features: was made of voc:"):
        fitting.cache(other, tmp_path / "work")
    none = {"detection": config("detection", tmp_path, data=voc)}
    fitting.cache(none, tmp_path / "work")
    assert none["detection"].data == voc
