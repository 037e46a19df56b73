"""A small encoder in a package of its own, as an exporter of ONNX would leave it."""

import dataclasses
import hashlib

import numpy as np

from conversion import engine, trunks
from conversion.tables import dinov2
from mg_jax.config import build
from mg_jax.vision.vit import ViTConfig

CONFIG = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56}
NAME, MODULE, FILE = "fake", "fake_trunk_package", "models/fake.onnx"


def config() -> ViTConfig:
    """Shape of the encoder."""
    return build(ViTConfig, trunks.ARCHITECTURES["dinov2"].read_config(CONFIG, NAME))


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: bytes | str | int) -> bytes:
    """A protobuf field: a number, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name: str, x: np.ndarray) -> bytes:
    dims = b"".join(field(1, n) for n in x.shape)
    return dims + field(2, 1) + field(8, name) + field(9, np.asarray(x, "<f4").tobytes())


def graph(state: dict[str, np.ndarray]) -> bytes:
    """A model file: matrices nameless and transposed, positions in two, no mask token."""
    out, count = b"", 0
    for name, x in state.items():
        if name == "embeddings.mask_token":
            continue
        if name == "embeddings.position_embeddings":
            out += field(5, tensor("onnx::Add_9001", x[:, 1:]))
            out += field(5, tensor("onnx::Add_9000", x[:, :1]))
        elif x.ndim == 2:
            count += 1
            path = "/backbone/" + name.removesuffix(".weight").replace(".", "/")
            path = path.replace("/layer/", "/layer.")
            matrix = f"onnx::MatMul_{count}"
            node = field(1, f"in{count}") + field(1, matrix) + field(2, f"out{count}")
            out += field(1, node + field(3, f"{path}/MatMul") + field(4, "MatMul"))
            out += field(5, tensor(matrix, x.T))
        else:
            out += field(5, tensor(f"backbone.{name}", x))
    out += field(5, tensor("decoder.weight", np.ones((2, 2))))
    return field(1, 9) + field(7, out)


def install(folder, rng: np.random.Generator):
    """Write the package under `folder`; returns (Trunk, flat parameters below "vision/")."""
    cfg = config()
    table = dinov2.table(cfg)
    shapes = engine.expand(table).jax_shapes()
    params = {p: rng.normal(0, 0.2, shape).astype(np.float32) for p, shape in shapes.items()}
    params["mask_token"][:] = 0
    content = graph(engine.to_torch(engine.unflatten(params), table))
    path = folder / MODULE / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    trunk = trunks.Trunk(NAME, "fake-trunk==1.0", MODULE, FILE, digest, CONFIG)
    return trunk, {f"vision/{p}": x for p, x in params.items()}


@dataclasses.dataclass(frozen=True)
class Fake:
    """The package, installed and known."""

    trunk: trunks.Trunk
    params: dict[str, np.ndarray]


def known(monkeypatch, folder, rng) -> Fake:
    """Install the package in `folder`, on the path of this test alone, and make it known."""
    trunk, params = install(folder, rng)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(trunks.TRUNKS, NAME, trunk)
    return Fake(trunk, params)
