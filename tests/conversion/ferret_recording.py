"""A recording of Ferret-UI's form, made with transformers' CLIP and Llama and the spec in NumPy."""

import json

import numpy as np
from safetensors.numpy import save_file

from mg_jax.vision import anyres
from mg_jax.vision.preprocess import CLIP_MEAN, CLIP_STD, normalize
from tests import ferret_reference as reference

SIDE, PATCH, C, D, VOCAB, REGION = 28, 14, 32, 24, 50, 49
GRIDS = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
SIZES = [(60, 41), (30, 90)]
STAGES = ((512, 128, 24), (128, 32, 24))
IMAGE, IGNORED = -200, -100
IDS = [
    [1, 7, IMAGE, 8, REGION, 9, REGION, 11],
    [1, IMAGE, REGION, 12, 13],
    [1, 3, IMAGE, 4, REGION],
]
CLIP = {
    "hidden_size": C, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2,
    "patch_size": PATCH, "image_size": SIDE, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
LLAMA = {
    "vocab_size": VOCAB, "hidden_size": D, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": False,
}  # fmt: skip
OWN = {
    "model_type": "ferret_llama", "mm_vision_tower": "tinyclip", "mm_hidden_size": C,
    "mm_projector_type": "mlp2x_gelu", "mm_patch_merge_type": "spatial",
    "image_aspect_ratio": "anyres", "region_geo_sampler": True, "sampler_pooler_mode": "max",
    "image_grid_pinpoints": [[w * SIDE, h * SIDE] for w, h in GRIDS],
    "im_region_fea_token": REGION, "use_mm_proj": True,
}  # fmt: skip


def write(folder):
    """Write config.json, model.safetensors, inputs.npz, outputs.npz and meta.json."""
    import torch
    import transformers

    torch.manual_seed(0)
    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP)).eval()
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**LLAMA, attn_implementation="eager")
    ).eval()
    for parameter in [*clip.parameters(), *llama.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)
    rng = np.random.default_rng(0)
    own = {
        n: (rng.normal(size=s) * (s[-1] if len(s) > 1 else 4) ** -0.5).astype(np.float32)
        for n, s in shapes().items()
    }
    inputs, outputs = record(torch, clip, llama, own, rng)
    tower = {n.removeprefix("vision_model."): x for n, x in clip.state_dict().items()}
    state = {
        f"model.vision_tower.vision_tower.vision_model.{n}": x.numpy()
        for n, x in tower.items()
        if "position_ids" not in n
    }
    state |= {n: x.numpy() for n, x in llama.state_dict().items()}
    save_file(state | {f"model.{n}": x for n, x in own.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA | OWN))
    np.savez(folder / "inputs.npz", **inputs)
    np.savez(folder / "outputs.npz", **outputs)
    (folder / "meta.json").write_text(json.dumps({"regions": [
        {"image": int(i), "kind": "box", "coor": box(r), "box": box(r), "polygon": None}
        for r, i in enumerate(inputs["region_image_index"])
    ]}))  # fmt: skip


def shapes():
    """Of what is Ferret's own."""
    w, out = C + 2, {"image_newline": (D,)}

    def layer(name, inputs, size, *tail):
        return {f"{name}.weight": (size, inputs, *tail), f"{name}.bias": (size,)}

    out |= layer("mm_projector.0", C, D) | layer("mm_projector.2", D, D)
    for i in range(2):
        out |= layer(f"region_geo_sampler.diff_projector_list.{i}", w, w)
        out |= layer(f"region_geo_sampler.agg_projector_list.{i}.net.0", 2 * w, C, 1)
        norm = f"region_geo_sampler.agg_projector_list.{i}.norm"
        out |= {f"{norm}.weight": (C,), f"{norm}.bias": (C,)}
    out |= layer("region_geo_sampler.flatten_projector", 32 * C, C)
    return out | layer("region_geo_sampler.dim_projector", C, D)


def box(r):
    """Pixels of region r, both corners included."""
    return [3 * r + 2, 4, 12 * r + 4, 6 + 6 * r]


