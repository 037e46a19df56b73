"""The flags of `launch.synthesize`, and what they open."""

import argparse
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from mg_jax.data.synthesis import work
from mg_jax.data.synthesis.case import Tools
from mg_jax.data.synthesis.client import Endpoint
from mg_jax.data.synthesis.filters import Limits
from mg_jax.data.synthesis.journal import Journal
from mg_jax.data.synthesis.prompts import Prompts
from mg_jax.data.synthesis.recipes import KINDS, RECIPES
from mg_jax.errors import UserError

FAILED = 75  # exit status: some pictures failed for now
ADDRESSES = ("MG_JAX_BASE_URL", "OPENAI_BASE_URL")
_LIMITS = Limits()
LOOKS = 0.1  # the detector's own threshold; --min-confidence decides, and counts what it drops


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.synthesize",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("out", nargs="?", metavar="OUT", help="folder to write")
    p.add_argument("--recipe", default="tiny_grounding_gpt", choices=list(RECIPES),
                   help="what is made (default %(default)s)")  # fmt: skip
    p.add_argument("--pictures", metavar="DIR", help="folder of pictures")
    p.add_argument("--data", metavar="SPEC", help="or a data set, as coco:FILE,DIR")
    p.add_argument("--limit", type=_whole, metavar="N", help="only the first N pictures")
    p.add_argument("--offline", action="store_true", help="template language, no endpoint")
    _endpoint_flags(p.add_argument_group("endpoint"))
    g = p.add_argument_group("detector and OCR")
    g.add_argument("--detector", metavar="DIR",
                   help="Grounding DINO or OWLv2 of transformers (folder); without it the boxes "
                   "are those of --data")  # fmt: skip
    g.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, ...")
    g.add_argument("--tags", metavar="FILE", help="what it looks for, one a line, in all pictures")
    g.add_argument("--ocr", action="store_true", help="recipe ferret: read text (extra: ocr)")
    _content_flags(p.add_argument_group("content"))
    _filter_flags(p.add_argument_group("filters"))
    g = p.add_argument_group("going on")
    g.add_argument("--redo", action="store_true",
                   help="keep the answers in OUT/journal.jsonl, make all else anew: after a change "
                   "of data, filters, prompts or detector")  # fmt: skip
    g.add_argument("--overwrite", action="store_true", help="begin anew, answers included")
    return p


def _endpoint_flags(g: argparse._ArgumentGroup) -> None:
    g.add_argument("--base-url", metavar="URL",
                   help=f"http://HOST:PORT/v1 (default: ${' or $'.join(ADDRESSES)})")  # fmt: skip
    g.add_argument("--model", default="", metavar="NAME",
                   help="of the endpoint; not needed where it has one only")  # fmt: skip
    g.add_argument("--key-env", default="OPENAI_API_KEY", metavar="VAR",
                   help="variable with the key (default %(default)s)")  # fmt: skip
    g.add_argument("--parallel", type=_whole, default=4, metavar="N",
                   help="pictures at a time (default %(default)s)")  # fmt: skip
    g.add_argument("--rate", type=_positive, default=0.0, metavar="R",
                   help="requests a minute (default: no limit but the server's)")  # fmt: skip
    g.add_argument("--timeout", type=_above, default=120.0, metavar="S",
                   help="seconds for a whole answer (default %(default)g)")  # fmt: skip
    g.add_argument("--retries", type=_count, default=5, metavar="N",
                   help="of a request that failed (default %(default)s)")  # fmt: skip
    g.add_argument("--backoff", type=_positive, default=1.0, metavar="S",
                   help="seconds before the first retry, then doubled (default 1)")  # fmt: skip
    g.add_argument("--tries", type=_whole, default=3, metavar="N",
                   help="answers until an unusable one is given up (default 3)")  # fmt: skip
    g.add_argument("--temperature", type=_positive, default=0.7, metavar="T", help="default 0.7")
    g.add_argument("--max-tokens", type=_whole, default=2048, metavar="N", help="default 2048")
    g.add_argument("--stream", action="store_true", help="have answers streamed")
    g.add_argument("--extra", default="{}", metavar="JSON",
                   help="more fields of every request, as '{\"seed\": 1, \"max_tokens\": null}'; "
                   "null takes a field out")  # fmt: skip


