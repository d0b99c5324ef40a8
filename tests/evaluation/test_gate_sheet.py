"""The sheet of two networks' maps: a row for each resolution, with the cosines that the maps have."""

import numpy as np
import pytest
import torch

from dino_ssl.evaluation.gate_sheet import SIDE, Gaze, Sight, gate_sheet


def test_the_similarity_is_the_cosine_of_places_and_of_channels() -> None:
    one, other = torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([[1.0, 1], [0, 0]])
    assert Gaze("a", one, other).similarity() == "cosine 0.71"
    channels = torch.tensor([1.0, 2, 3])
    assert Gaze("a", one, one, channels, -channels).similarity() == "cosine 1.00 / -1.00"


@pytest.mark.parametrize("num_channels", [3, 512])
def test_every_resolution_is_a_row_and_every_place_two_maps(num_channels: int) -> None:
    face = np.full((32, 32, 3), 128, np.uint8)
    spot = torch.zeros(7, 7)
    spot[3, 3] = 1
    gazes = [
        Gaze(f"block {n}", spot, -spot, torch.arange(float(num_channels)), torch.ones(num_channels)) for n in (1, 2)
    ]
    small = gate_sheet("t", ["l"], [Sight("1x", face, face, gazes)])
    large = gate_sheet("t", ["l"], [Sight("1x", face, face, gazes), Sight("2x", face, face, gazes)])
    assert large.height - small.height > SIDE and large.width == small.width > 6 * SIDE
    without = gate_sheet("t", ["l"], [Sight("1x", face, face, [Gaze("attention", spot, spot)])])
    assert without.width < small.width and without.height < small.height
