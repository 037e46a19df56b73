"""Train a tokenizer on the conversations of a data source or on a text file.

    python -m launch.train_tokenizer --data scenes:seed=0,n=20000 --pieces 2000 --out DIR
    python -m launch.train_tokenizer --data "coco:FILE,DIR,part=train * 30" --pieces 1500 --out DIR

Examples without conversations are asked about their annotations, 30 times each with a share of 30.

Writes a folder in the Hugging Face layout (tokenizer.model, tokenizer_config.json,
added_tokens.json, special_tokens_map.json) with the 114 tokens of Groma. No picture is drawn or
read, and the same command writes the same bytes.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch import cli


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.train_tokenizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="SPEC", help="data sources as of --config.data")
    source.add_argument("--text", metavar="FILE", help="UTF-8 text file, one text a line")
    p.add_argument("--pieces", type=int, default=2000, help="at most so many pieces (2000)")
    p.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    return p


def conversation_texts(spec: str) -> Iterator[str]:
    """The texts of data sources between their marks, with the space before as when tokenised."""
    from mg_jax.data.pipeline import open_mixture
    from mg_jax.text import markup, templates
    from mg_jax.text.codecs.groma import IMAGE_TURN

    template = templates.get("llava")
    roles = template.user, template.assistant
    for turns in (t for s in zip(*open_mixture(spec), strict=True) for t in conversations(*s)):
        yield f" {template.system} {roles[0]}: {IMAGE_TURN[0]} {roles[1]}: {IMAGE_TURN[1]}"
        for turn in turns:
            # A question follows "USER: ", an answer a control token, and so does the text
            # behind a mark
            question = [s.text.strip() for s in markup.parse(turn.user)]
            yield f"{roles[0]}: {question[0] if question else ''}"
            yield from question[1:]
            yield f" {roles[1]}:"
            yield from (s.text.strip() for s in markup.parse(turn.assistant or ""))


def conversations(source, share: float) -> Iterator[Sequence[Any]]:
    """The turns of every example, `share` times; made of its annotations where it has none."""
    import numpy as np

    from mg_jax.data.tasks import converse, parse_tasks
    from mg_jax.errors import BadRecord
    from mg_jax.text import instructions

    tasks, wording = source.tasks or parse_tasks("auto"), instructions.get("groma")
    for n in range(round(len(source) * share)):
        example = source[n % len(source)]
        example.meta["frequency"] = source.frequency
        if not example.turns:
            with suppress(BadRecord):  # boxes without names: there is nothing to say
                example = converse(example, np.random.default_rng(n), tasks, wording) or example
        yield example.turns


def file_texts(path: str) -> Iterator[str]:
    """The lines of a text file, each with a leading space. Raises UserError if unreadable."""
    from mg_jax.errors import UserError

    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot read --text {path}: {e}") from e
    return (f" {line.strip()}" for line in lines if line.strip())


def main(argv: list[str] | None = None) -> int:
    """Train and save; prints one line with the number of pieces and characters per token."""
    args = arguments().parse_args(argv)
    from mg_jax.disk import disk_errors
    from mg_jax.text.codecs.groma import GROMA_TOKENS
    from mg_jax.text.tokenizer import Tokenizer, train_model

    texts = list(conversation_texts(args.data) if args.data else file_texts(args.text))
    model = train_model(texts, args.pieces)
    base = Tokenizer(model, {})
    added = {token: base.vocab_size + n for n, token in enumerate(GROMA_TOKENS)}
    tokenizer = Tokenizer(model, added)
    with disk_errors(Path(args.out)):
        tokenizer.save(args.out)
    sample = texts[:: max(1, len(texts) // 2000)]
    tokens = sum(len(tokenizer.encode_parts([text], bos=False)) for text in sample)
    ratio = sum(map(len, sample)) / max(tokens, 1)
    print(
        f"{args.out}: {tokenizer.vocab_size} pieces and {len(added)} added tokens, "
        f"{ratio:.2f} characters a token on its own text"
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
