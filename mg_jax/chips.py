"""What the chips can do, for estimates and for the share of it that a step uses.

Numbers are peaks of one device as jax counts them (a chip of TPU 7x is two). They are published in
cloud.google.com/tpu/docs (pages v4, v5e, v5p, v6e, tpu7x: peak bf16, HBM capacity and bandwidth),
jax-ml.github.io/scaling-book (bytes a second of one link one way; 7x is taken as v5p), and NVIDIA's
data sheets of T4, L4, A100, H100 and H200 (dense, no sparsity).
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """flops: of bfloat16 (float16 on T4) a second; memory: bytes; bandwidth: bytes a second of
    that memory; link: bytes a second of one link in one direction; axes: dimensions of the torus,
    each with a link either way (1 for GPUs: all behind one switch)."""

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    axes: int

    @property
    def wire(self) -> float:
        """Bytes a second that leave a device when a collective runs both ways round one ring."""
        return 2 * self.link if self.axes > 1 else self.link


CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1.228e12, 4.5e10, 3),
    "v5e": Chip("TPU v5e", 197e12, 16 * GIB, 8.19e11, 4.5e10, 2),
    "v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2.765e12, 9.0e10, 3),
    "v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1.638e12, 9.0e10, 2),
    "7x": Chip("TPU 7x (half a chip)", 1153.5e12, 96 * GIB, 3.69e12, 9.0e10, 3),
    "t4": Chip("NVIDIA T4", 65e12, 16e9, 3.2e11, 1.6e10, 1),
    "l4": Chip("NVIDIA L4", 121e12, 24e9, 3.0e11, 3.2e10, 1),
    "a100": Chip("NVIDIA A100 80GB", 312e12, 80e9, 2.039e12, 3.0e11, 1),
    "h100": Chip("NVIDIA H100 SXM", 989e12, 80e9, 3.35e12, 4.5e11, 1),
    "h200": Chip("NVIDIA H200", 989e12, 141e9, 4.8e12, 4.5e11, 1),
}
# how a device calls itself (`device_kind`), the first that it contains
_KINDS = {
    "v5 lite": "v5e", "v5e": "v5e", "v6 lite": "v6e", "v6e": "v6e", "tpu7x": "7x", "tpu v7": "7x",
    "v5p": "v5p", "tpu v5": "v5p", "tpu v4": "v4", "h200": "h200", "h100": "h100", "a100": "a100",
    "tesla t4": "t4", "l4": "l4",
}  # fmt: skip


def of_device(kind: str) -> Chip | None:
    """The chip of a `device_kind`; None for one that is not in the list, as a CPU."""
    kind = kind.lower()
    return next((CHIPS[chip] for text, chip in _KINDS.items() if text in kind), None)
