"""What collectives, copies from the host and branches cost in a compiled program's estimate."""

import pytest

from launch.aot import estimate
from mg_jax import chips
from mg_jax.chips import Chip

CHIP = Chip("test", flops=1e12, memory=2**34, bandwidth=1e9, link=1e8, axes=2)


def around(devices, size):
    """Seconds of an all-to-all on a ring of the test's chip, each part sent link by link."""
    sent = dict.fromkeys(((d, way) for d in range(devices) for way in (1, -1)), 0.0)
    for start in range(devices):
        for far in range(1, devices):
            ways = [1] if 2 * far < devices else [-1] if 2 * far > devices else [1, -1]
            for way in ways:
                for step in range(min(far, devices - far)):
                    link = (start + way * step) % devices, way
                    sent[link] += size / devices / len(ways)
    return max(sent.values()) / CHIP.link


@pytest.mark.parametrize("devices", [2, 3, 4, 5, 8, 16, 32])
def test_an_all_to_all_takes_what_its_fullest_link_does(devices):
    found = estimate.wire_time("all-to-all", 1e6, devices, CHIP)
    assert found == pytest.approx(around(devices, 1e6))
    switched = chips.CHIPS["h100"]
    found = estimate.wire_time("all-to-all", 1e6, devices, switched)
    assert found == pytest.approx((devices - 1) / devices * 1e6 / switched.link)


def test_no_time_is_told_of_copies_from_the_hosts_memory():
    text = """
ENTRY %main (a: f32[64,32]) -> f32[64,32] {
  %a = f32[64,32]{1,0:T(8,128)SPACE} parameter(0)
  %b = (f32[64,32]{1,0:T(8,128)}, f32[64,32]{1,0:T(8,128)SPACE}, u32[]) copy-start(%a)
  ROOT %c = f32[64,32]{1,0:T(8,128)} copy-done(%b)
}
"""
    assert estimate.estimate(text.replace("SPACE", ""), CHIP).seconds > 0
    with pytest.raises(ValueError, match="config.optim.offload"):
        estimate.estimate(text.replace("SPACE", "S(5)"), CHIP)


CHOICE = """
%none (x: bf16[64,64]) -> bf16[64,64] {
  ROOT %x = bf16[64,64]{1,0} parameter(0)
}

%product (x: bf16[64,64]) -> bf16[64,64] {
  %x = bf16[64,64]{1,0} parameter(0)
  ROOT %c = bf16[64,64]{1,0} convolution(%x, %x), dim_labels=bf_io->bf
}

ENTRY %main (n: s32[], x: bf16[64,64]) -> bf16[64,64] {
  %n = s32[] parameter(0)
  %x = bf16[64,64]{1,0} parameter(1)
  ROOT %r = bf16[64,64]{1,0} conditional(%n, %x, %x), BRANCHES
}
"""


@pytest.mark.parametrize(
    "branches",
    [
        "branch_computations={%product, %none}",
        "branch_computations={%none, %product}",
        "true_computation=%product, false_computation=%none",
        "true_computation=%none, false_computation=%product",
    ],
)
def test_of_branches_the_dearest_counts(branches):
    found = estimate.estimate(CHOICE.replace("BRANCHES", branches), CHIP)
    assert found.flops == 2 * 64**3 and [p.name for p in found.programs] == ["main"]