def _content_flags(g: argparse._ArgumentGroup) -> None:
    g.add_argument("--kinds", default="+".join(KINDS), metavar="A+B",
                   help="recipe tiny_grounding_gpt: kinds of questions (default: all)")  # fmt: skip
    g.add_argument("--questions", type=_whole, default=2, metavar="N",
                   help="of a kind and picture (default %(default)s)")  # fmt: skip
    g.add_argument("--rounds", type=_whole, default=4, metavar="N",
                   help="of a conversation (default %(default)s)")  # fmt: skip
    g.add_argument("--options", type=_whole, default=4, metavar="N",
                   help="of a choice, at most (default %(default)s)")  # fmt: skip
    g.add_argument("--names", type=_whole, default=20, metavar="N",
                   help="looked for in a picture (default %(default)s)")  # fmt: skip
    g.add_argument("--prompts", metavar="DIR", help="prompts of your own in place of ours")
    g.add_argument("--copy-prompts", metavar="DIR", help="copy ours there, to be edited; no more")
    g.add_argument("--side", type=_whole, default=1024, metavar="PX",
                   help="longer side of a picture that is sent (default %(default)s)")  # fmt: skip
    g.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn")


def _filter_flags(g: argparse._ArgumentGroup) -> None:
    def add(name: str, kind: Any, text: str) -> None:
        key = "min_score" if name == "min-confidence" else name.replace("-", "_")
        value = getattr(_LIMITS, key)
        g.add_argument(f"--{name}", dest=key, type=kind, default=value, metavar="X",
                       help=f"{text} (default {value:g})")  # fmt: skip

    add("min-confidence", _share, "lowest score of a detected box")
    add("max-boxes", _whole, "most boxes of a name; recipe groma has no limit")
    add("min-area", _share, "smallest object image, as a share of the picture")
    add("max-area", _share, "largest object image")
    add("option-iou", _share, "overlap from which two object images are no options of one choice")
    add("region-iou", _share, "recipe groma: overlap from which one of two regions goes")
    add("min-regions", _whole, "recipe groma: fewest regions")
    add("max-regions", _whole, "recipe groma: most regions")


def _number(text: str, kind: Any, low: float, high: float) -> Any:
    try:
        value = kind(text)
        if low <= value <= high and value < float("inf"):
            return value
    except ValueError:
        pass
    bounded = high < float("inf")
    what = "a whole number" if kind is int else "a number" if bounded else "a finite number"
    limit = f"from {low:g} to {high:g}" if bounded else f"of at least {low:g}"
    raise argparse.ArgumentTypeError(f"{text!r}: give {what} {limit}")


def _whole(text: str) -> int:
    return int(_number(text, int, 1, float("inf")))


def _count(text: str) -> int:
    return int(_number(text, int, 0, float("inf")))


def _positive(text: str) -> float:
    return float(_number(text, float, 0, float("inf")))


def _above(text: str) -> float:
    if value := _positive(text):
        return value
    raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0")


def _share(text: str) -> float:
    return float(_number(text, float, 0, 1))


def open_work(args: argparse.Namespace) -> tuple[list[work.Item], str]:
    """(the pictures of the flags, what tells whether their source has changed). Raises UserError
    for an empty folder, a data set that cannot be read or names nothing, and flags that do not fit
    together."""
    if bool(args.pictures) == bool(args.data):
        raise UserError("give --pictures DIR or --data SPEC, one of them")
    if args.ocr and args.recipe != "ferret":
        raise UserError("--ocr: is for --recipe ferret")
    if args.pictures:
        if args.recipe == "ferret":
            raise UserError("--recipe ferret: needs questions and answers: give --data SPEC")
        if not args.detector:
            raise UserError("--pictures: have no boxes: --detector DIR finds them")
        if args.offline and not args.tags:
            raise UserError("--offline: say what to look for in --pictures with --tags FILE")
        items = work.of_folder(args.pictures)
        return items[: args.limit], work.state_of_folder(args.pictures, items)
    from mg_jax.data.sources import open_source

    source = open_source(args.data)
    items = work.of_source(source, args.limit)
    named = not args.detector or (args.offline and not args.tags and args.recipe != "ferret")
    if named and not (args.recipe == "ferret" and args.ocr):
        work.check_names(items, args.data)
    return items, work.state_of_source(source)


