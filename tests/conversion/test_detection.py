"""transformers' Deformable DETR in our proposer: the shared transformer computes the same."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conversion import engine
from conversion.tables.deformable_detr import detection_table
from mg_jax import sharding
from mg_jax.models.detr import DetrConfig, Proposer

CFG = DetrConfig(
    width=32, encoder_layers=2, decoder_layers=3, encoder_heads=4, decoder_heads=2,
    encoder_ffn=24, decoder_ffn=40, encoder_points=2, decoder_points=3, queries=6, levels=2,
    box_hidden=32, refinement="iterative", two_heads=False, dropout=0.0,
)  # fmt: skip
CHANNELS, SIDE = 12, 6


def detector(torch, labels):
    """A detector of CFG's shape with random weights, no two heads alike."""
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
    )
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False,
        backbone=None, encoder_layers=2, decoder_layers=3, d_model=32, encoder_ffn_dim=24,
        decoder_ffn_dim=40, encoder_attention_heads=4, decoder_attention_heads=2,
        encoder_n_points=2, decoder_n_points=3, num_queries=6, two_stage_num_proposals=6,
        num_feature_levels=2, two_stage=True, with_box_refine=True, num_labels=labels, dropout=0.0,
    )  # fmt: skip
    model = transformers.DeformableDetrForObjectDetection(config).eval()
    for name in ("bbox_embed", "class_embed"):
        heads = torch.nn.ModuleList(copy.deepcopy(x) for x in getattr(model, name))
        setattr(model, name, heads)
        setattr(model.model.decoder, name, heads)
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return model


def in_files(model):
    from conversion.manifests.__main__ import saved

    return {name: tensor.detach().numpy() for name, tensor in saved(model).items()}


def proposer(cfg, loaded):
    """(module, hidden states, parameters: `loaded` over random ones)."""
    draw, model = np.random.default_rng(0), Proposer(cfg)
    states = jnp.asarray(draw.normal(size=(4, 2, 1 + SIDE**2, CHANNELS)), jnp.float32)
    boxed = sharding.abstract_params(model.init, jax.random.key(0), states)
    flat = engine.flatten(sharding.unbox(boxed))
    params = {path: draw.normal(size=x.shape).astype(np.float32) for path, x in flat.items()}
    found = engine.flatten(loaded)
    assert {path: x.shape for path, x in found.items()} == {
        path: flat[path].shape for path in found
    }
    return model, states, engine.unflatten(params | found), set(flat) - set(found)


@pytest.mark.torch
def test_a_detector_of_one_category_computes_the_same():
    """Fed our maps, and our learned content of queries in place of theirs from `pos_trans`."""
    torch = pytest.importorskip("torch")
    model = detector(torch, 1)
    state = in_files(model)
    plan = engine.plan(state, detection_table(CFG, 1))
    module, states, params, missing = proposer(CFG, engine.to_jax(state.__getitem__, plan))
    assert {path.split("/")[0] for path in missing} == {"input0", "input1", "query_embed"}
    ours = jax.jit(module.apply)({"params": params}, states)

    inner = model.model
    maps = [torch.tensor(np.asarray(ours[f"src{i}"])) for i in range(2)]
    sizes = [(x.shape[1], x.shape[2]) for x in maps]
    pos = [
        torch.tensor(np.asarray(ours[f"pos_embed{i}"])).flatten(1, 2) + inner.level_embed[i]
        for i in range(2)
    ]
    tokens = sum(y * x for y, x in sizes)
    shared = dict(
        spatial_shapes=torch.tensor(sizes), spatial_shapes_list=sizes,
        level_start_index=torch.tensor([0, sizes[0][0] * sizes[0][1]]),
        valid_ratios=torch.ones(2, 2, 2),
    )  # fmt: skip
    mask = torch.ones(2, tokens, dtype=torch.bool)
    with torch.no_grad():
        memory = inner.encoder(
            inputs_embeds=torch.cat([x.flatten(1, 2) for x in maps], 1), attention_mask=mask,
            spatial_position_embeddings=torch.cat(pos, 1).expand(2, -1, -1), **shared,
        )[0]  # fmt: skip
        query, anchors = inner.gen_encoder_output_proposals(memory, ~mask, sizes)
        scores = inner.decoder.class_embed[-1](query)
        coords = inner.decoder.bbox_embed[-1](query) + anchors
        best = torch.topk(scores[..., 0], 6, dim=1)[1]
        start = torch.gather(coords, 1, best[..., None].repeat(1, 1, 4))
        embedded = inner.pos_trans_norm(inner.pos_trans(inner.get_proposal_pos_embed(start)))
        content = torch.tensor(np.asarray(params["query_embed"])).expand(2, -1, -1)
        out = inner.decoder(
            inputs_embeds=content, object_queries_position_embeddings=embedded[..., :32],
            encoder_hidden_states=memory, encoder_attention_mask=mask,
            reference_points=start.sigmoid(), **shared,
        )  # fmt: skip
        hidden = out.intermediate_hidden_states
        logits = torch.stack([model.class_embed[i](hidden[:, i]) for i in range(3)], 1)

    finite = torch.isfinite(anchors).all(-1).numpy()
    np.testing.assert_array_equal(np.isfinite(ours["enc_coord_logits"]).all(-1), finite)
    close = {
        "encoder_last_hidden": memory, "enc_class_logits": scores,
        "init_reference_points": start.sigmoid(), "dec_hidden": hidden, "logits_coco": logits,
        "boxes": out.intermediate_reference_points,
    }  # fmt: skip
    np.testing.assert_array_equal(ours["topk_proposal_idx"], best.numpy())
    for name, expected in close.items():
        np.testing.assert_allclose(ours[name], expected.numpy(), atol=1e-4, err_msg=name)
    np.testing.assert_allclose(
        np.asarray(ours["enc_coord_logits"])[finite], coords.numpy()[finite], atol=1e-4
    )


@pytest.mark.torch
def test_heads_of_several_categories_have_no_place():
    torch = pytest.importorskip("torch")
    state = in_files(detector(torch, 5))
    plan = engine.plan(state, detection_table(CFG, 5))
    assert {why for x, why in plan.dropped.items() if "class_embed" in x} == {
        "one output per category: the proposer's heads have one, objectness"
    }
    loaded = engine.to_jax(state.__getitem__, plan)
    _, _, _, missing = proposer(CFG, loaded)
    parts = {path.split("/")[0] for path in missing}
    assert parts == {"input0", "input1", "query_embed", "class_enc", "class_coco"}
    back = engine.to_torch(loaded, detection_table(CFG, 5))
    kept = set(state) - set(plan.dropped)
    assert set(back) == kept and all(np.array_equal(back[x], state[x]) for x in kept)


def test_a_proposer_of_another_shape_is_not_filled():
    wide = dataclasses.replace(CFG, encoder_ffn=48)
    shapes = engine.expand(detection_table(CFG, 1)).torch_shapes()
    with pytest.raises(engine.UserError, match=r"encoder\.layers\.0\.fc1\.weight \[24, 32\]"):
        engine.plan(shapes, detection_table(wide, 1))
