"""launch.verify on Ferret: upstream's recordings, and one of the form that is kept back."""

import json

import numpy as np
import pytest

from conversion import readers
from conversion.verify import compare, ferret, npz_names, npz_read
from conversion.verify.ferret_inputs import drawn
from launch.verify import main
from tests.conversion import ferret_recording
from tests.conversion.folders import read_folder

ARRAYS = {"A_v1": 26 + 6 + 5, "C_v2_paper_sketch": 19 + 5}  # outputs, inputs, orientation
FED = {"A_v1": 5, "C_v2_paper_sketch": 6}  # of the second the corners of the region's mask too


def verified(folder, capsys):
    status = main([str(folder), "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.shared
@pytest.mark.parametrize("name", ARRAYS)
def test_every_recorded_array_is_matched(shared, name, capsys):
    """Of which only upstream's random draws are fed; pixels and masks are made of the pictures."""
    status, report = verified(shared / "golden" / "ferret" / name, capsys)
    assert status == 0, [line for line in report["arrays"] if not line["ok"]] + report["failures"]
    assert report["arrays_total"] == ARRAYS[name]
    assert sum("fed" in line["note"] for line in report["arrays"]) == FED[name]
    assert not any(line["note"] == "input" for line in report["arrays"])


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Ferret-UI; grids of three shapes, ragged rows, a region of a few pixels."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("recording")
    ferret_recording.write(folder)
    return folder


@pytest.mark.torch
def test_a_recording_of_several_resolutions_is_matched(recording, capsys):
    status, report = verified(recording, capsys)
    assert status == 0, [line for line in report["arrays"] if not line["ok"]] + report["failures"]
    names = {line["name"] for line in report["arrays"]}
    assert {"unpad.inputs_embeds", "region_map_image2", "logits"} <= names
    made = {name.removeprefix("inputs/") for name in names if name.startswith("inputs/")}
    assert made == {"best_resolution_wh", *(f"pixel_values_image{i}" for i in range(3)),
                    *(f"region{r}_mask_wh" for r in range(4))}  # fmt: skip


def copied(recording, folder):
    for file in recording.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.torch
def test_pixels_and_masks_that_differ_are_misses(recording, tmp_path):
    """A picture upside down, and a region elsewhere, outside of which some of its points are."""
    folder = copied(recording, tmp_path)
    meta, file = folder / "meta.json", folder / "inputs.npz"
    inputs = npz_read(file, npz_names(file))
    np.savez(file, **inputs | {"image1_uint8": inputs["image1_uint8"][::-1]})
    rows = json.loads(meta.read_text())["regions"]
    rows[1]["box"][0] += 3
    meta.write_text(json.dumps({"regions": rows}))
    instance = ferret.Instance(folder)
    made = instance.prepared()
    assert set(ferret.case(folder).required) >= made.keys()
    fits = {n: compare(n, x, inputs[n.removeprefix("inputs/")]).ok for n, x in made.items()}
    missed = {name for name, fit in fits.items() if not fit}
    assert missed == {"inputs/pixel_values_image1", "inputs/region1_mask_wh"}
    pairs = zip(inputs["sampled_points"], instance.masks, strict=True)
    assert [bool(np.isnan(drawn(*pair)).any()) for pair in pairs] == [False, True, False, False]


@pytest.mark.torch
def test_without_a_description_masks_are_fed(recording, tmp_path):
    folder = copied(recording, tmp_path)
    held = ferret.case(folder)
    (folder / "meta.json").unlink()
    bare = ferret.case(folder)
    lost = set(held.required) - set(bare.required)
    assert lost == {f"inputs/region{r}_mask_wh" for r in range(4)}
    assert set(bare.given) - set(held.given) == {"sampler.num_mask_points"}
    assert ferret.Instance(folder).counts.tolist() == [9, 108, 315, 630]


@pytest.mark.torch
def test_what_differs_is_a_miss(recording, tmp_path, capsys):
    """A vector in the wrong place of the sampler's maps, and an array that nothing produces."""
    copied(recording, tmp_path)
    state = {name: x.copy() for name, x in read_folder(recording).items()}
    state["model.region_geo_sampler.dim_projector.bias"][3] += 0.01
    readers.write_safetensors(tmp_path / "model.safetensors", state)
    with np.load(recording / "outputs.npz") as held:
        np.savez(tmp_path / "outputs.npz", **held, surprise=np.zeros(2, np.float32))
    status, report = verified(tmp_path, capsys)
    missed = {line["name"] for line in report["arrays"] if not line["ok"]}
    assert status == 1 and {"surprise", "sampler.region_features", "inputs_embeds"} <= missed
    assert not missed & {"clip_features", "sampler.flatten_out", "region_map_image0"}
