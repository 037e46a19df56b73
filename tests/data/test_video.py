"""Frames of videos: which ones, in what colours, upright; bad files in one line."""

import re
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from mg_jax.data.video import frame_files, frame_numbers, read_frames
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example

COUNT = 40
# ending: (codec, its options); B frames, hidden frames and several key frames among them
KINDS = {
    "mp4": ("libx264", {"g": "12", "bf": "3"}),
    "mkv": ("libx264", {"g": "250"}),
    "webm": ("libvpx-vp9", {"lag-in-frames": "16", "auto-alt-ref": "1"}),
    "avi": ("mpeg4", {"g": "10"}),
    "h264": ("libx264", {"g": "12"}),  # no container, so no timestamps
}


def picture(i, width=64, height=48):
    """Frame i: its number in the brightness of the left half, the upper right quarter red."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:, : width // 2] = 20 + 5 * i
    frame[: height // 2, width // 2 :, 0] = 255
    return frame


def number(frame):
    """The number of a decoded frame."""
    height, width = frame.shape[:2]
    return round((float(frame[4 : height - 4, 4 : width // 2 - 4].mean()) - 20) / 5)


def write_video(path, count=COUNT, codec="libx264", options=None):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 2_000_000
        out.start_encoding()  # a header, even before no frames
        for i in range(count):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("ending", KINDS)
def test_video_files(ending, tmp_path):
    codec, options = KINDS[ending]
    path = write_video(tmp_path / f"v.{ending}", COUNT, codec, options)
    for count in (8, 3, 1):
        notes = []
        frames, size = read_frames(path, count, notes)
        assert frames.shape == (count, 48, 64, 3) and frames.dtype == np.uint8
        assert size == (64, 48) and not notes
        found = [number(frame) for frame in frames]
        assert found == np.linspace(0, COUNT - 1, count, dtype=int).tolist()
    red = frames[0, 4:20, 36:60].reshape(-1, 3).mean(0)
    assert red[0] > 200 and red[1:].max() < 60


def test_frames_of_an_example(tmp_path):
    path = write_video(tmp_path / "v.mp4")
    example = Example(None, 64, 48, id="x", video=str(path))
    np.testing.assert_array_equal(example.frames(4), read_frames(path, 4)[0])
    with pytest.raises(BadRecord, match="'x' of : has no video"):
        Example(None, 0, 0, id="x").frames()


def test_turned_video(tmp_path):
    """The matrix in the header of a phone's video: turn by a quarter, clockwise."""
    path = write_video(tmp_path / "v.mp4", 4)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    frames, size = read_frames(path, 2)
    assert size == (48, 64) and frames.shape == (2, 64, 48, 3)
    red = frames[0, :, :, 0].astype(int) - frames[0, :, :, 1]
    assert red[40:56, 30:44].min() > 150 and red[:24].max() < 60  # below, on the right


def test_gif_and_folder(tmp_path):
    images = [Image.fromarray(picture(i)) for i in range(12)]
    images[0].save(tmp_path / "v.gif", save_all=True, append_images=images[1:], duration=50)
    (tmp_path / "frames").mkdir()
    for i, image in enumerate(images):
        image.save(tmp_path / "frames" / f"frame_{i}.png")  # 10 comes after 9, not after 1
    (tmp_path / "frames" / "notes.txt").write_text("no frame")
    assert [f.name for f in frame_files(tmp_path / "frames")][9:] == [
        "frame_9.png", "frame_10.png", "frame_11.png",
    ]  # fmt: skip
    numbers = frame_numbers(12, 5)
    want = np.stack([picture(i) for i in numbers])
    for name in ("v.gif", "frames"):
        notes = []
        frames, size = read_frames(tmp_path / name, 5, notes)
        assert size == (64, 48) and not notes
        np.testing.assert_array_equal(frames, want)


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_fewer_frames_than_asked(tmp_path, ending):
    path = tmp_path / f"v.{ending}"
    if ending == "gif":
        images = [Image.fromarray(picture(i)) for i in range(3)]
        images[0].save(path, save_all=True, append_images=images[1:])
    else:
        write_video(path, 3)
    notes = []
    assert [number(f) for f in read_frames(path, 8, notes)[0]] == [0, 0, 0, 0, 1, 1, 1, 2]
    assert notes == [f"{path}: has 3 frames, 8 are asked: some are repeated"]


