"""Run a recorded instance of an original implementation and compare every recorded array.

The arrays that must be produced are the names in the recordings' zip directories, and of Ferret's
inputs those that its host side makes, pixels and masks ("inputs/..."). The recordings
themselves are opened only after ours exist, save the draws of upstream's random number generator
and the inputs that a file keeps beside its outputs; both are reported as such.

Tolerance of an array: `tolerance` (1e-4) absolute while its largest finite value is of order one,
times max(1, largest) beyond that, and at most 1 % of the largest (but 1e-6 always), so that an
array of small numbers cannot pass as zeros. Integers, booleans and strings are compared exactly,
infinities must stand at the same places with the same sign, and a NaN is a miss.
"""

import dataclasses
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.errors import UserError

TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Masked:
    """A produced array of which only the places where `mask` holds mean anything.

    `mask` covers the leading axes (padding positions of a batch, say).
    """

    array: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Case:
    """What a folder asks for and how to answer.

    `required`: names of recorded arrays. `given`: name -> "fed" or "input" for those read
    beforehand. `produce()`: our arrays by name, and one line for every part that failed.
    A value may be a Masked, or a dict of variants (two forms of an operation) that must all fit.
    """

    kind: str
    required: tuple[str, ...]
    given: Mapping[str, str]
    produce: Callable[[], tuple[dict[str, Any], list[str]]]
    recorded: Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Line:
    """Verdict on one recorded array. `error`: largest absolute difference (count if exact)."""

    name: str
    shape: tuple[int, ...]
    error: float | None
    tolerance: float | None
    ok: bool
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """Verdicts in the order of the recordings, and the parts that failed to run."""

    kind: str
    lines: tuple[Line, ...]
    failures: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True when every recorded array is matched and every part ran."""
        return bool(self.lines) and all(line.ok for line in self.lines) and not self.failures


def verify(folder: str | Path, tolerance: float = TOLERANCE) -> Report:
    """Verify a folder of recordings. Raises UserError when it is none or cannot be read."""
    case = open_case(Path(folder))
    produced, failures = case.produce()
    lines = tuple(_judge(name, case, produced, tolerance) for name in case.required)
    return Report(case.kind, lines, tuple(failures))


def open_case(folder: Path) -> Case:
    """The case of a folder, told by the files present."""
    from conversion.verify import parts

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / "state_dict.safetensors").exists():
        from conversion.verify import mg_llava

        return mg_llava.case(folder)
    from conversion.verify import groundinggpt_tables, mg_llava_data

    tables = [c for c in (_ferret_tables(folder), groundinggpt_tables.check(folder)) if c]
    if tables:
        return _together(tables)
    if case := mg_llava_data.find(folder):
        return case
    if (folder / "outputs.npz").exists():
        return _whole(folder)
    for mark, make in (
        ("ops.npz", parts.ops_case),
        ("preprocess.npz", parts.preprocess_case),
        ("tokenization.json", parts.tokenizer_case),
    ):
        if (folder / mark).exists():
            return make(folder)
    raise UserError(
        f"{folder}: holds none of outputs.npz, golden.json, ops.npz, preprocess.npz, "
        "tokenization.json, select_best_resolution.json, parsed_answers.json, "
        "groundinggpt_postprocess.json, groundinggpt_prompts.json"
    )


def _whole(folder: Path) -> Case:
    """A system's recorded instance, told by its config.json."""
    from conversion.hf_config import is_ferret
    from conversion.verify import ferret, ferret_sketch, groma
    from mg_jax.disk import read_json

    npz_names(folder / "outputs.npz")  # a file that is none is said before anything that is missing
    raw = read_json(folder / "config.json")
    if is_ferret(raw):
        return ferret.case(folder)
    if "model_type" not in raw and raw.keys() >= {"clip", "dinov2"}:
        return ferret_sketch.case(folder)
    return groma.case(folder)


def _ferret_tables(folder: Path) -> Case | None:
    """Ferret's tables, None where there are none."""
    marks = ("select_best_resolution.json", "parsed_answers.json")
    if not any((folder / mark).exists() for mark in marks):
        return None
    from conversion.verify import ferret_tables

    return ferret_tables.case(folder)