def sampler_params(own):
    """The sampler's tensors under our names."""

    def linear(name):
        weight = own[f"region_geo_sampler.{name}.weight"]
        return {
            "kernel": weight.reshape(*weight.shape[:2]).T,
            "bias": own[f"region_geo_sampler.{name}.bias"],
        }

    out = {"flatten": linear("flatten_projector"), "output": linear("dim_projector")}
    for i in range(2):
        norm = f"region_geo_sampler.agg_projector_list.{i}.norm"
        out[f"stage{i}"] = {
            "diff": linear(f"diff_projector_list.{i}"),
            "mix": linear(f"agg_projector_list.{i}.net.0"),
            "norm": {"scale": own[f"{norm}.weight"], "bias": own[f"{norm}.bias"]},
        }
    return out


def record(torch, clip, llama, own, rng):
    """(inputs, outputs): three pictures, the third as large as the first; 2, 1 and 1 regions."""
    sizes = [*SIZES, SIZES[0]]
    inputs = {"image_sizes_wh": np.array(sizes), "region_image_index": np.array([0, 0, 1, 2])}
    raw, projected, maps, merges, canvases = [], [], [], [], []
    for i, (width, height) in enumerate(sizes):
        image = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
        made = anyres.prepare(image, SIDE, [tuple(g) for g in GRIDS], SIDE)
        grid = GRIDS[made["grid"]]
        pixels = normalize(np.stack([made["low"], *made["tiles"]]), CLIP_MEAN, CLIP_STD)
        inputs[f"image{i}_uint8"] = image
        inputs[f"pixel_values_image{i}"] = pixels = pixels.transpose(0, 3, 1, 2)
        with torch.no_grad():
            states = clip(torch.tensor(pixels), output_hidden_states=True).hidden_states
        raw.append(states[-2][:, 1:].numpy())
        projected.append(project(torch, own, raw[-1]))
        side = SIDE // PATCH
        features = reference.merged(raw[-1][1:].reshape(-1, side, side, C), grid)
        low = raw[-1][0].reshape(side, side, C)
        maps.append(features + reference.upsample(low, *features.shape[:2], "nearest"))
        merges.append(reference.merged(projected[-1][1:].reshape(-1, side, side, D), grid))
        canvases.append([n * SIDE for n in grid])
    inputs["best_resolution_wh"] = np.array(canvases)
    outputs = {
        "clip_features": np.concatenate(raw),
        "projected_image_features": np.concatenate(projected),
        **{f"region_map_image{i}": x.astype(np.float32) for i, x in enumerate(maps)},
    }
    vectors = regions(own, rng, sizes, maps, inputs, outputs)
    longest = max(map(len, IDS))
    ids = np.array([r + [0] * (longest - len(r)) for r in IDS])
    mask = np.arange(longest)[None] < np.array([[len(r)] for r in IDS])
    labels = np.where(mask & (np.arange(longest) > 3) & (ids != REGION), ids, IGNORED)
    inputs |= {"input_ids": ids, "labels": labels, "attention_mask": mask}
    whole = [x[0] for x in projected]
    plain = [m.reshape(-1, D) for m in merges]
    outputs |= joined(torch, llama, ids, labels, mask, whole, plain, vectors)
    ended = []
    for merge, (width, height) in zip(merges, sizes, strict=True):
        grid = [n // (SIDE // PATCH) for n in merge.shape[1::-1]]
        top, left, rows, columns = anyres.window(width, height, grid, SIDE // PATCH)
        kept = merge[top : top + rows, left : left + columns]
        newline = np.broadcast_to(own["image_newline"], (rows, 1, D))
        ended.append(np.concatenate([kept, newline], 1).reshape(-1, D))
    unpad = joined(torch, llama, ids, labels, mask, whole, ended, vectors)
    outputs["unpad.inputs_embeds"] = unpad["inputs_embeds"]
    alone = np.where(ids[2:] == REGION, 5, ids[2:])
    outputs["inputs_embeds_no_regions_image0_ids2"] = joined(
        torch, llama, alone, labels[2:], mask[2:], whole[:1], plain[:1], [[]]
    )["inputs_embeds"]
    return inputs, outputs


def project(torch, own, x):
    """mlp2x_gelu."""
    f = torch.nn.functional
    layers = [
        [torch.tensor(own[f"mm_projector.{i}.{k}"]) for k in ("weight", "bias")] for i in (0, 2)
    ]
    return f.linear(f.gelu(f.linear(torch.tensor(x), *layers[0])), *layers[1]).numpy()


def regions(own, rng, sizes, maps, inputs, outputs):
    """Vectors of the regions of each picture; what the sampler is fed and gives."""
    params, found = sampler_params(own), {}
    names = "sampled_points num_mask_points point_features flatten_out region_features".split()
    lists = {f"sampler.{n}": [] for n in names}
    mean = []
    for r, i in enumerate(inputs["region_image_index"]):
        width, height = sizes[i]
        mask = np.zeros((width, height), np.uint8)  # x first
        x0, y0, x1, y1 = box(r)
        mask[x0 : x1 + 1, y0 : y1 + 1] = 1
        inputs[f"region{r}_mask_wh"] = mask
        pixels = np.argwhere(mask)
        chosen = np.concatenate([pixels, pixels[rng.integers(0, len(pixels), 512)]])[:512]
        points = (chosen / np.array([width, height])).astype(np.float32)
        places, indexes = points, []
        for i_stage, (size, count, near) in enumerate(STAGES):
            fps = reference.farthest(places, count, int(rng.integers(size)))
            knn = reference.nearest(places, places[fps], near)
            indexes.append((fps, knn))
            places = places[fps]
            for kind, value in (("fps", fps), ("knn", knn)):
                found.setdefault(f"stage{i_stage}_{kind}_idx", []).append(value)
        features = reference.grid_sample(maps[i], points)  # x is read as the row
        vector, stages = reference.sample_region(params, features, points, indexes, "max")
        flat = stages[-1][1].reshape(-1) @ params["flatten"]["kernel"] + params["flatten"]["bias"]
        values = points, mask.sum(), features, flat, vector
        for name, value in zip(names, values, strict=True):
            lists[f"sampler.{name}"].append(value)
        for s, (places, pooled) in enumerate(stages):
            lists.setdefault(f"sampler.stage{s}.points", []).append(places)
            lists.setdefault(f"sampler.stage{s}.pooled", []).append(pooled)
        mean.append(reference.sample_region(params, features, points, indexes, "mean")[0])
    inputs |= {name: np.array(value) for name, value in found.items()}
    inputs["sampled_points"] = np.array(lists["sampler.sampled_points"])
    for name, value in found.items():
        outputs[f"sampler.{name[:6]}.{name[7:]}"] = np.array(value)
    for name, value in lists.items():
        whole = name.endswith("num_mask_points")
        outputs[name] = np.array(value, np.int64 if whole else np.float32)
    outputs["region_features_meanpool"] = np.array(mean, np.float32)
    owner = inputs["region_image_index"]
    vectors = outputs["sampler.region_features"]
    return [vectors[owner == i] for i in range(len(sizes))]


def joined(torch, llama, ids, labels, mask, whole, merged, vectors):
    """Rows without their padding, pictures and regions put in, padded anew with zeros."""
    words = llama.get_input_embeddings().weight.detach().numpy()
    rows, targets = [], []
    for row, label, keep, low, tiles, of in zip(
        ids, labels, mask, whole, merged, vectors, strict=True
    ):
        parts, wanted, seen = [], [], 0
        for token, target in zip(row[keep], label[keep], strict=True):
            if token == IMAGE:
                parts += [low, tiles]
                wanted += [IGNORED] * (len(low) + len(tiles))
                continue
            region = token == REGION and len(of)
            parts.append(of[seen][None] if region else words[[token]])
            wanted.append(target)
            seen += bool(region)
        rows.append(np.concatenate(parts).astype(np.float32))
        targets.append(wanted)
    longest = max(map(len, rows))
    valid = np.arange(longest)[None] < np.array([[len(r)] for r in rows])
    embeds = np.stack([np.pad(r, ((0, longest - len(r)), (0, 0))) for r in rows])
    wanted = [r + [IGNORED] * (longest - len(r)) for r in targets]
    with torch.no_grad():
        out = llama(
            inputs_embeds=torch.tensor(embeds),
            attention_mask=torch.tensor(valid.astype(np.int64)),
            labels=torch.tensor(wanted),
        )
    return {
        "inputs_embeds": embeds, "new_attention_mask": valid, "new_labels": np.array(wanted),
        "logits": out.logits.numpy(), "loss": out.loss.numpy().reshape(1),
    }  # fmt: skip
