"""How far the renderers are from PIL, operation by operation, with equal parameters."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image

from dino_ssl.data import render_fused, render_pil
from dino_ssl.data.crops import OPERATIONS, MultiCrop, dino_recipe
from dino_ssl.data.loader import padded
from dino_ssl.data.render_device import render_batch

RECIPE = {"global_size": 224, "global_scale": (0.4, 1.0), "local_size": 96, "local_scale": (0.05, 0.4)}
CROPS = MultiCrop(dino_recipe(**RECIPE, num_local_crops=2))
PARTS = ("resample", "flip", "grayscale", *OPERATIONS, "blur", "solarize", "full recipe")


@dataclass(frozen=True)
class Difference:
    """Grey levels, but for the ratio of standard deviations."""

    mean: float
    p999: float
    shift: float
    deviation_ratio: float


def only(part: str, views: Shaped[np.ndarray, " v"]) -> Shaped[np.ndarray, " v"]:
    """The same boxes with one operation in every view; its own factors where they were drawn."""
    if part == "full recipe":
        return views
    alone = views.copy()
    for name in ("flip", "grayscale", "solarize"):
        alone[name] = name == part
    alone["order"] = -1
    if part in OPERATIONS:
        alone["order"][:, 0] = OPERATIONS.index(part)
    alone["blur_radius"] = np.linspace(0.1, 2.0, len(views)) if part == "blur" else 0.0
    return alone


def render_on_device(
    pixels: UInt8[np.ndarray, "h w c"], views: Shaped[np.ndarray, " v"], out: UInt8[np.ndarray, "v c s s"]
) -> None:
    """One image through the renderer that is made for batches on a GPU."""
    out[:] = render_batch(padded([pixels]), views[:, None], out.shape[-1])[:, 0].numpy()


def differences(
    images: list[Image.Image], num_crops: int, render: Callable[..., None]
) -> Iterator[tuple[str, Difference]]:
    """Each part over `num_crops` crops of 500 x 375 pixels."""
    rng = np.random.default_rng(0)
    num_images = num_crops // len(CROPS.recipes)
    pixels = [np.asarray(images[i % len(images)].resize((500, 375))) for i in range(num_images)]
    drawn = [CROPS.draw(rng, 500, 375) for _ in range(num_images)]
    for part in PARTS:
        pairs = [
            (rendered(render, image, only(part, views)), rendered(render_pil.render, image, only(part, views)))
            for image, views in zip(pixels, drawn, strict=True)
        ]
        ours, theirs = (np.concatenate([pair[side] for pair in pairs]).astype(np.float32) for side in (0, 1))
        gap = np.abs(ours - theirs)
        yield (
            part,
            Difference(
                float(gap.mean()),
                float(np.quantile(gap, 0.999)),
                float(ours.mean() - theirs.mean()),
                float(ours.std() / theirs.std()),
            ),
        )


def rendered(
    render: Callable[..., None], pixels: UInt8[np.ndarray, "h w c"], views: Shaped[np.ndarray, " v"]
) -> UInt8[np.ndarray, " n"]:
    """All views of an image in one row."""
    rooms = [np.zeros((group.stop - group.start, 3, size, size), np.uint8) for group, size in CROPS.groups]
    for (group, _), room in zip(CROPS.groups, rooms, strict=True):
        render(pixels, views[group], room)
    return np.concatenate([room.ravel() for room in rooms])


def fidelity(images: list[Image.Image], num_crops: int) -> None:
    """Print the table of both renderers; of the GPU's, which is slow here, a tenth of the crops."""
    torch.set_grad_enabled(False)
    candidates = (("fused", render_fused.render, num_crops), ("device (on the CPU)", render_on_device, num_crops // 10))
    for name, render, num in candidates:
        print(f"\n{name} against pil, {num} crops, grey levels: mean, p99.9, shift of the mean; ratio of deviations")
        for part, found in differences(images, num, render):
            print(f"  {part:<14}{found.mean:8.3f}{found.p999:8.1f}{found.shift:+8.3f}{found.deviation_ratio:9.4f}")
