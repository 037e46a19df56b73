"""Encoded samples to the rows of a batch, whatever the system."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mg_jax.errors import Unfit

GAZE = 192  # looks of a sample in a batch; what it has beyond is left out


def check_length(count: int, limit: int, where: str, asking: bool = False) -> None:
    """Raises Unfit when a text has more tokens than a codec's `text_tokens`, its limit.

    asking: it is a question to a trained model, whose limit is what it is.
    """
    if count <= limit:
        return
    if asking:
        fact, mend = f"the model takes {limit}", "shorten it, or begin a new conversation"
    else:
        fact, mend = f"text_tokens is {limit}", "shorten the conversation or raise text_tokens"
    raise Unfit("long text", f"{where}: {count} tokens of text, but {fact}: {mend}")


def check_size(count: int, longest: int, where: str, planned: int | None = None) -> None:
    """Raises Unfit when a sequence has more tokens than the longest bucket, or than were planned
    for its batch."""
    if count > longest:
        raise Unfit("long text", f"{where}: {count} tokens, but the longest bucket is {longest}")
    if planned is not None and count > planned:
        raise Unfit(
            "longer than planned", f"{where}: {count} tokens, but its batch has room for {planned}"
        )


def check_slots(kind: str, count: int, slots: int, where: str) -> None:
    """Raises Unfit when a sample has more regions of a kind than slots."""
    if count > slots:
        raise Unfit(
            f"{kind} regions",
            f"{where}: {count} {kind} regions, but there are {slots} slots: "
            f"give fewer or raise {kind}_slots",
        )


def pad_rows(
    samples: Sequence[Mapping[str, np.ndarray]],
    sizes: Iterable[int],
    pad: int,
    slots: Mapping[str, int],
    names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """A batch of fixed shape: B rows as long as the smallest of `sizes` that holds them all.

    slots: room for the boxes of each kind. names: what to call the samples in errors. Returns
    tokens [B,T] int32 (`pad` beyond a sample's), valid, loss_mask [B,T] bool (none when no sample
    has one), and of each kind KIND_boxes [B,slots,4] float32, KIND_mask [B,slots] bool. Raises
    UserError for a sample longer than every size or with more boxes than slots.
    """
    names = names or [f"sample {n}" for n in range(len(samples))]
    lengths = [len(s["tokens"]) for s in samples]
    sizes, worst = sorted(sizes), int(np.argmax(lengths))
    check_size(lengths[worst], sizes[-1], names[worst])
    rows, size = len(samples), next(size for size in sizes if size >= lengths[worst])
    batch = {
        "tokens": np.full((rows, size), pad, np.int32),
        "valid": np.zeros((rows, size), bool),
        "loss_mask": np.zeros((rows, size), bool),
    }
    for kind, count in slots.items():
        batch[f"{kind}_boxes"] = np.zeros((rows, count, 4), np.float32)
        batch[f"{kind}_mask"] = np.zeros((rows, count), bool)
        for n, sample in enumerate(samples):
            boxes = sample[f"{kind}_boxes"]
            check_slots(kind, len(boxes), count, names[n])
            batch[f"{kind}_boxes"][n, : len(boxes)] = boxes
            batch[f"{kind}_mask"][n, : len(boxes)] = True
    for n, sample in enumerate(samples):
        batch["tokens"][n, : lengths[n]] = sample["tokens"]
        batch["valid"][n, : lengths[n]] = True
        if "loss_mask" in sample:
            batch["loss_mask"][n, : lengths[n]] = sample["loss_mask"]
    if not any("loss_mask" in s for s in samples):
        del batch["loss_mask"]
    return batch


def collate_gaze(
    samples: Sequence[Mapping[str, np.ndarray]], slots: int = GAZE
) -> dict[str, np.ndarray]:
    """Where answers look: gaze [B,slots,2 or 4] int32 and gaze_weight [B,slots], 0 beyond what a
    sample has."""
    gaze = np.zeros((len(samples), slots, samples[0]["gaze"].shape[1]), np.int32)
    weight = np.zeros((len(samples), slots), np.float32)
    for n, sample in enumerate(samples):
        count = min(len(sample["gaze"]), slots)
        gaze[n, :count] = sample["gaze"][:count]
        weight[n, :count] = sample["gaze_weight"][:count]
    return {"gaze": gaze, "gaze_weight": weight}
