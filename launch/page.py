"""Ask a grounded model about pictures on a web page (gradio, the extra `demo`).

    python -m launch.page --checkpoint groma-tiny [--port 7860] [--share]

One uploads a picture, marks regions by clicks or by typing pixels, and asks. Regions are named
<r:0>, <r:1>, ... in the order of their lines; one that the question does not name is appended.
Each browser has a conversation of its own with the one model, which answers one at a time; another
picture starts afresh. Only this machine sees the page, unless --share is given.
"""

import argparse
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from launch import chat, cli, detecting
from mg_jax.errors import UserError

KINDS = ("point", "point", "box", "box")  # of a line with so many commas; more: a polygon
MARK = 7  # the colour of given regions, the last that phrases take


@dataclass(eq=False)
class Session:
    """What one browser has. file, picture: what it asks about; log: lines of the conversation;
    drawn: the picture with the given regions and the last answer's boxes."""

    assistant: Any
    file: str | None = None
    picture: Any = None
    log: list[str] = field(default_factory=list)
    drawn: Any = None

    def look(self, file: str | None) -> None:
        """Turn to a picture; another one than before ends the conversation."""
        from mg_jax.vision.preprocess import load_image

        if file != self.file:
            try:
                picture = load_image(file) if file else None
            except UserError as e:  # a browser has no business with our folders
                raise UserError(str(e).replace(str(file), Path(str(file)).name)) from e
            self.assistant.reset()
            self.file, self.picture, self.log, self.drawn = file, picture, [], None

    def mark(self, text: str) -> list:
        """The regions of the lines, drawn on the picture."""
        from mg_jax import draw

        if self.picture is None:
            raise UserError("no picture yet: upload one first")
        height, width = self.picture.shape[:2]
        found = regions(text, width, height)
        boxes = [np.multiply(r.box, (width, height, width, height)).tolist() for r in found]
        names = [f"<r:{n}>" for n in range(len(boxes))]
        self.drawn = draw.draw_boxes(self.picture, boxes, names, [MARK] * len(boxes))
        return found


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def regions(text: str, width: int, height: int) -> list:
    """Regions of a width x height picture from lines of pixels: x,y of a point, x1,y1,x2,y2 of a
    box, more of a polygon. Raises UserError naming the line."""
    from mg_jax import places

    kinds = (*KINDS, "polygon")
    return [
        places.parse(kinds[min(line.count(","), len(KINDS))], line, width, height)
        for line in _lines(text)
    ]


def clicked(text: str, kind: str, x: int, y: int) -> str:
    """The lines after a click at pixel (x, y): a "point", or a corner of a "box"; until its other
    corner is given, the line of a box ends with a comma."""
    lines = _lines(text)
    if lines and (first := re.fullmatch(r"(\d+),(\d+),", lines[-1])):
        u, v = map(int, first.groups())
        lines[-1] = f"{min(x, u)},{min(y, v)},{max(x, u)},{max(y, v)}"
    else:
        lines.append(f"{x},{y}" + ("," if kind == "box" else ""))
    return "\n".join(lines)


class Page:
    """What the page does, without its looks; all browsers share the parameters of `assistant`."""

    def __init__(self, assistant: Any, max_new_tokens: int = 128):
        self.assistant, self.max_new_tokens = assistant, max_new_tokens
        self.lock = threading.Lock()

    def do(
        self, act: Callable, session: Session | None, file: str | None, text: str, question: str,
        *more: Any,
    ) -> tuple:  # fmt: skip
        """What is shown after `act`, one of the methods below: (session, conversation, drawing,
        lines of regions, question, note). A mistake becomes the note; what was typed stays."""
        session = session or Session(self.assistant.another())
        note = ""
        try:
            session.look(file)
            text, question = act(session, text, question, *more)
        except UserError as e:
            note = cli.error_line(e)
        return session, "\n".join(session.log), session.drawn, text, question, note

    def turn(self, session: Session, text: str, question: str) -> tuple[str, str]:
        """Another picture: the regions were of the one before."""
        return "", question

    def click(
        self, session: Session, text: str, question: str, kind: str, x: int, y: int
    ) -> tuple[str, str]:
        """Mark a place of the picture."""
        text = clicked(text, kind, x, y)
        session.mark(text.rstrip(","))  # a first corner shows as a point
        return text, question

    def ask(self, session: Session, text: str, question: str) -> tuple[str, str]:
        """Answer. Regions go with one question; those that follow know them from it."""
        from mg_jax.text import markup

        if not question.strip():
            raise UserError("no question yet: write one first")
        lines = _lines(text)
        if missing := [k for k in markup.regions_of(question) if k >= len(lines)]:
            raise UserError(f"<r:{missing[0]}> is not marked (regions go with one question)")
        blind = session.picture is None and session.assistant.adapter.text_alone
        given = [] if blind and not lines else session.mark(text)
        log, drawn = session.log, session.drawn
        with self.lock:
            answer = session.assistant.chat(
                session.picture, question, given, max_new_tokens=self.max_new_tokens
            )
        marks = [f"  <r:{n}>: {line}" for n, line in enumerate(lines)]
        log += [f"> {question}", *marks, *chat.told(answer), ""]
        if drawn is not None and session.log is log:  # no other picture came meanwhile
            session.drawn = answer.draw(drawn)
        return "", ""


