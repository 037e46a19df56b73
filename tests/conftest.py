"""Settings and fixtures of every test.

Tests run on the CPU, split into eight virtual devices, unless MG_JAX_TEST_PLATFORM names another
platform. Reference recordings are looked for in ../shared or MG_JAX_SHARED.
"""

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLATFORM = os.environ.get("MG_JAX_TEST_PLATFORM", "cpu")
os.environ["JAX_PLATFORMS"] = PLATFORM  # before jax is imported; child processes inherit it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if PLATFORM == "cpu" and "optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    # small models: compiling is most of the work, and takes a third of the time like this
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
    if version("jaxlib").startswith("0.10."):  # 0.12 does not know it
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

if "cpu" in PLATFORM:
    jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_collection_modifyitems(items):
    """Skip what is marked `gpu` elsewhere than on a GPU, and `torch` without PyTorch."""
    torch_missing = find_spec("torch") is None  # importing it here would cost every process
    for item in items:
        if item.get_closest_marker("gpu") and PLATFORM not in ("cuda", "gpu", "rocm"):
            item.add_marker(pytest.mark.skip(reason="needs MG_JAX_TEST_PLATFORM=cuda"))
        if item.get_closest_marker("torch") and torch_missing:
            item.add_marker(pytest.mark.skip(reason="needs PyTorch: make test EXTRAS=torch"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference recordings and data; the test is skipped where it is absent."""
    folder = Path(os.environ.get("MG_JAX_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference recordings at {folder}; MG_JAX_SHARED names another place")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """A NumPy generator of one fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture
def getkey():
    """A function that returns a new jax key at each call, the same ones in every run."""
    count = iter(range(1 << 31))
    return lambda: jax.random.fold_in(jax.random.key(0), next(count))


@pytest.fixture(scope="session")
def redraw():
    """`redraw(params, key)`: the same tree with no leaf left constant.

    Zero and one initial values (biases, norms, gates) hide a wrong or missing term in a
    comparison; every constant float leaf gets normals of deviation 0.3 added.
    """

    def one(leaf, key):
        values = np.asarray(leaf, np.float64)
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or not leaf.size or np.ptp(values) > 0:
            return leaf
        noise = jax.random.normal(key, leaf.shape, jnp.float32)
        return (leaf.astype(jnp.float32) + 0.3 * noise).astype(leaf.dtype)

    def redraw_tree(params, key):
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(key, max(1, len(leaves)))
        return jax.tree.unflatten(tree, [one(x, k) for x, k in zip(leaves, keys, strict=False)])

    return redraw_tree
