"""The flags that say where MG-LLaVA's boxes come from."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest

from launch import detecting
from mg_jax.errors import UserError


def parsed(*flags):
    p = argparse.ArgumentParser()
    detecting.add_flags(p)
    return p.parse_args([str(flag) for flag in flags])


def test_without_flags_the_release_decides():
    assert detecting.options(parsed()) == {}
    assert detecting.options(parsed("--boxes", "b.json", "--box-limit", 0)) == {"box_limit": 0}
    options = detecting.options(parsed("--detector", "groma-tiny", "--box-limit", 30))
    assert options == {"detector": "groma-tiny", "box_limit": 30}


def test_a_tagger_with_thresholds_says_what_owlv2_looks_for(tmp_path, monkeypatch):
    """RAM++'s rule, each class with its own threshold."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_logits.py").write_text(
        "import numpy as np\n\ndef of(pixels):\n    return np.zeros((len(pixels), 2))\n"
    )
    (tmp_path / "tags.txt").write_text("cat\ndog\n")
    (tmp_path / "limits.txt").write_text("0.4\n0.6\n")
    flags = ("--detector", "owlv2", "--tagger", "my_logits:of", "--tags", "tags.txt")
    picture = np.zeros((8, 8, 3), np.uint8)
    for more, tags in (((), []), (("--thresholds", "limits.txt"), ["cat"])):
        detector = detecting.options(parsed(*flags, *more))["detector"]
        assert detector.tagger(["0"], [picture]) == [tags]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tags", "t"], "are for an OWLv2, which --detector names"),
        (["--thresholds", "t"], "are for an OWLv2, which --detector names"),
        (["--detector", "owl", "--thresholds", "t"], "--thresholds: is for --tagger with --tags"),
        (["--detector", "owl"], "--detector owl: is an OWLv2: say what to look for with --tags"),
        (["--detector", "google/owlv2-base"], "is an OWLv2: say what to look for with --tags"),
        (["--box-limit", "-1"], "--box-limit -1: give a number of boxes, or 0"),
    ],
)
def test_flags_that_do_not_fit_are_named(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owl").mkdir()
    (tmp_path / "owl" / "config.json").write_text(json.dumps({"model_type": "owlv2"}))
    with pytest.raises(UserError, match=message):
        detecting.options(parsed(*flags))


def test_who_takes_no_boxes_refuses_the_flags():
    def assistant(*can):
        system = SimpleNamespace(name="groma")
        return SimpleNamespace(adapter=SimpleNamespace(can=set(can)), system=system)

    given = parsed("--boxes", "b.json", "--box-limit", 0)
    with pytest.raises(UserError, match="^--boxes, --box-limit: groma takes no detected boxes"):
        detecting.refuse(given, assistant("proposals"))
    detecting.refuse(given, assistant("detections"))
    detecting.refuse(parsed(), assistant("proposals"))


@pytest.mark.torch
def test_a_wrong_folder_is_named_by_its_flag(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "tags.txt").write_text("cat\n")
    flags = ("--detector", tmp_path, "--tags", tmp_path / "tags.txt")
    detector = detecting.options(parsed(*flags))["detector"]
    with pytest.raises(UserError, match=f"^--detector {tmp_path}: holds no config.json"):
        detector([np.zeros((8, 8, 3), np.uint8)])