def open_tools(
    args: argparse.Namespace, texts: Prompts, source: str, stop: threading.Event
) -> Tools:
    """What the flags say to work with; source: its state, of `open_work`. Raises UserError for what
    cannot be used."""
    kinds = tuple(args.kinds.split("+"))
    if unknown := set(kinds) - set(KINDS):
        raise UserError(f"--kinds: unknown {sorted(unknown)[0]!r}: choose from {', '.join(KINDS)}")
    if twice := [kind for k, kind in enumerate(kinds) if kind in kinds[:k]]:
        raise UserError(f"--kinds: {twice[0]!r} is there twice: name each once")
    if args.redo and args.overwrite:
        raise UserError("--redo keeps the answers, --overwrite does not: give one of them")
    if args.tags and not args.detector:
        raise UserError("--tags: are what --detector looks for")
    if not 2 <= args.options <= len(ascii_uppercase):
        raise UserError(f"--options {args.options}: a choice has 2 to {len(ascii_uppercase)}")
    limits = Limits(**{name: getattr(args, name) for name in Limits.__dataclass_fields__})
    endpoint = _endpoint(args, stop)
    tags = tuple(_tags(args.tags)) if args.tags else ()
    detector = None
    if args.detector:
        from launch.grounding_dino import open_detector

        detector = open_detector(args.detector, args.device, min(LOOKS, limits.min_score))
    ocr = None
    if args.ocr:
        from launch.ocr import Reader

        ocr = Reader()
    from launch.taggers import caption_tags

    journal = Journal(
        Path(args.out) / "journal.jsonl",
        _settings(args, source, endpoint, texts, tags, limits),
        overwrite=args.overwrite,
        redo=args.redo,
    )
    return Tools(
        journal=journal,
        prompts=texts,
        limits=limits,
        endpoint=endpoint,
        detector=detector,
        ocr=ocr,
        tags=tags,
        nouns=caption_tags,
        kinds=kinds,
        seed=args.seed,
        side=args.side,
        tries=args.tries,
        count=args.questions,
        rounds=args.rounds,
        choices=args.options,
        most=args.names,
    )


def _tags(file: str) -> Sequence[str]:
    from launch.taggers import read_lines, words_of

    return words_of(read_lines(file, "--tags"))


def _endpoint(args: argparse.Namespace, stop: threading.Event) -> Endpoint | None:
    if args.offline:
        for flag in ("base_url", "model", "stream"):
            if getattr(args, flag):
                name = flag.replace("_", "-")
                raise UserError(f"--offline and --{name}: give one of them")
        return None
    url = args.base_url or next(filter(None, map(os.environ.get, ADDRESSES)), None)
    if not url:
        raise UserError("give --base-url URL of an endpoint, or --offline for template language")
    try:
        extra = json.loads(args.extra)
        if not isinstance(extra, dict):
            raise ValueError("is no object")
    except ValueError as e:
        raise UserError(f"--extra {args.extra}: no JSON object ({e})") from None
    key = os.environ.get(args.key_env, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:  # errors about it would print it
        raise UserError(
            f"--key-env {args.key_env}: its value is no key: it holds white space, a line break or "
            "other characters that no key has"
        )
    endpoint = Endpoint(
        url, args.model, key, timeout=args.timeout,
        retries=args.retries, rate=args.rate, backoff=args.backoff, temperature=args.temperature,
        max_tokens=args.max_tokens, stream=args.stream, extra=extra, stop=stop,
    )  # fmt: skip
    endpoint.check()
    return endpoint


def _settings(
    args: argparse.Namespace,
    source: str,
    endpoint: Endpoint | None,
    texts: Prompts,
    tags: Sequence[str],
    limits: Limits,
) -> dict[str, Any]:
    """What the finished pictures depend on: a journal with other settings is not gone on with."""
    folder = Path(args.detector).expanduser() if args.detector else None
    found: dict[str, Any] = {
        "recipe": args.recipe,
        "data": args.data or str(Path(args.pictures).expanduser().resolve()),
        "state of the data": source,  # pictures of --data are known by their number alone
        "model": endpoint.model if endpoint else None,
        "prompts": texts.digest if endpoint else None,
        "detector": folder and sorted((f.name, f.stat().st_size) for f in folder.glob("*.*")),
        "tags": tags,
    }
    keys = ("ocr", "kinds", "questions", "rounds", "options", "names", "side", "tries", "seed")
    if endpoint:
        keys += ("temperature", "max_tokens", "extra")
    found |= {key: getattr(args, key) for key in keys}
    return found | {name: getattr(limits, name) for name in Limits.__dataclass_fields__}