def test_a_folder_of_one_frame(tmp_path):
    Image.fromarray(picture(7)).save(tmp_path / "a.png")
    notes = []
    assert [number(f) for f in read_frames(tmp_path, 2, notes)[0]] == [7, 7]
    assert notes == [f"{tmp_path}: has 1 frame, 2 are asked: some are repeated"]


def test_a_video_that_breaks_off(tmp_path):
    """What can be decoded is used, and the loss is said."""
    path = write_video(tmp_path / "v.mkv", COUNT, "mpeg4", {"g": "10"})
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) * 2 // 3])
    notes = []
    frames, _ = read_frames(path, 4, notes)
    assert re.search(r"v.mkv: ends after .* s that it states: it may be cut off", notes[0])
    found = [number(f) for f in frames]
    assert found[0] == 0 and 15 < found[-1] < COUNT - 5 and found == sorted(found)


def test_a_damaged_middle(tmp_path):
    pytest.importorskip("av")
    path = write_video(tmp_path / "v.mp4", COUNT, "libx264", {"g": "10", "bf": "0"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    middle = (start + data.index(b"moov", start)) // 2
    data[middle : middle + 40] = b"\xff" * 40
    path.write_bytes(data)
    notes = []
    frames, _ = read_frames(path, 8, notes)
    found = [number(frame) for frame in frames]
    assert found[0] == 0 and found[-1] == COUNT - 1 and found == sorted(found)
    assert "of 40 frames can be decoded: it may be damaged" in notes[0] and len(notes) == 1


def refused(path, message):
    with pytest.raises(BadRecord) as e:
        read_frames(path)
    assert str(path) in str(e.value) and message in str(e.value) and "\n" not in str(e.value)


def test_bad_video_files(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "text.mp4").write_text("this is no video at all " * 50)
    refused(tmp_path / "text.mp4", "is no video that can be read")
    whole = write_video(tmp_path / "v.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # the index comes last
    refused(tmp_path / "cut.mp4", "is no video that can be read")
    for ending in ("mkv", "avi", "mp4"):
        path = write_video(tmp_path / f"zero.{ending}", 0, "mpeg4")
        refused(path, "length zero")


def test_bad_videos_that_need_no_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    refused(tmp_path / "none.mp4", "no such video file")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "is empty (0 bytes)")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "holds no frames")
    for i, size in enumerate(((9, 9), (9, 8))):
        Image.new("RGB", size).save(tmp_path / "folder" / f"{i}.png")
    with pytest.raises(BadRecord, match=r"1.png: is 9x8 px but 0.png is 9x9"):
        read_frames(tmp_path / "folder")
    (tmp_path / "folder" / "1.png").write_bytes(b"nothing")
    with pytest.raises(BadRecord, match=r"1.png: is not a picture"):
        read_frames(tmp_path / "folder")
    images = [Image.fromarray(picture(i)) for i in range(5)]
    images[0].save(tmp_path / "v.gif", save_all=True, append_images=images[1:])
    data = (tmp_path / "v.gif").read_bytes()
    (tmp_path / "v.gif").write_bytes(data[:8])
    refused(tmp_path / "v.gif", "GIF cannot be read")
    with pytest.raises(UserError, match="0 frames of a video"):
        read_frames(tmp_path / "v.gif", 0)


def test_sound_alone(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.wav"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.rate = 8000
        out.mux(stream.encode(sound))
        out.mux(stream.encode())
    with pytest.raises(BadRecord, match="holds no video"):
        read_frames(tmp_path / "a.wav")


def test_without_the_library(tmp_path, monkeypatch):
    (tmp_path / "v.mp4").write_bytes(b"x" * 100)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="EXTRAS=video") as e:
        read_frames(tmp_path / "v.mp4")
    assert not isinstance(e.value, BadRecord)  # a whole run needs it, not this sample alone
