import numpy as np
import torch

from dino_ssl.data import render_pil
from dino_ssl.data.crops import MultiCrop, dino_recipe
from dino_ssl.data.loader import Batch, padded
from dino_ssl.data.transfer import copied_ahead, normalize

CPU = torch.device("cpu")


def test_normalize_is_the_formula_for_any_number_of_channels():
    for channels in (1, 3, 5):
        pixels = torch.randint(0, 256, (2, 4, channels, 6, 6), dtype=torch.uint8)
        mean, std = np.linspace(0.2, 0.6, channels), np.linspace(0.1, 0.3, channels)
        expected = (pixels.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        torch.testing.assert_close(normalize(pixels, mean.tolist(), std.tolist()).double(), expected, rtol=0, atol=1e-6)


def test_batches_arrive_once_and_in_order():
    crops = MultiCrop(dino_recipe(global_size=8, global_scale=(0.4, 1.0), num_local_crops=0, local_size=4,
                                  local_scale=(0.1, 0.4)))  # fmt: skip
    made = [Batch([torch.full((2, 1, 3, 8, 8), number, dtype=torch.uint8)], [], [0]) for number in range(5)]
    assert [int(batch.views[0][0, 0, 0, 0, 0]) for batch in copied_ahead(made, crops, CPU)] == [0, 1, 2, 3, 4]
    assert list(copied_ahead([], crops, CPU)) == []


def test_whole_images_become_the_views_that_pil_renders():
    """Mean difference in grey levels: the device's arithmetic is not PIL's to the bit."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:60, 0:90]
    images = [
        np.stack([x * 2, y * 3, (x + y) % 256], axis=-1).astype(np.uint8),
        rng.integers(0, 256, (50, 40, 3), np.uint8),
    ]
    crops = MultiCrop(dino_recipe(global_size=32, global_scale=(0.4, 1.0), num_local_crops=3, local_size=16,
                                  local_scale=(0.1, 0.4)))  # fmt: skip
    drawn = np.stack([crops.draw(rng, image.shape[1], image.shape[0]) for image in images], axis=1)
    (batch,) = copied_ahead([Batch([], [("a", "b")], [0, 1], padded(images), drawn)], crops, CPU)
    assert batch.broken == [("a", "b")] and batch.images is None
    for (group, size), views in zip(crops.groups, batch.views, strict=True):
        for place, image in enumerate(images):
            expected = np.zeros((views.shape[0], 3, size, size), np.uint8)
            render_pil.render(image, drawn[group, place], expected)
            assert (views[:, place].int() - torch.from_numpy(expected).int()).abs().float().mean() < 1
