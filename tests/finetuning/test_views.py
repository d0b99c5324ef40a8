"""Shifts against padding and cropping; soft targets against the formulas of label smoothing, mixup and CutMix."""

import numpy as np
import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from torch.nn import functional as F

from dino_ssl.finetuning.classify import soft_cross_entropy
from dino_ssl.finetuning.views import Mixing, shifted


def mixing(num_classes=5, *, mixup=0.0, cutmix=0.0, erase=0.0, label_smoothing=0.0):
    return Mixing(num_classes, mixup=mixup, cutmix=cutmix, erase=erase, label_smoothing=label_smoothing, device="cpu")


def test_a_shift_is_zero_padding_and_a_crop_of_the_old_size():
    images = torch.randn(16, 2, 6, 5)
    torch.manual_seed(3)
    found = shifted(images, 2)
    torch.manual_seed(3)
    down, right = torch.randint(0, 5, (2, 16, 1))
    for image, moved, y, x in zip(images, found, down[:, 0].tolist(), right[:, 0].tolist(), strict=True):
        padded = F.pad(image, (2, 2, 2, 2))
        torch.testing.assert_close(moved, padded[:, y : y + 6, x : x + 5], atol=0, rtol=0)
    assert len({(y, x) for y, x in zip(down[:, 0].tolist(), right[:, 0].tolist(), strict=True)}) > 5
    assert shifted(images, 0) is images


def test_smoothed_targets_give_pytorchs_label_smoothing():
    logits, labels, images = torch.randn(7, 5), torch.randint(0, 5, (7,)), torch.randn(7, 3, 4, 4)
    for smoothing in (0.0, 0.1):
        same, targets = mixing(label_smoothing=smoothing)(images, labels)
        torch.testing.assert_close(same, images, atol=0, rtol=0)
        torch.testing.assert_close(targets.sum(1), torch.ones(7))
        expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        torch.testing.assert_close(soft_cross_entropy(logits, targets), expected)
        torch.testing.assert_close(SoftTargetCrossEntropy()(logits, targets), expected)


def test_mixup_mixes_images_and_targets_with_one_weight():
    images, labels = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 3, 4, 0])
    before = images.clone()
    np.random.seed(0)
    mixed, targets = mixing(mixup=1.0)(images, labels)
    share = targets[1, 1].item()
    assert 0 < share < 1
    torch.testing.assert_close(targets[1, 4].item(), 1 - share)  # paired with the batch backwards
    torch.testing.assert_close(mixed, share * before + (1 - share) * before.flip(0))
    torch.testing.assert_close(images, before, atol=0, rtol=0)


def test_cutmix_pastes_a_rectangle_and_weighs_by_its_area():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 1, 16, 16).contiguous()
    np.random.seed(3)
    mixed, targets = mixing(cutmix=1.0)(images, torch.arange(4))
    pasted = mixed[0] == 3  # paired with the last
    assert 0 < pasted.sum() < 256
    torch.testing.assert_close(targets[0, 3].item(), pasted.float().mean().item())
    assert ((mixed[0] == 0) | pasted).all()


def test_erasing_changes_a_rectangle_of_about_as_many_images_as_asked():
    torch.manual_seed(0)
    images = torch.full((200, 3, 12, 12), 9.0)
    erased, _ = mixing(erase=0.25)(images, torch.zeros(200, dtype=torch.long))
    changed = (erased != 9.0).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(0.25, abs=0.1)
    assert (images == 9.0).all()


@pytest.mark.parametrize("number", [1, 5])
def test_of_an_odd_number_of_images_the_first_is_not_mixed(number):
    images, labels = torch.rand(number, 1, 2, 2), torch.arange(number) % 5
    np.random.seed(0)
    mixed, targets = mixing(mixup=1.0)(images, labels)
    torch.testing.assert_close(mixed[0], images[0])
    torch.testing.assert_close(targets[0], F.one_hot(labels[0], 5).float())
    for image in range(1, number):  # the others among themselves
        share, other = targets[image, labels[image]], number - image
        torch.testing.assert_close(mixed[image], share * images[image] + (1 - share) * images[other])
