from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from dino_ssl.data.crops import dino_recipe
from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.loader import (
    BatchOrder,
    MultiCropDataset,
    Purpose,
    Shares,
    batches,
    share_out,
    stream,
)

RECIPES = dino_recipe(global_size=8, global_scale=(0.4, 1.0), num_local_crops=2, local_size=4, local_scale=(0.05, 0.4))


@dataclass
class Colours:
    """Image i is filled with the colour (i, 2i, 3i), so that a crop tells where it came from."""

    num_images: int
    broken: tuple[int, ...] = ()
    name: str = "colours"
    labels: None = None
    classes: tuple[str, ...] = ()

    def __len__(self):
        return self.num_images

    def image(self, index):
        if index in self.broken:
            raise BrokenImage(f"{index}.png", "truncated")
        return Image.new("RGB", (10, 12), (index, 2 * index, 3 * index))

    def describe(self, index):
        return f"{index}.png"

    def fingerprint(self):
        return "colours"


def keys(num_images=23, *, shares=Shares(1, 1, 6), rank=0, start=0, total=8, seed=0):  # noqa: B008
    return list(BatchOrder(num_images, seed=seed, shares=shares, rank=rank, start_step=start, total_steps=total))


def load(source, order, num_workers=0, seed=0):
    dataset = MultiCropDataset(source, RECIPES, seed)
    return list(batches(dataset, order, num_workers=num_workers, pin_memory=False))


def test_an_epoch_visits_images_once_and_drops_the_incomplete_batch():
    epoch = [index for batch in keys()[:3] for _, index in batch]
    assert len(epoch) == len(set(epoch)) == 18
    assert [{epoch for epoch, _ in batch} for batch in keys()] == [{0}] * 3 + [{1}] * 3 + [{2}] * 2


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = keys()[:3], keys()[3:6]
    assert [i for b in first for _, i in b] != [i for b in second for _, i in b]
    assert keys(seed=1)[:3] != first


@pytest.mark.parametrize("start", [1, 3, 4, 7])
def test_starting_at_a_step_gives_the_rest_of_the_whole_run(start):
    assert keys(start=start) == keys()[start:]


@pytest.mark.parametrize(("ranks", "accumulation"), [(2, 1), (1, 2), (2, 2), (4, 1), (1, 4)])
def test_ranks_and_micro_batches_share_the_same_global_batch(ranks, accumulation):
    shares = Shares(ranks, accumulation, 8 // (ranks * accumulation))
    whole = keys(num_images=40, shares=Shares(1, 1, 8))
    parts = [keys(num_images=40, shares=shares, rank=rank) for rank in range(ranks)]
    for step, batch in enumerate(whole):
        micro = slice(step * accumulation, (step + 1) * accumulation)
        # Micro-batch by micro-batch, the ranks in turn: exactly the order of the global batch.
        together = [key for group in zip(*(part[micro] for part in parts), strict=True) for p in group for key in p]
        assert together == batch


@pytest.mark.parametrize(
    ("batch", "ranks", "limit", "expected"),
    [
        (64, 1, None, (1, 64)),
        (64, 2, None, (1, 32)),
        (64, 2, 16, (2, 16)),
        (60, 1, 16, (4, 15)),
        (7, 1, 3, (7, 1)),
    ],
)
def test_a_batch_is_shared_out_in_the_fewest_equal_parts(batch, ranks, limit, expected):
    shares = share_out(batch, ranks, limit)
    assert (shares.accumulation, shares.micro_batch) == expected
    assert shares.ranks * shares.accumulation * shares.micro_batch == batch


def test_a_batch_that_does_not_divide_among_ranks_is_refused():
    with pytest.raises(ValueError, match=r"batch_size=10 does not divide among 4 ranks; write --batch-size 8"):
        share_out(10, 4, None)


def test_a_batch_holds_global_and_local_views_in_order():
    batch = load(Colours(23), keys()[:1])[0]
    assert [tuple(view.shape) for view in batch.views] == [(2, 6, 3, 8, 8), (2, 6, 3, 4, 4)]
    assert all(view.dtype == torch.uint8 for view in batch.views)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_no_pixel(num_workers):
    order = keys()[:4]
    for alone, together in zip(load(Colours(23), order), load(Colours(23), order, num_workers), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(alone.views, together.views, strict=True))


def test_loading_leaves_the_global_random_states_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    load(Colours(23), keys()[:2])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_crops_change_from_epoch_to_epoch_and_with_the_seed():
    source = Colours(23)
    same, epoch, seed = ([[(0, 5)]], [[(1, 5)]], [[(0, 5)]])
    first = load(source, same)[0].views[0]
    assert torch.equal(first, load(source, same)[0].views[0])
    assert not torch.equal(first, load(source, epoch)[0].views[0])
    assert not torch.equal(first, load(source, seed, seed=1)[0].views[0])


def test_a_broken_image_is_replaced_alike_each_time_and_reported():
    source = Colours(23, broken=(4,))
    order = [[(0, 3), (0, 4)]]
    batch, again = load(source, order)[0], load(source, order, num_workers=1)[0]
    assert batch.broken == again.broken == [("4.png", "truncated")]
    assert batch.views[0].shape[1] == 2
    assert torch.equal(batch.views[0], again.views[0])


def test_a_batch_without_any_readable_image_says_so():
    batch = load(Colours(3, broken=(0, 1, 2)), [[(0, 1)]])[0]
    assert batch.views == [] and len(batch.broken) == 65


def test_streams_differ_by_every_argument():
    draws = {
        stream(seed, purpose, epoch, sample).integers(2**62)
        for seed in (0, 1)
        for purpose in Purpose
        for epoch in (0, 1)
        for sample in (0, 1)
    }
    assert len(draws) == 2 * len(Purpose) * 4
