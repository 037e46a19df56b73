"""The arrows between rooms, and what importing the library may cost."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mg_jax", "conversion", "configs", "launch")

# Anyone may import these; they import each other alone.
BASE = {
    "errors", "config", "boxes", "chips", "disk", "pickles", "rle", "vision.preprocess",
    "vision.anyres",
}  # fmt: skip
# Host side: annotation files, text and answers. Knows no model.
HOST = {"example", "draw", "answer", "places", "text", "data", "evals"}
# Device side, lowest first: a room imports rooms below it.
DEVICE = (
    {"sharding", "processes"},
    {"nn", "ops"},
    {"attention"},
    {"fused"},
    {"lm", "vision", "losses"},
    {"models"},
    {"optim"},
    {"params", "generate", "quant"},
    {"checkpoint"},
    {"plan", "progress"},
    {"flops"},
    {"train"},
    {"export"},
    {"assistants"},
    {"assistant"},
    {"loading"},
    {"explain"},
)
# These join pixels and text to a model
MEETS_HOST = {"generate", "train", "assistants", "assistant", "loading", "explain"}
ROOMS = BASE | HOST | set().union(*DEVICE)
# Libraries that cost seconds or are optional: inside functions only. Others are never imported.
LAZY = {"torch", "transformers", "tensorflow", "tensorflow_datasets", "gradio", "libtpu"}
# The name under which an extra that is not installed here is asked for, where it differs
SOLD_AS = {"skimage": "scikit-image"}
NEVER = {"mg_jax": {"torch", "tensorflow", "absl"}, "conversion": {"tensorflow", "absl"}}
EXCEPTIONS = {
    # marks absl's flags as parsed, which grain's worker processes insist on; defines none
    ("mg_jax.data.batch", "absl"),
}


class Import(NamedTuple):
    """One imported name: where it stands and whether it runs when the module is imported."""

    file: Path
    line: int
    name: str
    at_once: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.name}"


def imports(file: Path) -> list[Import]:
    """Every import of a file as a dotted name, `from a import b` as `a.b`."""
    found = []

    def visit(node: ast.AST, at_once: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(file, node.lineno, a.name, at_once) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = file.relative_to(ROOT).parent.parts
            up = here[: len(here) + 1 - node.level] if node.level else ()
            base = ".".join([*up, *([node.module] if node.module else [])])
            found.extend(Import(file, node.lineno, f"{base}.{a.name}", at_once) for a in node.names)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, at_once and not inside and not typing_only)

    visit(ast.parse(file.read_text()), True)
    return found


def all_imports(*packages: str) -> Iterator[Import]:
    for package in packages:
        for file in sorted((ROOT / package).rglob("*.py")):
            yield from imports(file)


def room(name: str) -> str | None:
    """The room of a dotted name under mg_jax (`mg_jax.vision.vit.ViT` is in `vision`)."""
    parts = name.split(".")[1:]
    for size in (2, 1):
        if ".".join(parts[:size]) in ROOMS:
            return ".".join(parts[:size])
    return None


def home(file: Path) -> str:
    """The dotted name of a file's module."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def allowed(importer: str, imported: str) -> bool:
    """Whether the arrow from one room of mg_jax to another points down."""
    if importer == imported or imported in BASE:
        return True
    if importer in BASE:
        return False
    if importer in HOST:
        downward = not (importer == "text" and imported in ("data", "evals"))
        return imported in HOST and downward
    if imported in HOST:
        return importer in MEETS_HOST
    level = {name: i for i, layer in enumerate(DEVICE) for name in layer}
    return level[imported] < level[importer]


