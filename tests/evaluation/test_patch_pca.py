import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from dino_ssl.errors import UsageError
from dino_ssl.evaluation.patch_pca import fit_colours


def features(*grids, dim=8):
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(2, 0.5, dim)[:, None, None]
    return [torch.randn(dim, *grid, generator=generator) * scale + number for number, grid in enumerate(grids)]


def standard(maps):
    """All patches, each image with mean 0 and a mean square of 1."""
    patches = [each.flatten(1).T.double().numpy() for each in maps]
    centred = [each - each.mean(0) for each in patches]
    return np.concatenate([each / np.sqrt((each**2).mean()) for each in centred]).astype(np.float32)


def test_colours_are_the_components_of_sklearn_between_their_outer_hundredths():
    maps = features((6, 9), (12, 4))
    scores = PCA(3, svd_solver="full").fit_transform(standard(maps))
    low, high = np.percentile(scores, [1, 99], axis=0)
    expected = (((scores - low) / (high - low)).clip(0, 1) * 255).round().astype(int)
    colours = fit_colours(maps, foreground=False)
    found = np.concatenate([colours.paint(each).reshape(-1, 3) for each in maps])
    assert np.abs(found - expected).max() <= 1


def test_what_is_the_same_all_over_an_image_and_its_contrast_do_not_count():
    first, second = features((6, 9), (12, 4))
    colours = fit_colours([first, second], foreground=False)
    found, expected = (colours.paint(each).astype(int) for each in (0.1 * first + 10, first))
    assert np.abs(found - expected).max() <= 1


def test_the_object_is_what_differs_from_the_border_of_the_images():
    generator = torch.Generator().manual_seed(0)
    maps = []
    for top, left in ((2, 2), (4, 5)):
        each = 0.1 * torch.randn(8, 10, 12, generator=generator)
        each[1] += torch.linspace(-5, 5, 12)  # where in the image a patch lies is the first component
        each[0, top : top + 4, left : left + 5] += 5
        maps.append(each)
    colours = fit_colours(maps, foreground=True)
    for each, (top, left) in zip(maps, ((2, 2), (4, 5)), strict=True):
        shown = colours.paint(each).any(-1)
        assert shown[top : top + 4, left : left + 5].mean() > 0.9  # black is a colour, too, of few
        shown[top : top + 4, left : left + 5] = False
        assert shown.mean() < 0.05  # position leaks into the component of the object


def test_too_few_patches_are_a_mistake():
    with pytest.raises(UsageError, match="three patches or more"):
        fit_colours(features((1, 2)), foreground=False)
