"""Which class an answer in free words names."""

import pytest

from mg_jax.evals.names import ClassNames
from mg_jax.evals.questions import Item, with_classes
from mg_jax.example import Example, Region

COCO = ClassNames(
    "person;dog;hot dog;bear;teddy bear;cell phone;tv;couch;skis;scissors;bus;knife;sports ball;"
    "wine glass;cup;tie;potted plant;baseball bat;traffic light;sheep;mouse;toilet".split(";")
)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("Dog", "dog"),
        ("a small brown dog.", "dog"),
        ("Two dogs on a couch", "dog"),
        ("It is a hot dog", "hot dog"),
        ("the teddy bears", "teddy bear"),
        ("A cell-phone", "cell phone"),
        ("A SOFA", "couch"),
        ("television", "tv"),
        ("ski", "skis"),
        ("a pair of scissors", "scissors"),
        ("scissor", "scissors"),
        ("buses", "bus"),
        ("knives", "knife"),
        ("wine glasses", "wine glass"),
        ("mice", "mouse"),
        ("A woman riding a bus", "person"),
        ("people", "person"),
        ("The man's tie", "tie"),
        ("a baseball player", "person"),
        ("a baseball, player unknown", "sports ball"),
        ("baseball bat", "baseball bat"),
        ("cup. dog", "cup"),
        ("red traffic lights", "traffic light"),
        ("", None),
        ("something red", None),
        ("doghouse", None),
        ("There is no dog in the image.", None),
        ("<r:0>", None),
        ("\x00 ' - ...", None),
    ],
)
def test_answers(said, name):
    assert COCO.find(said) == name


def test_a_synonym_stands_for_no_class_that_has_it_for_a_name():
    both = ClassNames(["person", "woman", "tv", "monitor", "table"])
    assert both.find("a woman") == "woman" and both.find("a man") == "person"
    assert both.find("monitor") == "monitor" and both.find("television") == "tv"
    assert ClassNames(["boy"]).find("a girl") is None
    assert ClassNames(["plane", "jet"]).find("aircraft") is None  # of both: undecided


def test_names_as_data_sets_write_them():
    lvis = ClassNames(["aerosol can", "bow (weapon)", "bow (decorative ribbons)", "cap (headwear)"])
    assert lvis.find("Aerosol_can") == "aerosol can"
    assert lvis.find("a cap") == "cap (headwear)"
    assert lvis.find("a bow") is None and lvis.find("bow (weapon)") == "bow (weapon)"
    voc = ClassNames(["tvmonitor", "aeroplane", "pottedplant"])
    assert voc.find("a TV") == "tvmonitor" and voc.find("planes") == "aeroplane"
    cells = ClassNames(["rbc", "wbc", "platelets"])
    assert cells.find("A white blood cell.") == "wbc" and cells.find("platelet") == "platelets"
    assert ClassNames([]).find("dog") is None and ClassNames(["", "'s"]).find("dog") is None


def test_other_names_of_the_data_set():
    others = {"aerosol can": ["spray_can", "can"], "can": ["tin can"], "bow (weapon)": ["longbow"]}
    classes = ClassNames(["aerosol can", "can", "bow (weapon)"], others)
    assert classes.find("A spray can") == "aerosol can"
    assert classes.find("a can") == "can"  # a name comes before other names
    assert classes.find("two longbows") == "bow (weapon)"
    assert ClassNames(["aerosol can"]).find("A spray can") is None


def test_synonyms_come_from_the_pictures():
    can = Region("box", (0, 0, 1, 1), label="Aerosol_can")
    example = Example("x", 9, 9, objects=(can,), meta={"synonyms": {"Aerosol_can": ["spray_can"]}})
    (item,) = with_classes([Item("a", example)])
    assert item.record["classes"].find("The spray can.") == "aerosol can"
