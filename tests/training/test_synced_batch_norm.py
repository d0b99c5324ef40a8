"""Batch norm over the images of two processes is that of one process with all of them; real processes over gloo."""

from functools import partial

import pytest
import torch
from small_runs import a_config, journal_without_times, on_ranks, pretrain_on_ranks, run_here, state_after
from timm.layers import BatchNormAct2d
from torch import nn

from dino_ssl.config import Parallel
from dino_ssl.models.backbone import build_backbone
from dino_ssl.training import distributed
from dino_ssl.training.synced_batch_norm import synchronized

CPU = torch.device("cpu")
PARTS = (slice(3), slice(3, 5))
"""Of five images, what each rank sees."""


def every_kind_of_layer():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 6, 1), BatchNormAct2d(6, act_layer=nn.ReLU),
        nn.Flatten(2), nn.BatchNorm1d(6, momentum=None), nn.Flatten(), nn.Linear(6 * 36, 5), nn.BatchNorm1d(5),
    )  # fmt: skip
    return network.double(), torch.randn(5, 3, 8, 8, dtype=torch.float64)


def a_cmt(kind):
    torch.manual_seed(0)
    cmt = build_backbone("cmt_micro", image_size=32, small_stem=True, position_bias=kind)
    return cmt.double(), torch.randn(5, 3, 32, 48, dtype=torch.float64)


def two_steps(make, *, over_ranks):
    """Features, gradients of the mean over all images, and buffers, after two passes in training mode."""
    network, images = make()
    share = 1 / len(images)
    if over_ranks:
        network = distributed.data_parallel(synchronized(network, CPU), CPU, Parallel())
        # DDP takes the mean over ranks of what each has.
        images, share = images[PARTS[distributed.rank()]], 2 * share
    for _ in range(2):
        network.zero_grad()
        features = network(images)
        (features.sin().sum() * share).backward()
    gradients = {f"gradient {name.removeprefix('module.')}": p.grad for name, p in network.named_parameters()}
    buffers = {name.removeprefix("module."): buffer for name, buffer in network.named_buffers()}
    found = {"features": features.detach(), **gradients, **buffers}
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize("make", [every_kind_of_layer, partial(a_cmt, "free"), partial(a_cmt, "relative")])
def test_two_ranks_have_the_features_gradients_and_statistics_of_one_with_all_images(make):
    alone = two_steps(make, over_ranks=False)
    features = torch.from_numpy(alone.pop("features"))
    for part, found in zip(PARTS, on_ranks(2, partial(two_steps, make, over_ranks=True)), strict=True):
        torch.testing.assert_close(torch.from_numpy(found.pop("features")), features[part], rtol=1e-9, atol=1e-12)
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-11, msg=name)


def test_a_cmt_on_two_ranks_is_the_run_of_one_with_the_joint_batch(tmp_path):
    knobs = {
        "steps": 3,
        "model": {"name": "cmt_micro", "small_stem": True, "drop_path": 0.0},
        "crops": {"global_size": 32, "local_size": 16},
    }
    one, two = (a_config(tmp_path / name, **knobs) for name in ("one", "two"))
    run_here(one)
    assert pretrain_on_ranks(2, two) == ["", ""]
    lines = [[line["train/loss"] for line in journal_without_times(config)[0]] for config in (one, two)]
    assert len(lines[0]) == 3 and lines[0] == pytest.approx(lines[1], abs=1e-5)
    for part in ("student", "teacher", "dino_loss"):
        ours, theirs = (state_after(config, 3)[part] for config in (one, two))
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_in_evaluation_a_synchronised_layer_is_the_layer_itself():
    network, images = every_kind_of_layer()
    two = synchronized(every_kind_of_layer()[0], CPU).eval()
    torch.testing.assert_close(two(images), network.eval()(images))
    assert list(two.state_dict()) == list(network.state_dict())
