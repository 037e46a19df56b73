"""Reading compiled programs: operations, bytes, loops and collectives of small ones known by hand,
and of one that this machine compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.aot import estimate, hlo
from mg_jax import chips, flops, fused
from mg_jax.chips import Chip

CHIP = Chip("test", flops=1e12, memory=2**34, bandwidth=1e9, link=1e8, axes=2)

PROGRAM = """
HloModule jit_step, is_scheduled=true

%body (p: (s32[], bf16[64,128], f32[6,128,128])) -> (s32[], bf16[64,128], f32[6,128,128]) {
  %p = (s32[], bf16[64,128]{1,0:T(8,128)(2,1)}, f32[6,128,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %w = f32[6,128,128]{2,1,0:T(8,128)} get-tuple-element(%p), index=2
  %cut = bf16[128,128]{1,0:T(8,128)(2,1)} fusion(%w, %i), kind=kLoop, calls=%slice_fusion
  %ag = (bf16[128,128]{1,0}, bf16[256,128]{1,0}) all-gather-start(%cut), replica_groups=[4,2]<=[8]
  %y = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %cut), kind=kOutput, calls=%product
  %agd = bf16[256,128]{1,0} all-gather-done(%ag)
  %z = bf16[64,128]{1,0:T(8,128)(2,1)} add(%y, %x)
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], bf16[64,128], f32[6,128,128]) tuple(%next, %z, %w)
}

%slice_fusion (a: f32[6,128,128], n: s32[]) -> bf16[128,128] {
  %a = f32[6,128,128]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %zero = s32[] constant(0)
  %s = f32[1,128,128]{2,1,0} dynamic-slice(%a, %n, %zero, %zero), dynamic_slice_sizes={1,128,128}
  %b = f32[128,128]{1,0} bitcast(%s)
  ROOT %c = bf16[128,128]{1,0} convert(%b)
}

%product (l: bf16[64,128], r: bf16[128,128]) -> bf16[64,128] {
  %l = bf16[64,128]{1,0} parameter(0)
  %r = bf16[128,128]{1,0} parameter(1)
  ROOT %conv = bf16[64,128]{1,0} convolution(%l, %r), dim_labels=bf_io->bf
}

%condition (p: (s32[], bf16[64,128], f32[6,128,128])) -> pred[] {
  %p = (s32[], bf16[64,128], f32[6,128,128]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(6)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: bf16[64,128], w: f32[6,128,128]) -> bf16[64,128] {
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %w = f32[6,128,128]{2,1,0:T(8,128)} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[64,128], f32[6,128,128]) tuple(%zero, %x, %w)
  %loop = (s32[], bf16[64,128], f32[6,128,128]) while(%start), condition=%condition, body=%bodyNOTE
  %got = bf16[64,128]{1,0} get-tuple-element(%loop), index=1
  ROOT %sum = bf16[64,128]{1,0} all-reduce(%got), replica_groups={{0,1,2,3}}, to_apply=%add
}
"""


@pytest.mark.parametrize(
    "note", ["", ', backend_config={"known_trip_count":{"n":"6"},"known_init_step":{}}']
)
def test_a_loop_counts_as_often_as_it_runs(note):
    found = estimate.estimate(PROGRAM.replace("NOTE", note), CHIP)
    body = next(p for p in found.programs if p.name == "body")
    assert body.times == 6 and body.flops == 2 * 64 * 128 * 128
    sliced = 128 * 128 * 4 + 128 * 128 * 2  # of the stack only what is cut out
    product = 64 * 128 * 2 + 128 * 128 * 2  # its result stays on the chip
    assert body.bytes == sliced + product + 2 * 64 * 128 * 2 + 16
    assert found.flops == 6 * body.flops
    assert found.collectives["all-gather"] == (6, 6 * 256 * 128 * 2)
    assert found.collectives["all-reduce"] == (1, 64 * 128 * 2)


@pytest.mark.parametrize(
    "was,now,turns",
    [
        ("%one = s32[] constant(1)", "%one = s32[] constant(2)", 3),
        ("%one = s32[] constant(1)", "%one = s32[] constant(4)", 2),
        ("%zero = s32[] constant(0)\n  %start", "%zero = s32[] constant(2)\n  %start", 4),
        ("%next = s32[] add(%i, %one)", "%mid = s32[] add(%one, %i)\n"
         "  %next = s32[] add(%mid, %one)", 3),
        ("%next = s32[] add(%i, %one)", "%next = s32[] fusion(%one, %i), kind=kLoop, calls=%plus",
         2),
        ("%next = s32[] add(%i, %one)", "%next = s32[] custom-call(%i, %one)", 6),
    ],
)  # fmt: skip
def test_a_loop_whose_body_the_compiler_doubled_turns_half_as_often(was, now, turns):
    plus = """
