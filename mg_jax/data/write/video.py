"""Video-ChatGPT's instructions, and copies of videos."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from mg_jax.data.sources.free_text import from_markup
from mg_jax.data.video import COUNT
from mg_jax.data.write.base import write_json
from mg_jax.example import Example


def copy_video(example: Example, folder: Path) -> str:
    """Copy the video, a file or a folder of frames, into the folder as ID or ID.SUFFIX, and return
    that name. One that is drawn when asked for becomes a folder of `COUNT` frames."""
    if callable(example.video):
        (folder / example.id).mkdir(parents=True, exist_ok=True)
        for i, frame in enumerate(example.frames(COUNT)):
            Image.fromarray(frame).save(folder / example.id / f"{i:04}.png")
        return example.id
    source = Path(example.video)
    folder.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, folder / example.id, dirs_exist_ok=True)
        return example.id
    name = f"{example.id}{source.suffix}"
    shutil.copyfile(source, folder / name)
    return name


def write_video_instruct(examples: Iterable[Example], folder: str | Path) -> tuple[Path, Path]:
    """Write the answered turns as FOLDER/VideoInstruct100K.json and the videos to FOLDER/videos.

    The id of an example becomes the video's; marks in the turns are lost. Returns the two paths,
    as `videoinstruct:FILE,VIDEOS` takes them.
    """
    folder = Path(folder)
    rows = []
    for example in examples:
        copy_video(example, folder / "videos")
        rows += [
            {"q": from_markup(t.user), "a": from_markup(t.assistant), "video_id": example.id}
            for t in example.turns
            if t.assistant is not None
        ]
    return write_json(folder / "VideoInstruct100K.json", rows), folder / "videos"
