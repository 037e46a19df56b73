"""Write manifests of published checkpoints from their configs, moving no bytes.

    python -m conversion.manifests vicuna_7b_v15 qwen25_3b    # or none for all

The class that `architectures` of NAME.json names is built on the meta device; what its
`save_pretrained` would write goes to NAME.tsv (a tied copy is left out, as in published files).
Configs that name no class of transformers are passed over; a detector's backbone needs timm.
"""

import sys
from collections.abc import Mapping
from typing import Any

from conversion import manifests


def shapes(raw: Mapping[str, Any]) -> manifests.Shapes:
    """{tensor: shape} of the checkpoint that a config.json is of."""
    import torch
    import transformers

    kind = getattr(transformers, raw["architectures"][0])
    with torch.device("meta"):
        model = kind(kind.config_class.from_dict(raw))
    state = saved(model)
    tied = model.all_tied_weights_keys if raw.get("tie_word_embeddings") else ()
    return {name: tuple(x.shape) for name, x in state.items() if name not in tied}


def saved(model) -> dict:
    """The state dict of a transformers model under the names of its files."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ModuleNotFoundError:  # transformers 4 has one set of names
        return model.state_dict()
    return revert_weight_conversion(model, model.state_dict())


def main(names: list[str]) -> None:
    """Write the manifests `names`, or of every stored config."""
    stored = sorted(path.stem for path in manifests.FOLDER.glob("*.json"))
    if unknown := sorted(set(names) - set(stored)):
        sys.exit(f"error: {unknown[0]}.json is not in {manifests.FOLDER}: write that first")
    for name in names or (name for name in stored if "architectures" in manifests.config(name)):
        lines = manifests.compact(shapes(manifests.config(name)))
        (manifests.FOLDER / f"{name}.tsv").write_text("\n".join(lines) + "\n")
        print(f"wrote {name}.tsv")


if __name__ == "__main__":
    main(sys.argv[1:])
