"""Video-ChatGPT's instructions (VideoInstruct100K), and where the file of a video is.

    VideoInstruct100K.json: [{"q": "What happens?", "a": "A man ...", "video_id": "v_k_ZXmr8pmrs"}]

Videos are VIDEO_ID with any of the endings in SUFFIXES, or a folder of frames with that name
(ActivityNet's videos come in several containers). Video-LLaVA's files are in the form of LLaVA
(`conversations.py`).
"""

from pathlib import Path

import numpy as np

from mg_jax.data.sources.base import MAX_BAD, Folder, Source, existing, fields
from mg_jax.data.sources.free_text import to_markup
from mg_jax.data.sources.json_rows import JsonRows
from mg_jax.data.sources.measures import VIDEO, tokens_about
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Turn

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif")


def find_video(folder: Folder, name: str) -> str | None:
    """The path of the video as named, else the same name with another ending or none."""
    stem = name[: name.rindex(".")] if name.lower().endswith(SUFFIXES) else name
    names = (name, *(stem + suffix for suffix in SUFFIXES), stem)
    return next(filter(None, map(folder.find, names)), None)


class VideoInstructSource(Source):
    """The questions on each video of VideoInstruct100K, one conversation a video.

    per="question": one conversation a question. Width and height are 0: the video is not opened.
    Questions on videos without a file and those with an empty answer are left out and counted.
    Raises UserError for a missing or malformed file, or when no video of it is in the folder.
    """

    def __init__(
        self,
        file: str | Path = "",
        videos: str | Path = "",
        per: str = "video",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(file, "VideoInstruct100K")
        folder = Folder(existing(videos, f"videos of {path.name}", folder=True))
        super().__init__(name or path.stem, head, max_bad)
        if per not in ("video", "question"):
            raise UserError(f"data {self.name}: per={per}: choose video or question")
        self._talks: dict[str, tuple[str, str, list[Turn]]] = {}  # id: (video, its file, turns)
        files: dict[str, str | None] = {}
        total = 0
        for where, n, row in JsonRows(path).scan():
            total += 1
            try:
                fields(row, {"q": str, "a": str, "video_id": str})
                if not row["q"].strip():
                    raise BadRecord("q is empty")
            except BadRecord as e:
                self.problem(where, str(e))
                continue
            video = row["video_id"]
            if video not in files:
                files[video] = find_video(folder, video)
            found = files[video]
            if found is None:
                self.counts["questions on videos without a file"] += 1
            elif not row["a"].strip():
                self.counts["empty answers"] += 1
            else:
                key = video if per == "video" else f"{video}-{n}"
                turns = self._talks.setdefault(key, (video, found, []))[2]
                turns.append(Turn(to_markup(row["q"].strip()), to_markup(row["a"].strip())))
        self.opened(total)
        if files and not any(files.values()):
            raise UserError(
                f"{folder.path}: holds none of the {len(files)} videos of {path}, "
                f"for example {next(iter(files))}"
            )
        if not self._talks:
            raise UserError(f"{path}: holds no question with an answer")
        self._order = list(self._talks)

    def __len__(self) -> int:
        return len(self._order)

    def measures(self) -> np.ndarray:
        found = [(VIDEO, tokens_about(self._talks[key][2])) for key in self._order]
        return np.array(found, np.int32)

    def __getitem__(self, i: int) -> Example:
        key = self._order[i]
        video, file, turns = self._talks[key]
        return Example(
            None,
            0,
            0,
            turns=tuple(turns),
            id=f"{self.name}-{key}",
            source=self.name,
            video=file,
            meta={"task": "conversation", "video_id": video, "file_name": Path(file).name},
        )
