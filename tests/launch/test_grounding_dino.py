"""Grounding DINO as a detector: a small one of random weights, against transformers' own steps."""

import json

import numpy as np
import pytest

from launch import grounding_dino
from mg_jax.errors import UserError
from tests.launch.owlv2_folder import write_owlv2

pytestmark = pytest.mark.torch
NAMES = ["red car", "dog", "traffic light"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Grounding DINO of random weights with its tokenizer, as transformers writes it."""
    import torch
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        SwinConfig,
    )

    folder = tmp_path_factory.mktemp("dino")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *letters,
             *(f"##{x}" for x in letters), "red", "car", "dog", "light", "traffic"]  # fmt: skip
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(
        vocab={w: n for n, w in enumerate(words)}, do_lower_case=True
    ).save_pretrained(folder)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64, patch_size=4, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2],
            window_size=4, out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, max_position_embeddings=64,
        ),
        num_queries=20, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=4, decoder_attention_heads=4, d_model=32, max_text_len=24,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GroundingDinoForObjectDetection(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value += 0.05 * torch.randn_like(value)
    model.save_pretrained(folder)
    return folder


def test_scores_are_the_models_own(folder, rng):
    """Of every name the highest of its tokens: transformers' scores where one name is asked for."""
    import torch
    from transformers import AutoTokenizer, GroundingDinoForObjectDetection

    image = rng.integers(0, 256, (90, 120, 3), np.uint8)
    detector = grounding_dino.open_detector(folder, "cpu", 0.0)
    (found,) = detector([image], [NAMES])
    assert len(found["boxes"]) == 20 and set(found["labels"]) <= set(NAMES)
    net = GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    text = AutoTokenizer.from_pretrained(folder)(
        "red car. dog. traffic light.", return_tensors="pt"
    )
    with torch.no_grad():
        out = net(pixel_values=torch.from_numpy(grounding_dino.pixels(image))[None], **text)
    probabilities = out.logits[0].sigmoid().numpy()
    tokens = {"red car": [1, 2], "dog": [4], "traffic light": [6, 7]}  # [CLS] red car . dog . ...
    best = np.stack([probabilities[:, tokens[name]].max(1) for name in NAMES], 1)
    np.testing.assert_allclose(found["scores"], best.max(1), atol=1e-5)
    assert found["labels"] == [NAMES[k] for k in best.argmax(1)]
    x, y, w, h = out.pred_boxes[0].numpy().T
    corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1) * [120, 90, 120, 90]
    np.testing.assert_allclose(found["boxes"], corners, atol=1e-3)


def test_pictures_are_prepared_as_transformers_does(rng):
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
        GroundingDinoImageProcessorPil,
    )

    image = rng.integers(0, 256, (60, 80, 3), np.uint8)
    want = GroundingDinoImageProcessorPil()(images=image, return_tensors="np")["pixel_values"][0]
    have = grounding_dino.pixels(image)
    assert have.shape == want.shape
    np.testing.assert_allclose(have, want, atol=0.02)


def test_names_that_do_not_fit_come_in_a_second_pass(folder, rng):
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    detector = grounding_dino.open_detector(folder, "cpu", 0.0)
    many = ["red car", "dog", "traffic light", "carousel", "doghouse", "red dog"]
    (found,) = detector([image], [many])
    assert len(found["boxes"]) > 20 and set(found["labels"]) <= set(many)
    seen = [names for _, _, names in detector._texts(many)]
    assert len(seen) > 1 and [n for part in seen for n in part] == many
    (found,) = detector([image], [["x" * 60]])  # longer than the model's text
    assert found == {"boxes": [], "scores": [], "labels": []}


def test_folders_that_are_no_detector(folder, tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        grounding_dino.open_detector(tmp_path, "cpu", 0.1)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="'bert', expected grounding-dino or owlv2"):
        grounding_dino.open_detector(tmp_path, "cpu", 0.1)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match="cannot be loaded"):
        grounding_dino.open_detector(tmp_path, "cpu", 0.1)


def test_an_owlv2_folder_opens_too(tmp_path, rng):
    detector = grounding_dino.open_detector(write_owlv2(tmp_path / "owl"), "cpu", 0.05)
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    (found,) = detector([image], [["dog", "red star"]])
    assert set(found["labels"]) <= {"dog", "red star"}
    with pytest.raises(UserError, match="--device nonsense"):
        grounding_dino.open_detector(tmp_path / "owl", "nonsense", 0.1)
