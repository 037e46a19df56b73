"""A recording of a small MG-LLaVA with Phi-3, made by PyTorch's operations and transformers.

In the form of upstream's recordings (specs of MG-LLaVA 2 and 3): a picture with two boxes, a row
without a picture, a picture without detections. Upstream's text padding counts as text, and an
empty row follows the one without a picture.
"""

import json
import math
from pathlib import Path

import numpy as np

from conversion import readers
from tests.ops.test_box_mean import literal

CLIP = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
    image_size=56, patch_size=14, hidden_act="quick_gelu", layer_norm_eps=1e-5,
)  # fmt: skip
CONVNEXT = dict(depths=[1, 1, 2, 1], dims=[8, 12, 16, 24])
PHI3 = dict(
    hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
    num_key_value_heads=3, vocab_size=90, rms_norm_eps=1e-5, rope_theta=10000.0,
    max_position_embeddings=256, sliding_window=2047, pad_token_id=0, bos_token_id=1,
    eos_token_id=2, tie_word_embeddings=False,
)  # fmt: skip
SIDE, GRID, CANVAS, IMAGE, IGNORED = 128, 4, 768, -200, -100
IDS = [
    [1, 20, 21, IMAGE, 22, 23, 24, 25, 2, 0, 0, 0],
    [1, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 2],
    [1, 40, IMAGE, 41, 42, 43, 44, 2, 0, 0, 0, 0],
]
TRAINED = [range(6, 9), range(5, 12), range(4, 8)]
BOXES = [[[96, 64, 500, 700], [10, 20, 90, 60]], [[0, 0, 100, 100]], [[0, 0, 0, 0]]]


def write(folder: Path, counted: bool = True) -> dict[str, np.ndarray]:
    """Write config, weights, inputs and outputs; returns the outputs.

    `counted`: the boxes that stand in for none are among the inputs.
    """
    import torch

    torch.manual_seed(0)
    models, state = build(torch)
    labels = np.full((3, len(IDS[0])), IGNORED)
    for row, places in zip(range(3), TRAINED, strict=True):
        labels[row, list(places)] = np.array(IDS)[row, list(places)]
    pixels = np.random.default_rng(0).standard_normal((3, 3, SIDE, SIDE)).astype(np.float16)
    pixels[1] = 0
    given = BOXES if counted else [BOXES[0], [], []]
    inputs = {
        "input_ids": np.array(IDS),
        "labels": labels,
        "attention_mask": np.ones(labels.shape, bool),
        "pixel_values_aux_f16": pixels,
        "boxes": np.concatenate([np.reshape(x, (-1, 4)) for x in given]).astype(np.float32),
        "box_counts": np.array([len(x) for x in given]),
    }
    with torch.no_grad():
        outputs = run(torch, models, state, torch.tensor(pixels).float(), labels)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "visual_select_layer": -2, "box_canvas": CANVAS, "roi_output_size": 56,
        "roi_sampling_ratio": -1, "roi_aligned": False, "dtype": "float32", "seed": 0,
        "aux_size": SIDE, "llm_type": "phi3", "clip": CLIP, "convnext": CONVNEXT, "llm": PHI3,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: x.numpy() for name, x in state.items()}
    readers.write_safetensors(folder / "state_dict.safetensors", weights)
    np.savez(folder / "inputs.npz", **inputs)
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    np.savez(folder / "outputs.npz", **arrays)
    return arrays


def build(torch):
    """(CLIP, Phi-3) of transformers with random weights, and the state dict of the whole."""
    import transformers

    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP)).eval()
    phi = transformers.Phi3ForCausalLM(transformers.Phi3Config(**PHI3)).eval()
    state = {}
    for prefix, model in (("visual_encoder.", clip), ("llm.", phi)):
        for name, x in model.named_parameters():
            x.data = around(torch, name, x.shape)
            inner = name if prefix == "llm." else f"vision_model.{name.split('vision_model.')[-1]}"
            state[prefix + inner] = x.data
    shapes = convnext_shapes() | own_shapes()
    return (clip, phi), state | {name: around(torch, name, s) for name, s in shapes.items()}