%plus (o: s32[], n: s32[]) -> s32[] {
  %o = s32[] parameter(0)
  %n = s32[] parameter(1)
  %three = s32[] constant(3)
  ROOT %sum = s32[] add(%n, %three)
}
"""
    assert was in PROGRAM
    found = estimate.estimate(PROGRAM.replace("NOTE", "").replace(was, now) + plus, CHIP)
    assert next(p for p in found.programs if p.name == "body").times == turns


FUSED = """
%within (i: s32[], n: s32[], go: pred[]) -> pred[] {
  %i = s32[] parameter(0)
  %n = s32[] parameter(1)
  %go = pred[] parameter(2)
  %less = pred[] compare(%i, %n), direction=LT
  ROOT %both = pred[] and(%less, %go)
}

%below (i: s32[]) -> pred[] {
  %i = s32[] parameter(0)
  %n = s32[] constant(6)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}
"""
LESS = "ROOT %less = pred[] compare(%i, %n), direction=LT"


@pytest.mark.parametrize(
    "was,now,turns",
    [
        ("%n = s32[] constant(6)", "%n = s32[] get-tuple-element(%p), index=1", None),
        (LESS, "ROOT %more = pred[] compare(%i, %n), direction=GT", None),
        (LESS, "ROOT %f = pred[] fusion(%i, %n, %p), kind=kLoop, calls=%within", None),
        (f"%n = s32[] constant(6)\n  {LESS}",
         "ROOT %f = pred[] fusion(%i), kind=kLoop, calls=%below", 6),
    ],
)  # fmt: skip
def test_a_loop_whose_end_the_data_decide_counts_once_and_is_named(was, now, turns):
    head, condition = PROGRAM.replace("NOTE", "").split("%condition (", 1)
    assert was in condition
    found = estimate.estimate(head + "%condition (" + condition.replace(was, now, 1) + FUSED, CHIP)
    assert next(p for p in found.programs if p.name == "body").times == (turns or 1)
    assert found.as_dict()["unknown_trips"] == ([] if turns else ["body"])


def test_loops_of_this_machine_whose_end_the_data_decide_are_named():
    def halved(x):
        return jax.lax.while_loop(lambda x: x.sum() > 1.0, lambda x: x / 2, x)

    def counted(x):
        return jax.lax.fori_loop(0, 7, lambda i, x: x / 2, x)

    for function, unknown in ((halved, 1), (counted, 0)):
        text = jax.jit(function).lower(jnp.ones((8, 8))).compile().as_text()
        found = estimate.estimate(text, CHIP)
        assert len(found.unknown_trips) == unknown
        assert max(p.times for p in found.programs) == (1 if unknown else 7)


def test_collectives_hide_behind_what_is_scheduled_between():
    found = estimate.estimate(PROGRAM.replace("NOTE", ""), CHIP)
    body, main = (next(p for p in found.programs if p.name == n) for n in ("body", "main"))
    needed = 0.5 * 256 * 128 * 2 / 2e8
    product = max(2 * 64 * 128 * 128 / 1e12, (64 * 128 * 2 + 128 * 128 * 2) / 1e9)
    assert body.wire_seconds == pytest.approx(needed - product)
    assert main.wire_seconds == pytest.approx(2 * 0.75 * 64 * 128 * 2 / 2e8)
    total = 6 * (max(body.flops / 1e12, body.bytes / 1e9) + body.wire_seconds)
    assert found.seconds == pytest.approx(total + main.wire_seconds + main.bytes / 1e9)
    assert found.by_operation >= found.seconds - 1e-12


def test_a_product_of_batches_written_as_a_convolution_counts_once():
    text = """