def _together(cases: Sequence[Case]) -> Case:
    """Cases of one folder, whose arrays have different names, as one."""
    owner = {name: case for case in cases for name in case.required}

    def produce() -> tuple[dict[str, Any], list[str]]:
        ours: dict[str, Any] = {}
        failures: list[str] = []
        for case in cases:
            made, failed = case.produce()
            ours, failures = ours | made, failures + failed
        return ours, failures

    return Case(
        " and ".join(case.kind for case in cases),
        tuple(owner),
        {name: how for case in cases for name, how in case.given.items()},
        produce,
        lambda name: owner[name].recorded(name),
    )


def compare(name: str, ours: Any, recorded: Any, tolerance: float = TOLERANCE) -> Line:
    """Verdict on one array (or variants, or Masked) by the rule of this module."""
    if isinstance(ours, Mapping):
        lines = [compare(name, v, recorded, tolerance) for v in ours.values()]
        noted = [
            dataclasses.replace(line, note=f"{variant} {line.note}".strip())
            for variant, line in zip(ours, lines, strict=True)
        ]
        return max(noted, key=lambda line: (not line.ok, line.error or 0.0))
    note = ""
    if isinstance(ours, Masked):
        mask, ours = np.asarray(ours.mask), np.asarray(ours.array)
        recorded = np.asarray(recorded)
        if ours.shape == recorded.shape:
            note = f"{int(mask.sum())} of {mask.size} positions (no padding)"
            shape = recorded.shape
            line = compare(name, ours[mask], recorded[mask], tolerance)
            return dataclasses.replace(line, shape=shape, note=f"{note} {line.note}".strip())
    if isinstance(recorded, str):
        same = ours == recorded
        return Line(name, (), float(not same), 0.0, same, "" if same else f"{ours!r}")
    ours, recorded = np.asarray(ours), np.asarray(recorded)
    exact = recorded.dtype.kind in "iub"
    if ours.shape != recorded.shape:
        return Line(name, recorded.shape, None, None, False, f"ours has shape {list(ours.shape)}")
    if exact:
        if ours.dtype.kind not in "iub":
            return Line(name, recorded.shape, None, 0.0, False, f"ours is {ours.dtype}")
        difference = np.abs(ours.astype(np.int64) - recorded.astype(np.int64))
        error = float(difference.max(initial=0))
        return Line(name, recorded.shape, error, 0.0, error == 0.0, note)
    ours, recorded = ours.astype(np.float64), recorded.astype(np.float64)
    finite = np.isfinite(recorded)
    largest = float(np.abs(recorded[finite]).max(initial=0.0))
    allowed = max(min(tolerance * max(1.0, largest), 0.01 * largest), 0.01 * tolerance)
    if not np.array_equal(ours[~finite], recorded[~finite]):
        return Line(name, recorded.shape, None, allowed, False, "infinities differ")
    if not np.isfinite(ours[finite]).all():
        return Line(name, recorded.shape, None, allowed, False, "ours is not finite everywhere")
    error = float(np.abs(ours[finite] - recorded[finite]).max(initial=0.0))
    return Line(name, recorded.shape, error, allowed, error <= allowed, note)


def npz_names(path: Path) -> list[str]:
    """Names of the arrays in an .npz, from its directory; no array is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except zipfile.BadZipFile:
        raise UserError(f"{path}: not an .npz archive, or cut short") from None


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """{array: shape} of an .npz, from the heads of its members; no array is read."""
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_2_0
                head = np.lib.format.read_array_header_1_0 if version == (1, 0) else read
                shapes[name.removesuffix(".npy")] = head(member)[0]
    return shapes


def npz_need(path: Path, names: Iterable[str]) -> None:
    """Raises UserError when an .npz lacks one of the arrays `names`."""
    if missing := sorted(set(names) - set(npz_names(path))):
        raise UserError(f"{path}: no array {missing[0]!r}")


def npz_read(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays `names` of an .npz, and no others."""
    names = list(names)
    npz_need(path, names)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names}
    except (ValueError, zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: unreadable ({error})") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy hands out what it cannot parse as bytes
            raise UserError(f"{path}: {name} is not an array")
    return arrays


def _judge(name: str, case: Case, produced: Mapping[str, Any], tolerance: float) -> Line:
    recorded = case.recorded(name)
    shape = () if isinstance(recorded, str) else np.asarray(recorded).shape
    if case.given.get(name) == "input":
        return Line(name, shape, None, None, True, "input")
    if name not in produced:
        return Line(name, shape, None, None, False, "not produced")
    line = compare(name, produced[name], recorded, tolerance)
    if name in case.given:
        return dataclasses.replace(line, note=f"{case.given[name]} {line.note}".strip())
    return line
