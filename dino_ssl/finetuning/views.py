"""What is done to views on their way into a fine-tuning: shifts, erased rectangles, pairs that are mixed."""

import torch
from jaxtyping import Float, Int64
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional as F


def shifted(images: Float[Tensor, "b c h w"], most: int) -> Float[Tensor, "b c h w"]:
    """Each image moved by up to `most` pixels in both directions, zeros coming in.

    It is the padding and random crop of He et al. (2016) for CIFAR; PyTorch's global random state draws.
    """
    if most == 0:
        return images
    batch, _, height, width = images.shape
    padded = F.pad(images, (most,) * 4)
    down, right = torch.randint(0, 2 * most + 1, (2, batch, 1)).to(images.device)
    rows = (down + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (right + torch.arange(width, device=images.device))[:, None, None, :]
    everyone = torch.arange(batch, device=images.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[everyone, channels, rows, columns]


class Mixing:
    """Images and labels -> images and soft targets; timm's mixup, CutMix and random erasing.

    timm draws from the global states of Python's `random` and of NumPy, which checkpoints hold.

    Args:
        mixup, cutmix: alpha of the Beta distribution; 0 turns it off.
        erase: probability of erasing a rectangle of an image.
        label_smoothing: share of each target that is spread over all classes.
    """

    def __init__(
        self, num_classes: int, *, mixup: float, cutmix: float, erase: float, label_smoothing: float, device: str
    ) -> None:
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self._erase = RandomErasing(probability=erase, mode="pixel", device=device) if erase else None
        self._mix = None
        if mixup or cutmix:
            self._mix = Mixup(
                mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=label_smoothing, num_classes=num_classes
            )

    def __call__(
        self, images: Float[Tensor, "b c h w"], labels: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        """New images, and a distribution over the k classes for each."""
        images = images.clone()
        if self._erase is not None:
            images = self._erase(images)
        if self._mix is not None:
            return self._in_pairs(self._mix, images, labels)
        smooth = self.label_smoothing / self.num_classes
        targets = torch.full((len(labels), self.num_classes), smooth, device=images.device)
        return images, targets.scatter(1, labels[:, None], 1 - self.label_smoothing + smooth)

    @staticmethod
    def _in_pairs(
        mix: Mixup, images: Float[Tensor, "b c h w"], labels: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        """The first with the last and so on; of an odd number, the first stays as it is."""
        number = len(images)
        if number % 2:  # a micro-batch of odd size, or one of whose images one is broken
            images, labels = torch.cat((images, images[:1])), torch.cat((labels, labels[:1]))
        mixed, targets = mix(images, labels)
        return mixed[:number], targets[:number]
