"""The original's views, written with the same PIL and torchvision calls (facebookresearch/dino, `main_dino.py`)."""

import io
import random
from collections.abc import Callable

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MaybeBlur:
    """PIL's Gaussian blur of a random radius, with a probability."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() > self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class MaybeSolarize:
    """Invert the bright pixels, with a probability."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if random.random() < self.probability else image


def view(size: int, scale: tuple[float, float], *, blur: float, solarize: float) -> Callable[[Image.Image], Tensor]:
    """The chain of one view, floats out."""
    return transforms.Compose([
        transforms.RandomResizedCrop(size, scale=scale, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.RandomApply([transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        MaybeBlur(blur),
        MaybeSolarize(solarize),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip


VIEWS = [view(224, (0.4, 1.0), blur=1.0, solarize=0.0), view(224, (0.4, 1.0), blur=0.1, solarize=0.2)] + [
    view(96, (0.05, 0.4), blur=0.5, solarize=0.0)
] * 8


def original_views(data: bytes) -> list[Tensor]:
    """Decode a JPEG and make its two global and eight local views."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return [one(image) for one in VIEWS]


class OriginalDataset(torch.utils.data.Dataset[list[Tensor]]):
    """What the original's DataLoader is given: an image a call, collated by PyTorch."""

    def __init__(self, encoded: list[bytes]) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> list[Tensor]:
        return original_views(self.encoded[index])
