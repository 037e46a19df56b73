"""Videos with conversations."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mg_jax.data.sources import open_source
from mg_jax.data.write import write_llava, write_video_instruct
from mg_jax.errors import UserError
from mg_jax.example import Example, Turn


@pytest.fixture
def videos(tmp_path):
    """A GIF, a folder of frames, and a file that only has a name."""
    folder = tmp_path / "in"
    (folder / "frames").mkdir(parents=True)
    frames = [Image.fromarray(np.full((8, 8, 3), 40 * k, np.uint8)) for k in range(3)]
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:])
    for k, frame in enumerate(frames):
        frame.save(folder / "frames" / f"{k}.png")
    (folder / "a.mkv").write_bytes(b"bytes")
    turns = (Turn("What moves?", "A <p >square</p >."), Turn("Where?", "To the left."))
    names = ("clip.gif", "frames", "a.mkv")
    return [
        Example(None, 0, 0, turns=turns, id=f"v_{k}", video=str(folder / name))
        for k, name in enumerate(names)
    ]


def test_written_videos_are_read_back(videos, tmp_path):
    file, folder = write_video_instruct(videos, tmp_path / "out")
    source = open_source(f"videoinstruct:{file},{folder}")
    assert [source[i].turns for i in range(len(source))] == [v.turns for v in videos]
    names = [source[i].video.rpartition("/")[2] for i in range(3)]
    assert names == ["v_0.gif", "v_1", "v_2.mkv"]
    e = source[0]
    assert e.image is None and (e.width, e.height) == (0, 0) and e.meta["video_id"] == "v_0"
    assert json.loads(file.read_text())[0] == {
        "q": "What moves?",
        "a": "A <p>square</p>.",
        "video_id": "v_0",
    }
    single = open_source(f"videoinstruct:{file},{folder},per=question")
    assert len(single) == 6 and len({single[i].id for i in range(6)}) == 6
    assert single[1].turns == videos[0].turns[1:]
    assert not source.counts and not single.counts


def test_videos_in_the_form_of_llava(videos, tmp_path):
    picture = Example(np.zeros((8, 8, 3), np.uint8), 8, 8, turns=videos[0].turns, id="p")
    file, folder = write_llava([*videos, picture], tmp_path / "out")
    rows = json.loads(file.read_text())
    assert rows[0]["video"] == "videos/v_0.gif"
    assert rows[0]["conversations"][0]["value"] == "<video>\nWhat moves?"
    source = open_source(f"llava:{file},{folder}")
    assert [source[i].turns for i in range(4)] == [v.turns for v in [*videos, picture]]
    assert [bool(source[i].video) for i in range(4)] == [True, True, True, False]
    assert source[3].image is not None


def test_other_endings_and_missing_videos(videos, tmp_path):
    (tmp_path / "v_1.webm").touch()
    rows = [
        {"q": "Q", "a": "A", "video_id": "v_1"},
        {"q": "Q", "a": "A", "video_id": "v_gone"},
        {"q": "Q", "a": " ", "video_id": "v_1"},
        {"q": "", "a": "A", "video_id": "v_1"},
        {"q": "Q", "video_id": "v_1"},
        "text",
    ]
    path = tmp_path / "q.json"
    path.write_text(json.dumps(rows))
    source = open_source(f"videoinstruct:{path},{tmp_path},max_bad=1")
    assert len(source) == 1 and source[0].video == str(tmp_path / "v_1.webm")
    assert source.counts == {"questions on videos without a file": 1, "empty answers": 1}
    assert [p.partition(": ")[2] for p in source.problems] == [
        "[3]: q is empty", "[4]: lacks 'a'", "[5]: expected an object, found 'text'",
    ]  # fmt: skip
    path.write_text(json.dumps(rows[1:2]))
    with pytest.raises(UserError, match="none of the 1 videos .* v_gone"):
        open_source(f"videoinstruct:{path},{tmp_path}")
    path.write_text(json.dumps(rows[2:3]))
    with pytest.raises(UserError, match="holds no question with an answer"):
        open_source(f"videoinstruct:{path},{tmp_path}")
    with pytest.raises(UserError, match="per=x: choose video or question"):
        open_source(f"videoinstruct:{path},{tmp_path},per=x")
    talk = [{"from": "human", "value": "What?\n<video>"}, {"from": "gpt", "value": "A"}]
    path.write_text(json.dumps([{"video": "v_1.mp4", "conversations": talk},
                                {"video": ["gone/v.mp4"], "conversations": talk}]))  # fmt: skip
    llava = open_source(f"llava:{path},{tmp_path}")
    assert llava[0].video.endswith("v_1.webm") and llava[0].turns == (Turn("What?", "A"),)
    assert len(llava) == 1 and llava.counts == {"videos without a file": 1}


def test_ids_make_the_names(videos, tmp_path):
    twice = [videos[0], replace(videos[0], id="other")]
    _, folder = write_video_instruct(twice, tmp_path / "out")
    assert sorted(p.name for p in folder.iterdir()) == ["other.gif", "v_0.gif"]
