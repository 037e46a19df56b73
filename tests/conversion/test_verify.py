"""The verdicts of the verification command, on arrays and on a small made-up instance."""

import json
import zipfile

import numpy as np
import pytest

import conversion
from conversion import engine, readers, verify
from conversion.verify import Case, Masked, compare
from launch.verify import main
from mg_jax.errors import UserError

# -- one array --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("largest", "error", "ok"),
    [
        (1.0, 0.9e-4, True),
        (1.0, 1.1e-4, False),
        (50.0, 4.9e-3, True),  # 1e-4 of the largest value
        (50.0, 5.1e-3, False),
        (1e-3, 0.9e-5, True),  # 1 % of the largest value
        (1e-3, 1.1e-5, False),
        (0.0, 0.9e-6, True),
        (0.0, 1.1e-6, False),
    ],
)
def test_tolerance_follows_the_size_of_the_array(largest, error, ok):
    recorded = np.array([largest, 0.0, -largest / 2])
    line = compare("x", recorded + np.array([0.0, error, 0.0]), recorded)
    assert line.ok is ok
    assert line.error == pytest.approx(error)


def test_an_array_of_small_numbers_does_not_pass_as_zeros():
    assert not compare("grad", np.zeros(9), np.full(9, 5e-5)).ok


def test_integers_and_booleans_are_exact():
    recorded = np.arange(5)
    assert compare("ids", recorded.astype(np.int32), recorded).ok
    assert not compare("ids", recorded + np.eye(5, dtype=int)[2], recorded).ok
    assert not compare("ids", recorded.astype(np.float32), recorded).ok
    assert not compare("mask", np.array([True, True]), np.array([True, False])).ok


def test_infinities_must_stand_in_place():
    recorded = np.array([1.0, np.inf, -np.inf])
    assert compare("x", recorded.copy(), recorded).ok
    assert not compare("x", np.array([1.0, -np.inf, -np.inf]), recorded).ok
    assert not compare("x", np.array([1.0, 1e30, -np.inf]), recorded).ok
    assert not compare("x", np.array([np.inf, np.inf, -np.inf]), recorded).ok
    assert not compare("x", np.array([np.nan, np.inf, -np.inf]), recorded).ok


def test_another_shape_is_a_miss_that_names_it():
    line = compare("x", np.zeros((2, 3)), np.zeros((3, 2)))
    assert not line.ok and "[2, 3]" in line.note


def test_masked_places_are_not_compared():
    recorded = np.array([[1.0, 7.0], [2.0, 3.0]])
    ours = np.array([[1.0, np.nan], [2.0, 3.0]])
    mask = np.array([[True, False], [True, True]])
    line = compare("x", Masked(ours, mask), recorded)
    assert line.ok and line.shape == (2, 2) and "3 of 4" in line.note
    assert not compare("x", Masked(ours + 1, mask), recorded).ok


def test_all_variants_must_fit():
    recorded = np.ones(3)
    assert compare("x", {"a": recorded, "b": recorded}, recorded).ok
    line = compare("x", {"a": recorded, "b": recorded + 1}, recorded)
    assert not line.ok and line.note == "b"


# -- the order of things ----------------------------------------------------------------------


def test_recordings_are_opened_after_ours_exist(monkeypatch, tmp_path):
    events = []

    def produce():
        events.append("produced")
        return {"a": np.ones(2), "spare": np.ones(1)}, ["b: broken"]

    def recorded(name):
        events.append(name)
        return np.ones(2)

    case = Case("fake", ("a", "b"), {}, produce, recorded)
    monkeypatch.setattr(verify, "open_case", lambda folder: case)
    report = verify.verify(tmp_path)
    assert events == ["produced", "a", "b"]
    assert [line.ok for line in report.lines] == [True, False]
    assert report.lines[1].note == "not produced" and not report.ok
    assert report.failures == ("b: broken",)


def test_names_come_from_the_directory_alone(tmp_path):
    path = tmp_path / "outputs.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("det_grad_coco::bbox_embed.-1(enc).weight.npy", b"not an array")
    assert verify.npz_names(path) == ["det_grad_coco::bbox_embed.-1(enc).weight"]
    with pytest.raises(UserError, match="is not an array"):
        verify.npz_read(path, verify.npz_names(path))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenization.json", "[]", "tokenization.json: holds no JSON object"),
        ("tokenization.json", '{"a": {"b": [1, "x"]}}', "a/b holds neither a text nor whole"),
        ("tokenization.json", '{"a": null}', "tokenization.json: a holds neither a text nor whole"),
        ("preprocess.npz", None, "preprocess.npz: no array 'image_rgb_uint8'"),
    ],
)
def test_recordings_that_lack_their_input_are_bad_input(tmp_path, file, content, message):
    if content is None:
        np.savez(tmp_path / file, other=np.zeros(3))
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message):
        verify.verify(tmp_path)


def test_a_part_that_did_not_run_is_no_success(tmp_path):
    """Even where all that is recorded are inputs, which need no match."""
    (tmp_path / "tokenization.json").write_text('{"legacy_true/a/prompt": "a"}')
    report = verify.verify(tmp_path)  # without a tokenizer
    assert all(line.ok for line in report.lines) and report.failures and not report.ok


