"""Check our models against recordings of the original implementations.

    python -m launch.verify DIR [--json] [--tolerance 1e-4]

DIR holds upstream-named weights (config.json, model.safetensors), inputs.npz and outputs.npz, or
the recordings of a part (ops.npz, preprocess.npz, tokenization.json, golden.json, Ferret's tables,
GroundingGPT's groundinggpt_*.json); of MG-LLaVA's instances the weights are in
state_dict.safetensors. Weights are converted, our model runs, and one line is printed per recorded
array: name, shape, largest absolute difference, tolerance, verdict; of Ferret also what is made of
recorded pictures and regions ("inputs/..."). The tolerance is absolute for
arrays of order one, times max(1, largest value) for larger ones, and never more than 1 % of the
largest value. Integers, booleans and texts must be equal. Exit status: 0 all match, 1 something
does not, 2 bad input.
"""

import argparse
import dataclasses
import json

from conversion.verify import TOLERANCE, Line, Report, verify
from launch.cli import run


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status. Raises UserError for a folder that is none."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help="folder of recordings")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="default %(default)s")
    args = parser.parse_args(argv)
    report = verify(args.folder, args.tolerance)
    print(as_json(args.folder, report) if args.json else as_text(report))
    return 0 if report.ok else 1


def as_text(report: Report) -> str:
    """One line per array, then the parts that failed and a summary."""
    width = max((len(line.name) for line in report.lines), default=0)
    lines = [_row(line, width) for line in report.lines]
    lines += [f"failed: {failure}" for failure in report.failures]
    good = sum(line.ok for line in report.lines)
    lines.append(f"{report.kind}: {good} of {len(report.lines)} recorded arrays match")
    return "\n".join(lines)


def as_json(folder: str, report: Report) -> str:
    """The report as one JSON object."""
    arrays = [dataclasses.asdict(line) for line in report.lines]
    summary = {"folder": str(folder), "kind": report.kind, "ok": report.ok}
    counts = {"arrays_total": len(arrays), "arrays_ok": sum(line.ok for line in report.lines)}
    return json.dumps({**summary, **counts, "failures": list(report.failures), "arrays": arrays})


def _row(line: Line, width: int) -> str:
    error = "-" if line.error is None else f"{line.error:.2e}"
    allowed = "-" if line.tolerance is None else f"{line.tolerance:.1e}"
    verdict = "ok" if line.ok else "MISS"
    shape = "x".join(map(str, line.shape)) or "scalar"
    row = f"{line.name:<{width}}  {shape:>14}  {error:>9}  {allowed:>8}  {verdict:<4}  {line.note}"
    return row.rstrip()


if __name__ == "__main__":
    run(main)