def test_every_folder_of_modules_is_a_package():
    folders = {f.parent for p in ("mg_jax", "conversion") for f in (ROOT / p).rglob("*.py")}
    bare = [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").exists()]
    assert not bare, f"no __init__.py in {bare}"


def test_every_module_has_a_room():
    strange = [
        str(file.relative_to(ROOT))
        for file in sorted((ROOT / "mg_jax").rglob("*.py"))
        if home(file) not in ("mg_jax", "mg_jax.vision") and room(home(file)) is None
    ]
    assert not strange, f"give these a place in {Path(__file__).name}: {strange}"


def test_arrows_inside_the_library_point_down():
    wrong = []
    for item in all_imports("mg_jax"):
        importer, imported = room(home(item.file)), room(item.name)
        inside = item.name.startswith("mg_jax.") and importer is not None and imported is not None
        if inside and not allowed(importer, imported):
            wrong.append(str(item))
    assert not wrong, "\n".join(wrong)


def test_arrows_between_packages_point_down():
    order = {"mg_jax": 0, "conversion": 1, "configs": 1, "launch": 2}
    wrong = []
    for item in all_imports(*PACKAGES):
        source, target = home(item.file).split(".")[0], item.name.split(".")[0]
        if target == source or target not in order:
            continue
        # a user's first act may be loading a PyTorch folder: the one arrow that runs up
        exception = home(item.file) == "mg_jax.loading" and target == "conversion"
        if exception and not item.at_once:
            continue
        if order[target] >= order[source]:
            wrong.append(str(item))
    assert not wrong, "\n".join(wrong)


def test_conversion_knows_shapes_not_training():
    training = (
        "mg_jax.data",
        "mg_jax.evals",
        "mg_jax.optim",
        "mg_jax.train",
        "mg_jax.assistant",
        "mg_jax.loading",
    )
    wrong = [
        str(item)
        for item in all_imports("conversion")
        if any(f"{item.name}.".startswith(f"{t}.") for t in training)
        # recordings of how upstream prepares data and reads answers
        and home(item.file)
        not in (
            "conversion.verify.mg_llava_data",
            "conversion.verify.ferret_tables",
            "conversion.verify.ferret_inputs",
        )
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_heavy_libraries_are_imported_late_or_never(package):
    wrong = []
    for item in all_imports(package):
        top = item.name.split(".")[0]
        if (home(item.file), top) in EXCEPTIONS and not item.at_once:
            continue
        if top in NEVER.get(package, ()) or (top in LAZY and item.at_once):
            wrong.append(str(item))
    assert not wrong, "\n".join(wrong)


def test_third_party_imports_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {normal(re.match(r"[\w.-]+", r).group()) for r in requirements}

    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    core = names(project["dependencies"])
    extras = project["optional-dependencies"]
    late = core.union(*(names(v) for k, v in extras.items() if k not in ("test", "lint")))
    distributions = packages_distributions()
    wrong = []
    for item in all_imports(*PACKAGES):
        top = item.name.split(".")[0]
        if top in PACKAGES or top in sys.stdlib_module_names:
            continue
        owners = {normal(d) for d in distributions.get(top, [SOLD_AS.get(top, top)])}
        if not owners & (core if item.at_once else late):
            wrong.append(f"{item}: not in pyproject.toml's dependencies")
    assert not wrong, "\n".join(wrong)


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_library_is_light():
    code = "import sys, mg_jax; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(run_python(code).split())
    assert not loaded & {"torch", "tensorflow", "transformers", "jax", "conversion"}


def test_importing_every_module_spares_the_heavy_libraries():
    code = """
import importlib, pkgutil, sys
import conversion, mg_jax
for package in (mg_jax, conversion):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print(*sorted({m.split('.')[0] for m in sys.modules}))
"""
    loaded = set(run_python(code).split())
    assert not loaded & {"torch", "tensorflow", "transformers"}


def test_public_names_are_found():
    import mg_jax
    from mg_jax.errors import UserError

    assert mg_jax.UserError is UserError
    assert re.fullmatch(r"\d+\.\d+\.\d+", mg_jax.__version__)
    assert set(mg_jax.__all__) <= set(dir(mg_jax))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = mg_jax.nonsense