def test_a_folder_without_recordings_is_bad_input(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        main([str(tmp_path / "absent")])
    with pytest.raises(UserError, match="holds none of"):
        main([str(tmp_path)])
    (tmp_path / "outputs.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="not an .npz archive"):
        main([str(tmp_path)])


# -- a small instance -------------------------------------------------------------------------

CONFIG = {
    "model_type": "groma",
    "nms_thres": 0.5,
    "box_score_thres": 0.05,
    "max_region_num": 4,
    "llm_cfg": {
        "vocab_size": 20, "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 64,
    },
    "perceiver_cfg": {
        "vis_encoder_cfg": {
            "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 1,
            "image_size": 56,
        },
        "ddetr_cfg": {
            "auxiliary_loss": True, "two_stage": True, "with_box_refine": True, "d_model": 16,
            "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
            "num_feature_levels": 3, "decoder_n_points": 2, "num_queries": 6,
            "two_stage_num_proposals": 6, "id2label": {"0": "LABEL_0"},
        },
    },
    "golden_overrides": {"image": 56, "mid": 8, "roi_scale": 56, "seed": 1},
}  # fmt: skip
PREFIXES = ("dinov2", "plain", "ddetr", "fallback")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of random weights whose recordings are what our own model makes of them."""
    pytest.importorskip("mg_jax.boxes")
    folder = tmp_path_factory.mktemp("small")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    _, cfg = conversion.read_config(folder)
    table = conversion.table_of(cfg, "full")
    rng = np.random.default_rng(0)
    shapes = engine.expand(table).jax_shapes()
    params = {path: (rng.standard_normal(shape) * 0.3) for path, shape in shapes.items()}
    state = engine.to_torch(engine.unflatten(params), table, np.float16)
    readers.write_safetensors(folder / "model.safetensors", state)

    first = 20
    ids = np.array([[1, first + 8, 5, first + 9, 6, 7]])  # <s> <image> a <region> b c
    pixels = rng.standard_normal((2, 3, 56, 56)).astype(np.float16)
    np.savez(folder / "inputs.npz", pixel_values=pixels, plain_input_ids=ids)

    from conversion.verify import groma

    names = [f"{p}_x" for p in PREFIXES] + ["plain_generate", "plain_region_features_literal448"]
    produced, failures = verify.parts.gather(groma.Instance(folder, {}).parts(names))
    assert not failures
    produced["plain_shuffle_perm"] = np.arange(len(produced["plain_selected_boxes_cxcywh"]))
    np.savez(folder / "outputs.npz", **{k: np.asarray(v) for k, v in produced.items()})
    return folder


@pytest.fixture
def changed(small, tmp_path):
    """A function: a copy of the small instance with some recordings or weights replaced."""

    def make(outputs=None, weights=None, keep=None):
        arrays = dict(np.load(small / "outputs.npz"))
        arrays |= {name: change(arrays.get(name)) for name, change in (outputs or {}).items()}
        if keep:
            arrays = {name: value for name, value in arrays.items() if name.startswith(keep)}
        source = readers.open_checkpoint(small)
        state = {name: source.read(name).copy() for name in source.manifest}
        for name, change in (weights or {}).items():
            state[name] = change(state[name])
        readers.write_safetensors(tmp_path / "model.safetensors", state)
        for name in ("config.json", "inputs.npz"):
            (tmp_path / name).write_bytes((small / name).read_bytes())
        np.savez(tmp_path / "outputs.npz", **arrays)
        return tmp_path

    return make


def run(folder, capsys):
    """(exit status, JSON report) of the command."""
    status = main([str(folder), "--json"])
    return status, json.loads(capsys.readouterr().out)


def misses(report):
    return [line["name"] for line in report["arrays"] if not line["ok"]]


def test_a_faithful_instance_passes(small, capsys):
    status, report = run(small, capsys)
    assert status == 0 and report["ok"] and not report["failures"]
    names = {line["name"] for line in report["arrays"]}
    assert {"plain_logits", "plain_generated_ids", "plain_region_features_literal448"} <= names
    fed = [line["name"] for line in report["arrays"] if line["note"] == "fed"]
    assert fed == ["plain_shuffle_perm"]
    assert main([str(small)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == len(names) + 1 and rows[-1].endswith("recorded arrays match")


def test_an_unknown_array_is_a_miss(changed, capsys):
    folder = changed({"plain_unheard_of": lambda _: np.ones(3)}, keep=("plain_un", "fallback"))
    status, report = run(folder, capsys)
    assert status == 1 and misses(report) == ["plain_unheard_of"]


def test_a_swapped_index_is_a_miss(changed, capsys):
    def swap(index):
        index = index.copy()
        index[0, :2] = index[0, 1::-1]
        return index

    status, report = run(changed({"plain_ddetr_topk_proposal_idx": swap}, keep="plain_d"), capsys)
    assert status == 1 and misses(report) == ["plain_ddetr_topk_proposal_idx"]


def test_another_permutation_is_a_miss(changed, capsys):
    """A fed array is no free pass: what follows from it must fit, and it must be a permutation."""
    rolled = changed({"plain_shuffle_perm": lambda perm: np.roll(perm, 1)}, keep="plain")
    status, report = run(rolled, capsys)
    assert status == 1 and "plain_selected_boxes_cxcywh" in misses(report)
    short = changed({"plain_shuffle_perm": lambda perm: perm[:-1]}, keep="plain")
    status, report = run(short, capsys)
    assert status == 1 and "plain_shuffle_perm" in misses(report)


def test_a_perturbed_weight_is_a_miss(changed, capsys):
    name = "perceiver.vis_encoder.encoder.layer.1.norm1.weight"
    folder = changed(weights={name: lambda x: x + np.float16(0.05)}, keep="dinov2")
    status, report = run(folder, capsys)
    assert status == 1 and misses(report)


def test_a_weight_of_another_shape_is_bad_input(changed):
    name = "perceiver.vis_encoder.encoder.layer.1.norm1.weight"
    with pytest.raises(UserError, match=r"! .*norm1\.weight \[63\], expected \[64\]"):
        main([str(changed(weights={name: lambda x: x[1:]}))])