def build(page: Page, first: np.ndarray | None = None) -> Any:
    """The page as gradio's Blocks, not yet served; it opens with the picture `first`."""
    import gradio as gr

    with gr.Blocks(title="mg_jax", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        session = gr.State(None)
        with gr.Row():
            with gr.Column():
                picture = gr.Image(first, type="filepath", image_mode=None, sources=["upload"],
                                   format="png", label="Picture: click on it")  # fmt: skip
                # gradio tells of a picture that it cannot read in many lines, load_image in one
                picture.preprocess = lambda data: data.path if data else None
                kind = gr.Radio(["box", "point"], value="box", label="Clicks mark a")
                text = gr.Textbox(lines=3, label="Regions of the next question, from number 0 on",
                                  info="one a line, in pixels: x1,y1,x2,y2 or x,y")  # fmt: skip
            with gr.Column():
                # a Chatbot would take <r:0> for HTML
                log = gr.Textbox(label="Conversation", lines=12, max_lines=12, interactive=False)
                question = gr.Textbox(label="Question", placeholder="What is <r:0>?")
                send = gr.Button("Ask", variant="primary")
                note = gr.Textbox(label="Note", interactive=False)
            drawn = gr.Image(label="Regions and answer", interactive=False, format="png")
        inputs = [session, picture, text, question]
        outputs = [session, log, drawn, text, question, note]

        def ask(*shown):
            return page.do(page.ask, *shown)

        def turn(*shown):
            return page.do(page.turn, *shown)

        def click(session, picture, text, question, kind, event: gr.SelectData):
            return page.do(page.click, session, picture, text, question, kind, *event.index)

        gr.on([send.click, question.submit], ask, inputs, outputs, api_name="ask")
        gr.on([picture.upload, picture.clear], turn, inputs, outputs, api_name="turn")
        picture.select(click, [*inputs, kind], outputs)
    return blocks


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        prog="python -m launch.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--checkpoint", default="groma-tiny", help="shipped name or release folder")
    cli.add_load_flags(p)
    detecting.add_detector(p)
    p.add_argument("--max-new-tokens", type=int, default=128)
    p.add_argument("--port", type=int, default=7860)
    p.add_argument("--share", action="store_true", help="a public address, which gradio lends")
    args = p.parse_args(argv)
    if not 0 < args.port < 2**16:
        raise UserError(f"--port {args.port}: give 1 to 65535")
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: give at least 1")
    try:
        import gradio  # noqa: F401
    except ImportError as e:
        raise UserError(
            f"the page comes with gradio, the extra demo: make setup EXTRAS=demo ({e})"
        ) from None
    from mg_jax.data.scenes import RESERVED_SEED, make_world, render

    assistant = cli.load(args.checkpoint, **cli.load_options(args), **detecting.options(args))
    detecting.refuse(args, assistant)
    scene = render(make_world(RESERVED_SEED, 1, 448, 448, min_objects=4, max_objects=7))
    blocks = build(Page(assistant, args.max_new_tokens), scene)
    try:
        blocks.launch(server_port=args.port, share=args.share, show_error=True)
    except OSError as e:
        raise UserError(f"--port {args.port}: is taken or not allowed; name another") from e


if __name__ == "__main__":
    cli.run(main)