ENTRY %main (a: bf16[16,64,32], b: bf16[16,32,48]) -> bf16[16,64,48] {
  %a = bf16[16,64,32]{2,1,0} parameter(0)
  %b = bf16[16,32,48]{2,1,0} parameter(1)
  ROOT %c = bf16[16,64,48]{2,1,0} convolution(%a, %b), WINDOW, dim_labels=0bf_0io->0bf
}
"""
    window = "window={size=16 stride=15 pad=0_0 lhs_dilate=16}"
    text = text.replace("WINDOW", window)
    module = hlo.parse(text)
    op = module.entry.root
    assert hlo.flops(module, module.entry, op) == 2 * 16 * 64 * 32 * 48


def test_a_product_by_a_library_of_a_gpu_is_counted():
    text = """
ENTRY %main (a: bf16[64,32], b: bf16[32,48]) -> bf16[64,48] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[32,48]{1,0} parameter(1)
  %c = (bf16[64,48]{1,0}, s8[1024]{0}) custom-call(%a, %b), TARGET, CONFIG
  ROOT %d = bf16[64,48]{1,0} get-tuple-element(%c), index=0
}
"""
    text = text.replace("TARGET", 'custom_call_target="__cublas$gemm"').replace(
        "CONFIG", 'backend_config={"gemm":{"dims":{"lhs_contracting_dimensions":["1"]}}}'
    )
    assert estimate.estimate(text, CHIP).flops == 2 * 64 * 48 * 32


KERNEL = """
ENTRY %main (a: s8[1,2,2], q: bf16[8,768,128], k: bf16[2,768,128]) -> bf16[8,768,128] {
  %a = s8[1,2,2]{2,1,0} parameter(0)
  %q = bf16[8,768,128]{2,1,0} parameter(1)
  %k = bf16[2,768,128]{2,1,0} parameter(2)
  %splash_mha_NAME.1 = (f32[384,128]{1,0:T(8,128)}, bf16[8,768,128]{2,1,0:T(8,128)(2,1)}) custom-call(%a, %q, %k, /*index=3*/%k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 384, \\"q_layout\\": 1}"
}}, metadata={op_name="jit(f)/shard_map/fused_attention_pairs_442368/vmap(s)/splash_mha_NAME/pallas_call" stack_frame_id=7}
  ROOT %out = bf16[8,768,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%splash_mha_NAME.1), index=1, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 384}"
}}, metadata={op_name="jit(f)/fused_attention_pairs_442368/splash_mha_NAME"}
}
"""  # noqa: E501


@pytest.mark.parametrize(
    "name,products",
    [("fwd_segmented_residuals", 2), ("dq_segmented", 3), ("dkv_segmented", 4)],
)
def test_a_kernel_of_attention_counts_the_tiles_it_computes(name, products):
    module = hlo.parse(KERNEL.replace("NAME", name))
    assert [o.opcode for o in module.entry.ops.values()][-2:] == [
        "custom-call",
        "get-tuple-element",
    ]
    op = module.entry.ops[f"splash_mha_{name}.1"]
    assert fused.pairs(700, causal=True) == 442368
    assert hlo.flops(module, module.entry, op) == 2 * products * 8 * 128 * 442368
    assert hlo.flops(module, module.entry, module.entry.root) == 0
    found = estimate.estimate(KERNEL.replace("NAME", name), CHIP)
    small = 4 + 384 * 128 * 4
    assert found.bytes == 2 * (8 + 8 + 2 + 2) * 768 * 128 + small


def test_groups_of_devices_are_read_in_every_notation():
    def size(text):
        op = hlo.Op("x", "all-gather", (), (), f"channel_id=1, replica_groups={text}, y=2", False)
        return estimate.group_size(op)

    assert size("[4,2]<=[8]") == 2 and size("{{0,1,2,3},{4,5,6,7}}") == 4
    assert size("mesh['a'=2,'b'=4,'c'=8] {'a','c'}") == 16
    assert size("mesh['a'=2,'b'=4] {'b'}") == 4
    everyone = PROGRAM.replace("NOTE", "").replace("groups={{0,1,2,3}}", "groups={}")
    eight = "scheduled=true, replica_count=2, num_partitions=4"
    everyone = everyone.replace("scheduled=true", eight)
    main = next(p for p in estimate.estimate(everyone, CHIP).programs if p.name == "main")
    assert main.wire_seconds == pytest.approx(2 * 7 / 8 * 64 * 128 * 2 / 2e8)


SPREAD = """
%begin (p: bf16[8,64]) -> (bf16[8,64], bf16[16,64]) {
  %p = bf16[8,64]{1,0} parameter(0)
  %g = bf16[16,64]{1,0} all-gather(%p), channel_id=12, replica_groups={{0,1}}
  ROOT %c = (bf16[8,64], bf16[16,64]) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (p: bf16[8,64], l: bf16[64,128], r: bf16[128,128]) -> bf16[64,128] {
  %p = bf16[8,64]{1,0} parameter(0)
  %l = bf16[64,128]{1,0} parameter(1)
  %r = bf16[128,128]{1,0} parameter(2)
  %g = bf16[16,64]{1,0} all-gather(%p), channel_id=12, replica_groups={{0,1}}
  ROOT %conv = bf16[64,128]{1,0} convolution(%l, %r), dim_labels=bf_io->bf
}

%finish (p: bf16[8,64]) -> bf16[16,64] {
  %p = bf16[8,64]{1,0} parameter(0)
  %g = bf16[16,64]{1,0} all-gather(%p), channel_id=12, replica_groups={{0,1}}
  ROOT %c = bf16[16,64] custom-call(%g), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: bf16[8,64], l: bf16[64,128], r: bf16[128,128]) -> bf16[16,64] {
  %p = bf16[8,64]{1,0} parameter(0)
  %l = bf16[64,128]{1,0} parameter(1)
  %r = bf16[128,128]{1,0} parameter(2)
  %a = (bf16[8,64], bf16[16,64]) fusion(%p), kind=kCustom, calls=%begin
  %b = bf16[64,128]{1,0} fusion(%p, %l, %r), kind=kOutput, calls=%meanwhile
  ROOT %d = bf16[16,64]{1,0} fusion(%p), kind=kCustom, calls=%finish
}
"""


def test_a_collective_spread_over_fusions_counts_once():
    found = estimate.estimate(SPREAD, CHIP)
    (program,) = found.programs
    assert found.collectives == {"all-gather": (1, 16 * 64 * 2)}
    assert program.flops == 2 * 64 * 128 * 128 and program.wire_seconds == 0


def test_of_a_stack_only_the_layer_counts_in_a_fusion_of_fusions_too():
    text = """
%cut (a: s8[6,128,128], n: s32[]) -> s8[128,128] {
  %a = s8[6,128,128]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %zero = s32[] constant(0)
  %other = s8[6,128,128]{2,1,0} fusion(%a), kind=kLoop, calls=%relaid
  %s = s8[1,128,128]{2,1,0} dynamic-slice(%other, %n, %zero), dynamic_slice_sizes={1,128,128}
  ROOT %b = s8[128,128]{1,0} bitcast(%s)
}

%relaid (a: s8[6,128,128]) -> s8[6,128,128] {
  %a = s8[6,128,128]{2,1,0} parameter(0)
  ROOT %c = s8[6,128,128]{2,1,0} copy(%a)
}

%product (x: bf16[8,128], a: s8[6,128,128], n: s32[]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0} parameter(0)
  %a = s8[6,128,128]{2,1,0} parameter(1)
  %n = s32[] parameter(2)
  %w = s8[128,128]{1,0} fusion(%a, %n), kind=kLoop, calls=%cut
  ROOT %c = bf16[8,128]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
}

