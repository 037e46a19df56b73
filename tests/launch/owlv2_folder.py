"""A small OWLv2 of random weights with its tokenizer, in the form of transformers."""

import json
from pathlib import Path

WORDS = "a photo of red blue star cat dog circle traffic light".split()


def write_owlv2(folder: Path, seed: int = 0) -> Path:
    """Made by transformers' own classes; scores are spread around 0.2."""
    import torch
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection

    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(
        {letter for word in WORDS for letter in word} | set("bcdefghijklmnopqrstuvwxyz")
    )
    pieces = ["!", *letters, *(letter + "</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            parts = [parts[0] + parts[1], *parts[2:]]
            if merge not in merges:
                merges.append(merge)
                pieces.append(parts[0])
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, pad_token="!")
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4}  # fmt: skip
    config = Owlv2Config(
        text_config=size | {
            "vocab_size": len(pieces), "max_position_embeddings": 16, "pad_token_id": 0,
            "bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1,
        },
        vision_config=size | {"image_size": 64, "patch_size": 8},
        projection_dim=32,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Owlv2ForObjectDetection(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value += (0.02 if "logit" in name or "box_head" in name else 0.2) * torch.randn_like(
                value
            )
        model.class_head.logit_scale.bias.fill_(5)
        model.class_head.logit_shift.bias.fill_(-0.3)
        for layer in (model.class_head.logit_scale, model.class_head.logit_shift):
            layer.weight.mul_(0.1)
    model.save_pretrained(folder)
    return folder
