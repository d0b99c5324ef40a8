from fractions import Fraction

import pytest
import torch

from dino_ssl.evaluation.masks import mass_mask


def naive(weights: list[int], mass: Fraction) -> list[bool]:
    """In exact numbers: drop from the smallest on while what stays still holds the mass."""
    kept = [True] * len(weights)
    for place in sorted(range(len(weights)), key=lambda place: weights[place]):
        kept[place] = False
        if sum(w for w, k in zip(weights, kept, strict=True) if k) < mass * sum(weights):
            kept[place] = True
            break
    return kept


@pytest.mark.parametrize("mass", ["1/10", "1/3", "1/2", "6/10", "9/10", "99/100"])
@pytest.mark.parametrize("largest", [2, 10, 100_000])
def test_a_mask_is_the_one_that_exact_numbers_give(mass, largest):
    maps = torch.randint(1, largest, (20, 6, 7), generator=torch.Generator().manual_seed(largest))
    found = mass_mask(maps.float(), float(Fraction(mass)))
    for weights, mask in zip(maps, found, strict=True):
        assert mask.flatten().tolist() == naive(weights.flatten().tolist(), Fraction(mass))


@pytest.mark.parametrize("mass", [0.05, 0.3, 0.6, 0.95])
def test_what_stays_holds_the_mass_and_without_its_smallest_patch_no_longer(mass):
    maps = torch.randn(3, 4, 30, 40, generator=torch.Generator().manual_seed(0)).flatten(2).softmax(-1)
    maps = maps.unflatten(-1, (30, 40)).double()
    mask = mass_mask(maps, mass)
    held = (maps * mask).sum((-2, -1))
    smallest = maps.masked_fill(~mask, 1).amin((-2, -1))
    assert (held >= mass).all() and (held - smallest < mass).all()


def test_of_equal_weights_the_later_ones_stay():
    assert mass_mask(torch.ones(2, 5), 0.6).tolist() == [[False] * 4 + [True], [True] * 5]


def test_the_whole_mass_leaves_out_only_patches_without_any():
    assert mass_mask(torch.tensor([[0.0, 1.0, 3.0, 0.0]]), 1.0).tolist() == [[False, True, True, False]]


def test_one_patch_that_holds_more_than_the_mass_stays_alone():
    assert mass_mask(torch.tensor([[0.01, 0.97, 0.02]]), 0.6).tolist() == [[False, True, False]]