ENTRY %main (x: bf16[8,128], a: s8[6,128,128], n: s32[]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0} parameter(0)
  %a = s8[6,128,128]{2,1,0} parameter(1)
  %n = s32[] parameter(2)
  ROOT %f = bf16[8,128]{1,0} fusion(%x, %a, %n), kind=kOutput, calls=%product
}
"""
    (program,) = estimate.estimate(text, CHIP).programs
    assert program.bytes == 2 * 8 * 128 * 2 + 128 * 128 + 4


def test_padding_is_not_multiplied():
    assert hlo._places(5, 5, 3, 1, 1, 1, 1) == 13  # of 15, without the two at the edges
    assert hlo._places(4, 8, 2, 2, 0, 1, 1) == 8
    assert hlo._places(8, 8, 1, 1, 0, 1, 1) == 8


def test_a_program_of_this_machine_is_read():
    def step(x, ws):
        def body(c, w):
            return c @ w, None

        return jax.lax.scan(body, x, ws)[0]

    # of integers: products of floats the CPU compiler may leave to a library
    x, ws = jnp.ones((32, 64), jnp.int32), jnp.ones((5, 64, 64), jnp.int32)
    text = jax.jit(step).lower(x, ws).compile().as_text()
    found = estimate.estimate(text, CHIP)
    assert found.flops == 5 * 2 * 32 * 64 * 64
    assert found.bytes > 5 * 64 * 64 * 4
    assert flops.count(step, x, ws) == 5 * 2 * 32 * 64 * 64
    rows = estimate.largest(text)
    assert rows[0]["bytes"] >= 5 * 64 * 64 * 4 and rows == sorted(rows, key=lambda r: -r["bytes"])


def test_negative_counters_fail_the_estimate_and_optimal_seconds_do_not_count():
    assert estimate.counters([{"flops": 3.0, "optimal_seconds": -7.0}]) == {"flops": 3.0}
    with pytest.raises(ValueError, match="negative"):
        estimate.estimate(PROGRAM.replace("NOTE", ""), CHIP, {"bytes accessed": -1.0})


@pytest.mark.gpu
def test_the_estimate_is_near_what_a_gpu_takes():
    """Twenty layers of a language model: the measured step lies above the roofline, and not far
    above the sum over operations."""
    import time

    chip = chips.of_device(jax.devices()[0].device_kind)
    assert chip is not None, jax.devices()

    def step(x, ws):
        def body(c, w):
            return c + jnp.tanh(c @ w), None

        return jax.lax.scan(body, x, ws)[0]

    x = jnp.ones((8192, 4096), jnp.bfloat16)
    ws = jnp.full((20, 4096, 4096), 1e-3, jnp.bfloat16)
    compiled = jax.jit(step).lower(x, ws).compile()
    found = estimate.estimate(compiled.as_text(), chip)
    needed = flops.count(step, x, ws) / chip.flops  # a library call hides its operations
    jax.block_until_ready(compiled(x, ws))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(compiled(x, ws))
        times.append(time.perf_counter() - start)
    measured = float(np.median(times))
    assert 0.9 * max(found.seconds, needed) < measured < 4 * max(found.by_operation, needed)
