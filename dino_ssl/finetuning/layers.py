"""Parameter groups whose learning rate falls from the head down to the first layer."""

import re
from itertools import product
from typing import Any

from torch import nn

from dino_ssl.errors import UsageError
from dino_ssl.training.optim import is_plain

BACKBONE, CLASSES = "backbone.", "classes."
BLOCK = re.compile(r"(?:stages|layers)\.\d+\.blocks\.\d+\.|blocks\.\d+\.(?:\d+\.)?|layer\d+\.\d+\.|s\d+\.b\d+\.")
"""First part of a parameter's name in a block: `blocks.3.`, `layer1.0.`, `stages.0.blocks.2.`, `s1.b2.`."""


def layer_of_parameters(network: nn.Module) -> tuple[dict[str, int], int]:
    """Layer by name of parameter, and the head's, which is the last.

    Layer 0 is what comes before the first block: stem, patches, tokens, positions. Each block is one; what stands
    between or behind blocks goes with the block before it. What is not in `network.backbone` is the head's.
    """
    layers: dict[str, int] = {}
    seen: list[str] = []
    for name, _ in network.named_parameters():
        if not name.startswith(BACKBONE):
            continue
        block = BLOCK.match(name.removeprefix(BACKBONE).removeprefix("model."))
        if block and block[0] not in seen:
            seen.append(block[0])
        layers[name] = seen.index(block[0]) + 1 if block else len(seen)
    head = len(seen) + 1
    return {name: layers.get(name, head) for name, _ in network.named_parameters()}, head


def layerwise_groups(network: nn.Module, layer_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters of every layer, first those that weight decay touches, then the rest.

    Each group has the factor of its learning rate, `lr_scale` = layer_decay ** (head - layer), and `is_decayed`.
    The centres of `network.classes` are apart, on one process, too: of several each holds a part of them, and PyTorch
    cannot update parts and whole weights together.

    Raises:
        UsageError: layer_decay is below 1, and no block of the backbone is known by its name.

    Source: Clark et al., arXiv:2003.10555; BEiT, arXiv:2106.08254.
    """
    layers, head = layer_of_parameters(network)
    if layer_decay < 1 and head == 1 and 0 in layers.values():
        raise UsageError(
            f"optim.layer_decay={layer_decay:g} needs blocks, but no parameter of this backbone is named after one; "
            "write --optim.layer-decay 1, or choose a ViT, CMT, ResNet, ConvNeXt or Swin"
        )
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    groups = []
    for layer in sorted({layers[name] for name, _ in named}):
        for is_decayed, is_shared_out in product((True, False), repeat=2):
            inside = [
                p for name, p in named
                if layers[name] == layer and is_plain(name, p) != is_decayed
                and name.startswith(CLASSES) == is_shared_out
            ]  # fmt: skip
            scale = layer_decay ** (head - layer)
            groups.append({"params": inside, "weight_decay": 0.0, "lr_scale": scale, "is_decayed": is_decayed})
    return [group for group in groups if group["params"]]
