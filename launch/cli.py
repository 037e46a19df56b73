"""What every command line shares: exit codes, and errors as one line (a list under it indented).

0 done, 2 bad input or a full disk, 130 after Ctrl-C; a launcher may return codes of its own.
MG_JAX_TRACEBACK=1 shows the whole traceback of a user error.
"""

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mg_jax.errors import UserError


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and exit with its code; mistakes of the user become an error on stderr."""
    try:
        code = main() or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _say("interrupted", 130)
    except BrokenPipeError:
        # the reader (head, less) has gone: no complaint now, nor at the flush on exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except UserError as e:
        if os.environ.get("MG_JAX_TRACEBACK"):
            raise
        code = _say(error_line(e), 2)
    except Exception as e:
        if not full_disk(e):
            raise
        where = f" for {e.filename}" if isinstance(e, OSError) and e.filename else ""
        mend = "free some or name another folder; what was saved before is kept"
        code = _say(f"error: no space left on the disk{where}: {mend}", 2)
    sys.exit(code)


def error_line(e: UserError) -> str:
    """What a user is told of a mistake."""
    first, *more = [line.strip() for line in str(e).splitlines() if line.strip()]
    return "\n  ".join([f"error: {first}", *more])


def parse_flags(argv: Sequence[str] | None = None) -> list[str]:
    """Parse absl flags, the config file's among them; returns the arguments that are no flags.

    Raises UserError for an unknown flag, a bad value, an unknown config key or a missing file.
    """
    from absl import app, flags

    app.define_help_flags()
    try:
        rest = flags.FLAGS(list(sys.argv if argv is None else argv))[1:]
        if getattr(flags.FLAGS, "config", None) is not None:
            _ = flags.FLAGS.config.lock  # a file that failed to load complains only when touched
    except SystemExit:  # absl's --help leaves with 1
        sys.exit(0)
    except (flags.Error, OSError) as e:
        if missing := re.search(r"\[Errno \d+\] (.+): '(.+)'", str(e)):
            raise UserError(f"--config {missing[2]}: {missing[1].lower()}") from e
        # several lines are "flag --config=F: Error whilst parsing", a traceback, the reason
        first, *more = [line.strip() for line in str(e).strip().splitlines()]
        flag = first.partition(": Error whilst")[0].rpartition("load: ")[2]
        reason = more[-1].removeprefix("mg_jax.errors.UserError: ") if more else ""
        raise UserError(f"{flag}: {reason}" if more else first) from e
    except (AttributeError, KeyError) as e:
        if found := re.search(r"<class '(\w+)'>\.(\w+) does not exist", str(e)):
            kind, key = found.groups()
            raise UserError(f"unknown config key {key!r}: it stands behind one {kind}") from e
        key, *near = re.findall(r"(\w+)\\?['\"]", str(e))
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown config key {key!r}{hint}") from e
    return rest


# Of every program that may run as several processes: name, default, what it stands for, help
_DISTRIBUTED = "several machines, which the cluster tells of (docs/pods.md)"
_PROCESS_FLAGS: tuple[tuple[str, str | int, str, str], ...] = (
    ("coordinator", "", "HOST:PORT", "of process 0, where no cluster tells"),
    ("processes", 0, "N", "how many processes there are"),
    ("process", -1, "I", "number of this one, from 0"),
    ("heartbeat", 100, "SECONDS", "without a sign until a process counts as gone, default 100"),
)


def define_process_flags() -> None:
    """Define the flags of several processes with absl."""
    from absl import flags

    flags.DEFINE_boolean("distributed", False, _DISTRIBUTED)
    for name, default, unit, words in _PROCESS_FLAGS:
        define = flags.DEFINE_string if isinstance(default, str) else flags.DEFINE_integer
        define(name, default, f"{unit} {words}")


def add_process_flags(p: argparse.ArgumentParser) -> None:
    """Add the same flags to an argparse command line."""
    p.add_argument("--distributed", action="store_true", help=_DISTRIBUTED)
    for name, default, unit, words in _PROCESS_FLAGS:
        p.add_argument(f"--{name}", type=type(default), default=default, metavar=unit, help=words)


def join_processes(given: Any) -> bool:
    """Join the other processes that the flags (absl's, or argparse's) speak of; whether there are
    any.

    Where they are not found in time the program ends with 1, on which a launcher starts it again.
    """
    if not (given.distributed or given.coordinator or given.processes or given.process >= 0):
        return False
    from mg_jax import processes

    try:
        processes.start(given.coordinator, given.processes, given.process, given.heartbeat)
    except processes.Apart as e:
        print(f"error: {e}: start all of them again", file=sys.stderr)
        processes.leave(1)
    return True


def keep_compiled() -> None:
    """Keep compiled programs for the next start, unless JAX_COMPILATION_CACHE_DIR names a place.

    Call it before the first is compiled: jax asks for the place once. Not on a CPU: a home folder
    shared by unlike machines would offer them each other's programs.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None and jax.default_backend() != "cpu":
        home = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "mg_jax", "compiled"))


def add_load_flags(p: argparse.ArgumentParser) -> None:
    """--quantize, --dtype and --mesh, of commands that ask a model."""
    quants, dtypes, meshes = ("none", "int8", "int4"), ("float32", "bfloat16"), ("none", "auto")
    p.add_argument("--quantize", default="none", choices=quants, help="language model's kernels")
    p.add_argument("--dtype", default="float32", choices=dtypes, help="bfloat16: half the memory")
    p.add_argument("--mesh", default="none", choices=meshes, help="auto: split over all devices")


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags of `add_load_flags` change of the arguments of `mg_jax.load`."""
    usual = {"quantize": "none", "dtype": "float32", "mesh": "none"}
    return {name: given for name, value in usual.items() if (given := getattr(args, name)) != value}


def load(source: str | Path, **options: Any) -> Any:
    """`mg_jax.load` in a program: what it compiles is kept for the next start."""
    import mg_jax

    keep_compiled()
    return mg_jax.load(source, **options)


def check_release(out: Path, inputs: Sequence[Path]) -> None:
    """Raises UserError when something else than a release is in the way, or it holds an input."""
    from mg_jax import checkpoint

    whole = out.resolve()
    for read in inputs:
        if whole in (read.resolve(), *read.resolve().parents):
            raise UserError(f"--out {out}: holds {read}, which is read here; name another folder")
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not checkpoint.is_release(out)):
        raise UserError(f"--out {out}: is there and is no release; name another folder")


def check_picture(name: str, flag: str = "--out", inputs: Sequence[str] = ()) -> None:
    """Raises UserError unless a picture can be written under that name, as Pillow knows it, and
    none of the `inputs` is lost by that."""
    from PIL import Image

    path = Path(name)
    if not path.absolute().parent.is_dir():
        raise UserError(f"{flag} {path}: no folder {path.parent}")
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE or path.is_dir():
        raise UserError(f"{flag} {path}: name a file that ends in .png or .jpg")
    if path.exists() and any(Path(i).exists() and path.samefile(i) for i in inputs):
        raise UserError(f"{flag} {path}: is read here, and would be lost: name another file")


def full_disk(e: BaseException | None) -> bool:
    """Whether a full disk is behind an error, whichever library wraps it."""
    while e is not None:
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(e) or "Disk quota exceeded" in str(e):
            return True
        e = e.__cause__ or e.__context__
    return False


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code
