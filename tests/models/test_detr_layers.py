"""The layers of the region proposer beside those of transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax.models.detr_layers import DeformableAttention, inverse_sigmoid
from mg_jax.ops.sine import sine_grid


@pytest.mark.torch
@pytest.mark.parametrize("coordinates", [2, 4])
def test_deformable_attention_equals_transformers(coordinates):
    torch = pytest.importorskip("torch")
    from transformers.models.deformable_detr import modeling_deformable_detr as theirs

    shapes, heads, points, d = ((4, 6), (2, 3)), 2, 3, 8
    cfg = theirs.DeformableDetrConfig(
        d_model=d, num_feature_levels=2, disable_custom_kernels=True, use_timm_backbone=False,
        use_pretrained_backbone=False,
    )  # fmt: skip
    name = "DeformableDetrMultiscaleDeformableAttention"
    module = getattr(theirs, name)(cfg, num_heads=heads, n_points=points).eval()
    torch.manual_seed(0)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.5)
    state = {k: v.detach().numpy() for k, v in module.state_dict().items()}
    outputs = {  # our name and output axes of each projection
        "sampling_offsets": ("offsets", (heads, 2, points, 2)),
        "attention_weights": ("weights", (heads, 2, points)),
        "value_proj": ("value", (heads, d // heads)),
    }
    params = {"output": {"bias": state["output_proj.bias"]}}
    params["output"]["kernel"] = state["output_proj.weight"].T.reshape(heads, d // heads, d)
    for name, (ours, axes) in outputs.items():
        kernel = state[f"{name}.weight"].T.reshape(d, *axes)
        params[ours] = {"kernel": kernel, "bias": state[f"{name}.bias"].reshape(axes)}

    draw = np.random.default_rng(0)
    query, source = (draw.normal(size=(2, n, d)).astype(np.float32) for n in (5, 30))
    reference = draw.uniform(0.1, 0.9, (2, 5, coordinates)).astype(np.float32)
    sizes = torch.tensor(shapes)
    with torch.no_grad():
        expected = module(
            hidden_states=torch.tensor(query),
            encoder_hidden_states=torch.tensor(source),
            reference_points=torch.tensor(reference)[:, :, None].expand(-1, -1, 2, -1),
            spatial_shapes=sizes,
            spatial_shapes_list=list(shapes),
            level_start_index=torch.tensor([0, 24]),
        )[0]
    ours = DeformableAttention(d, heads, 2, points)
    got = ours.apply({"params": params}, query, source, reference, shapes)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


@pytest.mark.torch
def test_sine_embedding_and_inverse_sigmoid_equal_transformers():
    torch = pytest.importorskip("torch")
    from transformers.models.deformable_detr import modeling_deformable_detr as theirs

    module = theirs.DeformableDetrSinePositionEmbedding(6, normalize=True)
    expected = module((1, 1, 3, 5), "cpu", torch.float32)[0].numpy()
    np.testing.assert_allclose(sine_grid(3, 5, 12), expected.transpose(1, 2, 0), atol=1e-6)
    x = np.asarray([-0.5, 0, 1e-7, 0.2, 0.9, 1, 2], np.float32)
    expected = theirs.inverse_sigmoid(torch.tensor(x)).numpy()
    np.testing.assert_allclose(inverse_sigmoid(jnp.asarray(x)), expected, atol=1e-5)
