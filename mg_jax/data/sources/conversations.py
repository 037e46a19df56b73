"""Dialogues in the form of LLaVA: one JSON list of rows, or one row a line.

    [{"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                        {"from": "gpt", "value": "A bus."}, ...]}]

So come LLaVA-Pretrain (blip_laion_cc_sbu_558k.json, and chat.json of CC3M-595K), LLaVA-Instruct
(llava_instruct_150k.json, conversation_58k, detail_23k, complex_reasoning_77k), its mix
(llava_v1_5_mix665k.json, with folders coco/train2017, gqa/images, ocr_vqa/images,
textvqa/train_images, vg/VG_100K and vg/VG_100K_2 under the folder of pictures), ShareGPT4V
(sharegpt4v_instruct_gpt4-vision_cap100k, its mix665k, and for pretraining
share-captioner_coco_lcs_sam_1246k_1107.json), ALLaVA (ALLaVA-Caption- and ALLaVA-Instruct-, each
-LAION-4V and -VFLAN-4V, and the text of Evol-Instruct) and the video sets of Video-LLaVA
(valley_llavaimage.json, videochatgpt_llavaimage_tune.json, rows with "video" for "image").

Rows without "image" and "video", or with empty ones, are text alone. Other keys (model, url,
original_caption, markdown, ...) are not kept.
"""

import re
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.data.sources.base import MAX_BAD, Folder, Source, existing, fields
from mg_jax.data.sources.free_text import to_markup
from mg_jax.data.sources.json_rows import JsonRows
from mg_jax.data.sources.measures import PICTURE, TEXT, VIDEO, tokens_about
from mg_jax.data.sources.video import find_video
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.vision.preprocess import image_size

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
          "system": "system"}  # fmt: skip
_PLACEHOLDER = re.compile(r"<(?:image|video)>")
# Four shares of the padded square as Python prints them; whole numbers are no boxes
_BOX = re.compile(r"\[(?:[01]?\.\d+, ?){3}[01]?\.\d+\]")