def around(torch, name, shape):
    """Random numbers that keep activations of order one, none of them zero or all alike."""
    if len(shape) > 1:
        return torch.randn(*shape) / math.prod(shape[1:]) ** 0.5
    scale = any(part in name for part in ("norm", "gamma", "stem.1.weight", "downsample.0.weight"))
    return 0.2 * torch.randn(*shape) + float(scale and not name.endswith("bias"))


def convnext_shapes():
    """Names in memory -> shapes of the ConvNeXt."""
    out, dims = {}, CONVNEXT["dims"]

    def layer(name, *shape):
        out[f"visual_encoder_aux.{name}.weight"] = shape
        out[f"visual_encoder_aux.{name}.bias"] = shape[:1]

    layer("vision_stem.0", dims[0], 3, 4, 4)
    layer("vision_stem.1", dims[0])
    for i, (d, depth) in enumerate(zip(dims, CONVNEXT["depths"], strict=True)):
        stage = f"vision_stages.{i}"
        if i:
            layer(f"{stage}.downsample.0", dims[i - 1])
            layer(f"{stage}.downsample.1", d, dims[i - 1], 2, 2)
        for j in range(depth):
            block = f"{stage}.blocks.{j}"
            out[f"visual_encoder_aux.{block}.gamma"] = (d,)
            layer(f"{block}.conv_dw", d, 1, 7, 7)
            layer(f"{block}.norm", d)
            layer(f"{block}.mlp.fc1", 4 * d, d)
            layer(f"{block}.mlp.fc2", d, 4 * d)
    return out


