"""What 8 and 4 bits cost: `python -m launch.bench quant [--params 7b|3b|tiny]`.

First a language model of random weights, one layer at a time, so that 7B takes 3 GB of memory:
every form reads the same bfloat16 weights and the same vectors. `error`: root mean square of
the difference of its logits from those of float32 arithmetic, over theirs; `same`: positions whose
most likely token is the same; `kl`: mean of KL(float32 || form), nats. Forms: "bfloat16", that
arithmetic on the weights as they are, and "int8" and "int4", in float32 arithmetic.

Then groma-tiny on reserved scenes: its scores in float32, in bfloat16, and in int8 and int4 with
bfloat16 arithmetic, of these two the difference from bfloat16 too ("... - bfloat16").
"""

from collections.abc import Iterator
from typing import Any

from launch import cli, measuring

SHAPES: dict[str, dict[str, Any]] = {
    "7b": {},  # Vicuna-7B
    "3b": dict(width=3072, mlp=8192, layers=28, heads=24, kv_heads=24),
    "tiny": dict(vocab=512, width=192, mlp=384, layers=4, heads=4, kv_heads=4, head=48),
}
FORMS = ("float32", "bfloat16", "int8", "int4")
TOKENS = 48
QUESTIONS = 200
TASKS = {"rec": "acc@0.5", "regions": "accuracy", "presence": "accuracy"}


def logits(params: str) -> dict[str, dict[str, float]]:
    """{form: error, same, kl} of a language model of random weights and that size."""
    import dataclasses

    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    from rich.console import Console
    from rich.progress import track

    from mg_jax import quant, sharding
    from mg_jax.attention import attention_mask
    from mg_jax.lm import Block, LMConfig
    from mg_jax.nn import Linear, RMSNorm
    from mg_jax.optim import flatten, unflatten

    cfg = LMConfig(**SHAPES[params], attention="plain")
    names = {"float32": {}, "bfloat16": {"dtype": "bfloat16"}}
    cfgs = {f: dataclasses.replace(cfg, **names.get(f, {"quant": f})) for f in FORMS}
    positions = jnp.arange(TOKENS)[None]
    mask = attention_mask(positions >= 0, queries=positions, keys=positions)

    class Head(nn.Module):
        """What follows the layers."""

        cfg: LMConfig

        @nn.compact
        def __call__(self, carry, layer, positions, masks, start):
            c, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
            x = RMSNorm(c.width, c.eps, dtype, name="norm")(carry[0])
            shape, axes = (c.width, c.vocab), ("embed", "vocab")
            first = nn.initializers.normal(0.02)
            head = Linear(shape, axes, 1, False, dtype, first, quant=c.quant, name="head")
            return (head(x), None), None

    def through(part, form):
        c = cfgs[form]

        def run(p, x, layer):
            carry = (x, None)
            (out, _), _ = part(c).apply({"params": p}, carry, layer, positions, (mask, None), None)
            return out

        return jax.jit(run)

    def drawn(part, form):
        def init(key, layer):
            x = jnp.zeros((1, TOKENS, cfg.width))
            made = part(cfgs[form]).init(key, (x, None), layer, positions, (mask, None), None)
            return sharding.unbox(made["params"])

        return jax.jit(init)

    key = jax.random.key(0)
    x0 = jax.random.normal(key, (1, TOKENS, cfg.width)) * cfg.width**-0.5  # as embeddings begin
    x = {form: x0.astype(cfgs[form].dtype) for form in FORMS}
    made, runs, scales = {}, {}, {}
    for part in (Block, Head):
        made[part] = drawn(part, "float32")
        runs[part] = {form: through(part, form) for form in FORMS}
        for form in FORMS[2:]:
            shapes = flatten(jax.eval_shape(drawn(part, form), key, 0))
            scales[part, form] = {
                p: s.shape for p, s in shapes.items() if p.endswith("/kernel_scale")
            }
    for layer in track(range(cfg.layers + 1), "layers", console=Console(stderr=True)):
        part = Block if layer < cfg.layers else Head
        params_ = jax.tree.map(
            lambda v: v.astype(jnp.bfloat16).astype(jnp.float32),
            made[part](jax.random.fold_in(key, layer + 1), layer),
        )
        flat = {p: np.asarray(v) for p, v in flatten(params_).items()}
        for form in FORMS:
            mine = params_
            if (part, form) in scales:
                mine = unflatten({
                    name: v
                    for path, value in flat.items()
                    for name, v in quant.quantized(
                        path, value, scales[part, form], form
                    ).items()
                })  # fmt: skip
            x[form] = runs[part][form](mine, x[form], layer)
    true = np.float64(x["float32"])
    out = {}
    for form in FORMS[1:]:
        given = np.float64(x[form])
        a, b = (np.asarray(jax.nn.log_softmax(jnp.asarray(v))) for v in (true, given))
        out[form] = {
            "error": round(float(np.sqrt(np.mean((given - true) ** 2) / np.mean(true**2))), 4),
            "same": round(float(np.mean(true.argmax(-1) == given.argmax(-1))), 3),
            "kl": float(f"{np.mean((np.exp(a) * (a - b)).sum(-1)):.3g}"),
        }
    return out


def scores(dtype: str, quantize: str) -> dict[str, float]:
    """What groma-tiny reaches on reserved scenes, by task and metric."""
    from mg_jax.evals import tasks

    assistant, found = cli.load("groma-tiny", dtype=dtype, quantize=quantize), {}
    for name, metric in TASKS.items():
        data = f"scenes:seed=700003,n={QUESTIONS}"
        result = measuring.measure(assistant, tasks.get(name), data)
        found[f"{name} {metric}"] = round(result.metrics[metric], 3)
    return found


def cases(params: str) -> Iterator[dict[str, Any]]:
    """One JSON line a form, of the random model and then of groma-tiny."""
    for form, found in logits(params).items():
        yield {"case": "logits", "params": params, "form": form, **found}
    whole = {form: scores(form, "none") for form in FORMS[:2]}
    for form, found in whole.items():
        yield {"case": "groma-tiny", "form": form, **found}
    for form in FORMS[2:]:
        found = scores("bfloat16", form)
        less = {f"{k} - bfloat16": round(v - whole["bfloat16"][k], 3) for k, v in found.items()}
        yield {"case": "groma-tiny", "form": form, **found, **less}