class ConversationSource(Source):
    """The rows of a LLaVA file as `Example`s with turns.

    The picture stands before the text, so `<image>` and `<video>` are taken out of the questions
    of rows that have one. Messages of one speaker in a row are joined by a line break. Left out
    and counted: system messages (kept in meta["system"]), answers before the first question,
    exchanges with an empty answer or none, rows that hold no other, and rows whose picture or
    video has no file.

    text: "drop" leaves out, and counts, rows of text alone. boxes: "regions" turns boxes in the
    text, [0.28, 0.34, 0.4, 0.71] in shares of the picture padded to a square, into regions; a side
    that rounding made zero gets the width of one rounding step. "text" leaves them.
    Raises UserError for a missing file, one that is neither list nor jsonl, too many malformed
    rows, or when none of the pictures is there.
    """

    def __init__(
        self,
        file: str | Path = "",
        images: str | Path = "",
        boxes: str = "text",
        text: str = "keep",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(file, "conversations")
        super().__init__(name or path.stem, head, max_bad)
        if boxes not in ("text", "regions"):
            raise UserError(f"data {self.name}: boxes={boxes}: choose text or regions")
        if text not in ("keep", "drop"):
            raise UserError(f"data {self.name}: text={text}: choose keep or drop")
        self._regions = boxes == "regions"
        self.folder = Folder(existing(images, "pictures", True) if images else path.parent)
        self._rows = JsonRows(path)
        self._keys: list[Any] = []
        self._measures = array("i")
        total = wanted = seen = 0
        first = ""
        for where, key, row in self._rows.scan():
            total += 1
            try:
                media = self._media(row)
                turns, _ = self._dialogue(row, bool(media), self.counts)
                if self._regions and media:
                    for box in (b for t in turns for b in _BOX.findall(f"{t.user}{t.assistant}")):
                        _corners(box)
            except BadRecord as e:
                self.problem(where, str(e))
                continue
            if media:
                wanted, first = wanted + 1, first or media[1]
                if self._find(*media) is None:
                    self.counts[f"{media[0]}s without a file"] += 1
                    continue
                seen += 1
            if not turns:
                self.counts["conversations without an answer"] += 1
            elif not media and text == "drop":
                self.counts["texts without a picture"] += 1
            else:
                self._keys.append(key)
                medium = (PICTURE if media[0] == "picture" else VIDEO) if media else TEXT
                self._measures.extend((medium, tokens_about(turns)))
                self._rows.keep()
        self.opened(total)
        if wanted and not seen:
            raise UserError(
                f"{self.folder.path}: holds none of the {wanted} pictures of {path}, "
                f"for example {first}"
            )
        if not self._keys:
            raise UserError(f"{path}: holds no conversation")

    def _find(self, kind: str, name: str) -> str | None:
        return self.folder.find(name) if kind == "picture" else find_video(self.folder, name)

    @staticmethod
    def _media(row: Any) -> tuple[str, str] | None:
        """("picture" or "video", its name in the file), or None for text alone."""
        fields(row, {"conversations": list})
        found = []
        for key, kind in (("image", "picture"), ("video", "video")):
            name = row.get(key)
            if isinstance(name, list) and len(name) == 1:
                name = name[0]
            if name:
                if not isinstance(name, str):
                    raise BadRecord(f"{key} is {name!r}, expected the name of one file")
                found.append((kind, name))
        if len(found) > 1:
            raise BadRecord("names a picture and a video, expected one of them")
        return found[0] if found else None

    @staticmethod
    def _dialogue(row: Any, media: bool, counts: Counter[str]) -> tuple[tuple[Turn, ...], str]:
        """The turns and the system message. Raises BadRecord naming the message at fault."""
        said: list[tuple[str, list[str]]] = []
        system = []
        for n, message in enumerate(row["conversations"]):
            try:
                fields(message, {"from": str, "value": str})
            except BadRecord as e:
                raise BadRecord(f"conversations[{n}]: {e}") from None
            role, text = _ROLES.get(message["from"].lower()), message["value"]
            if role is None:
                raise BadRecord(
                    f"conversations[{n}]: from is {message['from']!r}, expected human or gpt"
                )
            if role == "user" and media and _PLACEHOLDER.search(text):
                text = _PLACEHOLDER.sub("", text).strip()
            text = to_markup(text)
            if role == "system":
                system.append(text)
            elif said and said[-1][0] == role:
                said[-1][1].append(text)
            else:
                said.append((role, [text]))
        counts["system messages"] += len(system)
        if said and said[0][0] == "assistant":
            counts["answers before a question"] += 1
            del said[0]
        if len(said) % 2:
            counts["questions without an answer"] += 1
            del said[-1]
        turns = []
        for (_, asked), (_, answered) in zip(said[::2], said[1::2], strict=True):
            turn = Turn("\n".join(asked), "\n".join(answered))
            if (turn.assistant or "").strip():
                turns.append(turn)
            else:
                counts["empty answers"] += 1
        return tuple(turns), "\n".join(system)

    def __len__(self) -> int:
        return len(self._rows)

    def measures(self) -> np.ndarray:
        return np.array(self._measures, np.int32).reshape(-1, 2)

    def __getitem__(self, i: int) -> Example:
        row, key = self._rows[i], self._keys[i]
        media = self._media(row)
        turns, system = self._dialogue(row, bool(media), Counter())
        meta = {"task": "conversation", "id": row.get("id", row.get("idx", key))}
        if system:
            meta["system"] = system
        example = Example(
            None, 0, 0, turns=turns, id=f"{self.name}-{key}", source=self.name, meta=meta
        )
        if media is None:
            return example
        meta["file_name"] = media[1]
        file = self._find(*media)
        if media[0] == "video":
            example.video = file or ""
            return example
        try:
            example.image, (example.width, example.height) = file, image_size(file or "")
            if self._regions:
                example.turns, example.regions = with_regions(turns, example.width, example.height)
        except UserError as e:
            raise BadRecord(str(e)) from None
        return example


def with_regions(
    turns: tuple[Turn, ...], width: int, height: int
) -> tuple[tuple[Turn, ...], tuple[Region, ...]]:
    """The turns with `<r:k>` for each box in their text, and the regions in order of appearance.

    Equal boxes are one region. Raises UserError for a box that lies in the padding.
    """
    from mg_jax.boxes import BoxSpace  # here, so that other readers do not need jax

    space = BoxSpace.pad(width, height, max(width, height))
    numbers: dict[tuple[float, ...], int] = {}
    regions: list[Region] = []

    def number(match: re.Match[str]) -> str:
        corners = _corners(match[0])
        if corners not in numbers:
            box = space.to_original(np.array(corners))
            try:
                regions.append(Region.from_box(box.tolist(), clip=True))
            except UserError:
                raise UserError(
                    f"box {match[0]} lies beside the picture of {width}x{height} in its square"
                ) from None
            numbers[corners] = len(numbers)
        return f"<r:{numbers[corners]}>"

    marked = tuple(
        Turn(_BOX.sub(number, t.user), _BOX.sub(number, t.assistant or "")) for t in turns
    )
    return marked, tuple(regions)


def _corners(text: str) -> tuple[float, float, float, float]:
    """Corners of a box in a text. Raises BadRecord for reversed ones."""
    numbers = text[1:-1].split(",")
    x0, y0, x1, y1 = map(float, numbers)
    if x1 < x0 or y1 < y0:
        raise BadRecord(f"box {text} is reversed")
    half = 0.5 * 10.0 ** -max(len(n.partition(".")[2]) for n in numbers)
    if x1 == x0:
        x0, x1 = x0 - half, x1 + half
    if y1 == y0:
        y0, y1 = y0 - half, y1 + half
    return x0, y0, x1, y1
