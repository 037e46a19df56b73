"""Procedural scenes: the same every time, boxes tight to what is drawn, names unambiguous."""

import hashlib
import random
import subprocess
import sys

import numpy as np
import pytest

from mg_jax.data.scenes import draw, world
from mg_jax.data.scenes.shapes import SHAPES, stamp
from mg_jax.data.sources.scenes import SceneSource
from mg_jax.errors import UserError

SIZES = ((224, 224), (97, 160), (320, 240))


def digest(seed: int, count: int) -> str:
    out = hashlib.sha256()
    for i in range(count):
        scene = world.make_world(seed, i)
        out.update(world.render(scene).tobytes())
        out.update(repr(scene.things).encode())
    return out.hexdigest()


def test_as_rich_as_the_design_asks():
    assert len(SHAPES) >= 20 and len(draw.COLORS) >= 10
    assert len(world.SIZES) == 3 and len(draw.TEXTURES) == 4
    scenes = [world.make_world(3, i) for i in range(300)]
    counts = {len(s.things) for s in scenes}
    assert min(counts) == 2 and max(counts) == 12
    things = [t for s in scenes for t in s.things]
    for key, names in (("shape", SHAPES), ("color", draw.COLORS), ("size", world.SIZES),
                       ("texture", draw.TEXTURES)):  # fmt: skip
        assert {getattr(t, key) for t in things} == set(names)
    assert {s.background for s in scenes} == set(draw.BACKGROUNDS)
    assert sum(t.readable for t in things) > 20 and sum(t.visible < 0.9 for t in things) > 50


def test_depends_on_seed_and_number_alone():
    here = digest(11, 4)
    assert here == digest(11, 4) != digest(12, 4)
    code = (
        "import sys; sys.path.insert(0, 'tests/data');"
        "from test_scenes import digest; print(digest(11, 4))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == here


@pytest.mark.parametrize("size", SIZES)
def test_boxes_are_tight_to_the_drawn_pixels(size):
    """Each thing painted by itself on black and on white: what differs is background."""
    width, height = size
    for i in range(8):
        scene = world.make_world(21, i, width, height)
        covered = np.zeros((height, width), bool)
        for k in range(len(scene.things) - 1, -1, -1):  # nearest first
            thing = scene.things[k]
            canvas = [np.full((height, width, 3), v, np.uint8) for v in (0, 255)]
            for c in canvas:
                draw.paint(c, thing, thing.x0, thing.y0)
            # Half covered or more: black and white behind it differ by at most half.
            solid = (canvas[1].astype(int) - canvas[0]).max(-1) <= 127
            seen = solid & ~covered
            np.testing.assert_array_equal(seen, scene.mask(k))
            rows, cols = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
            want = (cols[0] / width, rows[0] / height,
                    (cols[-1] + 1) / width, (rows[-1] + 1) / height)  # fmt: skip
            np.testing.assert_allclose(thing.box, want, atol=1e-12)
            whole = (stamp(thing.shape, thing.angle, thing.flip, thing.side)[0] > 127).sum()
            assert thing.visible == pytest.approx(seen.sum() / whole)
            assert thing.visible >= world.MIN_VISIBLE
            covered |= solid


def test_the_picture_shows_the_named_colors():
    """The commonest pure fill inside each plain thing's mask is its own colour."""
    for i in range(40):
        scene = world.make_world(5, i)
        image = world.render(scene)
        for k, thing in enumerate(scene.things):
            if thing.texture != "plain" or thing.word:
                continue
            pixels = image[scene.mask(k)]
            fills, counts = np.unique(pixels, axis=0, return_counts=True)
            assert draw.color_name(fills[counts.argmax()]) == thing.color


def test_jitter_never_changes_the_name():
    rng = random.Random(0)
    for name in draw.COLORS:
        assert {draw.color_name(draw.jitter_color(name, rng)) for _ in range(300)} == {name}


def test_no_two_shapes_look_alike():
    """Silhouettes in one square, every turn and both mirrorings, overlap by less than 94 %."""
    from PIL import Image

    def silhouette(shape, angle, flip):
        a = stamp(shape, angle, flip, 64)[0]
        canvas = Image.new("L", (64, 64))
        canvas.paste(Image.fromarray(a), ((64 - a.shape[1]) // 2, (64 - a.shape[0]) // 2))
        return np.asarray(canvas) > 127

    base = {s: silhouette(s, 0, False) for s in SHAPES}
    for one in SHAPES:
        for angle in (-14, 0, 14):
            for flip in (False, True):
                a = silhouette(one, angle, flip)
                for other, b in base.items():
                    if other != one:
                        assert (a & b).sum() / (a | b).sum() < 0.94, (one, other)


def test_moving_scene():
    start = world.make_world(8, 3)
    later = world.at_time(start, 12.0)
    assert world.render(later).shape == (224, 224, 3)
    assert {t.key for t in later.things} <= {t.key for t in start.things}
    moved = {t.key: t.box for t in later.things}
    assert any(moved.get(t.key) != t.box for t in start.things)
    for frame in (world.at_time(start, 0.0), later):
        for k, thing in enumerate(frame.things):
            rows, cols = frame.mask(k).nonzero()
            box = (cols.min() / 224, rows.min() / 224,
                   (cols.max() + 1) / 224, (rows.max() + 1) / 224)  # fmt: skip
            np.testing.assert_allclose(thing.box, box, atol=1e-12)


def test_signs_are_as_many_as_asked_for():
    def share(**options):
        things = [t for i in range(60) for t in world.make_world(6, i, **options).things]
        return sum(t.shape == "sign" for t in things) / len(things)

    assert share() < 0.2 and 0.55 < share(signs=0.6) < 0.7
    assert world.make_world(6, 1) == world.make_world(6, 1, signs=0.05)


def test_distractor_scenes_share_shapes_or_colors():
    for i in range(40):
        things = world.make_world(6, i, min_objects=5, distractors=1.0).things
        for k, thing in enumerate(things):
            rest = things[:k] + things[k + 1 :]
            assert any(t.shape == thing.shape or t.color == thing.color for t in rest) or (
                len({t.shape for t in things}) > 1
            )
        assert len({t.shape for t in things} - {"sign"}) <= 4
        assert len({t.color for t in things}) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [({"width": 8}, "too small"), ({"min_objects": 9, "max_objects": 3}, "min_objects=9")],
)
def test_impossible_scenes(options, message):
    with pytest.raises(UserError, match=message):
        world.make_world(0, 0, **options)
    with pytest.raises(UserError, match="do not fit"):
        world.make_world(0, 0, min_objects=50, max_objects=50)


@pytest.mark.parametrize("key", ["distractors", "signs"])
def test_a_share_beyond_one_is_refused(key):
    with pytest.raises(UserError, match=rf"scenes: {key}=1\.5 is no share from 0 to 1"):
        SceneSource(**{key: 1.5})
