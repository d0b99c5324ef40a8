"""Files of weights for commands."""

import torch

from dino_ssl.models.backbone import build_backbone


def write_network(path, image_size=64, patch_size=8):
    """A small ViT as it is built, for --arch vit_micro."""
    torch.manual_seed(0)
    torch.save(build_backbone("vit_micro", image_size=image_size, patch_size=patch_size).state_dict(), path)
    return path