def own_shapes():
    """The 20 tensors of spec 1."""
    low, high, h = CLIP["hidden_size"], CONVNEXT["dims"][-1], PHI3["hidden_size"]
    weights = {
        "projector.model.0": (h, low), "projector.model.2": (h, h),
        "bbox_projector.model.0": (h, sum(CONVNEXT["dims"])), "bbox_projector.model.2": (h, h),
        "fuse_module.slow_conv": (high, high, 1, 1), "fuse_module.slow_proj": (low, high, 1, 1),
        "fuse_module.fast_conv": (low, 1, 7, 7), "fuse_module.fast_proj": (low, low, 1, 1),
        "fuse_module.gate.0": (low // 2, 2 * low), "fuse_module.gate.2": (1, low // 2),
    }  # fmt: skip
    biases = {f"{name}.bias": shape[:1] for name, shape in weights.items()}
    return {f"{name}.weight": shape for name, shape in weights.items()} | biases


def convnext(torch, state, x):
    """The map of every stage, NCHW."""
    f = torch.nn.functional

    def get(name):
        return (state[f"visual_encoder_aux.{name}.{kind}"] for kind in ("weight", "bias"))

    def norm(x, name):
        weight, bias = get(name)
        x = x.permute(0, 2, 3, 1)
        return f.layer_norm(x, x.shape[-1:], weight, bias, 1e-6).permute(0, 3, 1, 2)

    x = norm(f.conv2d(x, *get("vision_stem.0"), stride=4), "vision_stem.1")
    maps = []
    for i, depth in enumerate(CONVNEXT["depths"]):
        stage = f"vision_stages.{i}"
        if i:
            x = norm(x, f"{stage}.downsample.0")
            x = f.conv2d(x, *get(f"{stage}.downsample.1"), stride=2)
        for j in range(depth):
            block = f"{stage}.blocks.{j}"
            h = f.conv2d(x, *get(f"{block}.conv_dw"), padding=3, groups=x.shape[1])
            h = norm(h, f"{block}.norm").permute(0, 2, 3, 1)
            h = f.linear(f.gelu(f.linear(h, *get(f"{block}.mlp.fc1"))), *get(f"{block}.mlp.fc2"))
            x = x + (h * state[f"visual_encoder_aux.{block}.gamma"]).permute(0, 3, 1, 2)
        maps.append(x)
    return maps


def run(torch, models, state, pixels, labels):
    """Every recorded output."""
    f, (clip, phi) = torch.nn.functional, models

    def get(name):
        return (state[f"{name}.{kind}"] for kind in ("weight", "bias"))

    def project(x, name):
        return f.linear(f.gelu(f.linear(x, *get(f"{name}.model.0"))), *get(f"{name}.model.2"))

    small = f.interpolate(pixels, (56, 56), mode="bilinear", align_corners=False)
    hidden = clip(small, output_hidden_states=True).hidden_states
    maps = convnext(torch, state, pixels)
    side = maps[0].shape[-1]
    joined = torch.cat(
        [f.interpolate(m, (side, side), mode="bilinear", align_corners=False) for m in maps], 1
    )
    low = hidden[-2][:, 1:]
    grid = low.transpose(1, 2).reshape(3, -1, GRID, GRID)
    high = f.conv2d(f.gelu(f.conv2d(maps[-1], *get("fuse_module.slow_conv"))),
                    *get("fuse_module.slow_proj"))  # fmt: skip
    inner = f.conv2d(grid, *get("fuse_module.fast_conv"), padding=3, groups=grid.shape[1])
    grid = grid + f.conv2d(f.gelu(inner), *get("fuse_module.fast_proj"))
    low, high = (x.flatten(2).transpose(1, 2) for x in (grid, high))
    seen = torch.cat([low, high], -1).mean(1)
    gate = f.linear(f.gelu(f.linear(seen, *get("fuse_module.gate.0"))),
                    *get("fuse_module.gate.2"))  # fmt: skip
    fused = low + high * torch.tanh(gate)[:, None]
    image = project(fused, "projector")
    nhwc = joined.permute(0, 2, 3, 1).numpy()
    pooled = [
        literal(nhwc[i], box, side / CANVAS, 56) for i, boxes in enumerate(BOXES) for box in boxes
    ]
    pooled = torch.tensor(np.array(pooled, np.float32))
    box = project(pooled, "bbox_projector")
    rows = [
        [embedded(torch, phi, IDS[0], image[0], box[:2]), spread(labels[0], IDS[0], 2)],
        [embedded(torch, phi, IDS[1], image[1], box[:0]), labels[1]],
        [torch.zeros(0, box.shape[1]), np.zeros(0, int)],
        [embedded(torch, phi, IDS[2], image[2], box[3:]), spread(labels[2], IDS[2], 1)],
    ]
    longest = max(len(x) for x, _ in rows)
    embeds = torch.stack([f.pad(x, (0, 0, 0, longest - len(x))) for x, _ in rows])
    mask = torch.tensor([[t < len(x) for t in range(longest)] for x, _ in rows])
    positions = torch.arange(longest)[None] * mask
    targets = torch.tensor(
        np.stack([np.pad(y, (0, longest - len(y)), constant_values=IGNORED) for _, y in rows])
    )
    out = phi(inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions)
    loss = f.cross_entropy(out.logits[:, :-1].flatten(0, 1)[mask[:, 1:].flatten()],
                           targets[:, 1:].flatten()[mask[:, 1:].flatten()])  # fmt: skip
    return {
        **{f"clip_hidden_{i}": x for i, x in enumerate(hidden)},
        **{f"convnext_stage_{i}": x for i, x in enumerate(maps)},
        "convnext_concat": joined, "gate_pre_tanh": gate, "gate_input": seen, "fused": fused,
        "image_tokens": image, "box_pooled_counts": [2, 1, 1], "box_pooled": pooled,
        "box_tokens_counts": [2, 1, 1], "box_tokens": box, "inputs_embeds": embeds,
        "llm_attention_mask": mask, "llm_position_ids": positions, "llm_labels": targets,
        "logits": torch.where(mask[..., None], out.logits, 7.0), "loss": loss,
    }  # fmt: skip


def embedded(torch, phi, ids, image, boxes):
    """Text around the picture's tokens and its boxes'."""
    place = ids.index(IMAGE) if IMAGE in ids else len(ids)
    before, after = (phi.get_input_embeddings()(torch.tensor(x, dtype=torch.long))
                     for x in (ids[:place], ids[place + 1 :]))  # fmt: skip
    vectors = [image, boxes] if IMAGE in ids else []
    return torch.cat([before, *vectors, after])


def spread(labels, ids, boxes):
    """Labels with the picture's place widened."""
    place = ids.index(IMAGE)
    vectors = np.full(GRID**2 + boxes, IGNORED)
    return np.concatenate([labels[:place], vectors, labels[place + 1 :]])
