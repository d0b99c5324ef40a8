"""Views of the original linear protocol: torchvision's crop and mirror, drawn from (seed, epoch, image) alone."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from dino_ssl.data.decoding import bands
from dino_ssl.data.pixels import Pixels
from dino_ssl.evaluation.linear_views import StepOrder, TrainingViews, load_views, rendered


def a_source(num_images=6, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, 40, 56, channels), dtype=np.uint8)
    return Pixels(pixels, None, (), "noise")


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_view_is_torchvisions_resized_crop_and_mirror(channels, mirror):
    pixels = a_source(channels=channels).images[0]
    ours = rendered(pixels, [3.0, 5.0, 30.0, 20.0], 24, mirror=mirror)
    for place, band in enumerate(bands(pixels)):
        view = TF.resized_crop(band, 5, 3, 20, 30, [24, 24], InterpolationMode.BILINEAR)
        expected = TF.pil_to_tensor(TF.hflip(view) if mirror else view)
        assert torch.equal(ours if channels == 3 else ours[place : place + 1], expected)


def test_a_view_depends_on_seed_epoch_and_image():
    views, others = TrainingViews(a_source(), 16, 3, seed=0), TrainingViews(a_source(), 16, 3, seed=1)
    first = views[0, 2][1]
    assert torch.equal(views[0, 2][1], first)
    assert not any(torch.equal(other[1], first) for other in (views[1, 2], others[0, 2]))


def test_half_of_the_views_are_mirrored_and_areas_are_between_8_and_100_percent():
    """A ramp from left to right shows both: which side is dark, and how much of it is seen."""
    ramp = np.broadcast_to(np.linspace(0, 255, 200).round().astype(np.uint8)[None, None, :, None], (1, 200, 200, 3))
    views = TrainingViews(Pixels(np.ascontiguousarray(ramp), None, (), "ramp"), 32, 3, seed=0)
    seen = torch.stack([views[epoch, 0][1] for epoch in range(400)]).float()
    slope = seen[:, 0, 16, -1] - seen[:, 0, 16, 0]
    assert (slope < 0).double().mean().item() == pytest.approx(0.5, abs=0.08)
    widths = slope.abs() / 255 * 32 / 31
    assert widths.min() > (0.08 * 0.75) ** 0.5 - 0.02 and widths.max() > 0.9
    # Uniform areas and log-uniform ratios around 1, those that do not fit drawn again: about 0.69 of the side.
    assert widths.mean().item() == pytest.approx(0.69, abs=0.04)


@pytest.mark.parametrize("world_size", [1, 3])
def test_ranks_share_every_image_of_an_epoch_once_and_the_steps_of_one_process(world_size):
    alone = list(StepOrder(10, 4, 0, 0, 2))
    ranks = [list(StepOrder(10, 4, 0, 0, 2, rank, world_size)) for rank in range(world_size)]
    together = [[key for keys in step for key in keys] for step in zip(*ranks, strict=True)]
    assert together == alone and [len(step) for step in alone] == [4, 4, 2, 4, 4, 2]
    for epoch in range(2):
        assert sorted(key for step in alone for key in step if key[0] == epoch) == [(epoch, i) for i in range(10)]
    assert list(StepOrder(10, 4, 0, 1, 2)) == alone[3:]


def test_a_rank_without_images_in_a_step_gets_an_empty_one():
    order = StepOrder(5, 4, 0, 0, 1, rank=1, world_size=2)
    steps = list(load_views(TrainingViews(a_source(5), 16, 3, 0), order, num_workers=0, pin_memory=False))
    assert [len(step.indices) for step in steps] == [2, 0]
    assert steps[1].pixels.shape == (0, 3, 16, 16)
