import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dino_ssl.evaluation import video
from dino_ssl.evaluation.video import Propagation, carry_masks, first_labels, frame_size, hard_mask, look_up, propagate
from dino_ssl.models.attention_map import NoAttention
from dino_ssl.models.block_features import only_block

CHANNELS = 48


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape, seed=1):
    return noise(*shape, seed=seed).softmax(-3)


def naive(queries, keys, context, *, radius, top_k=5, temperature=0.1):
    """The protocol with the tables of all pairs: affinity of every key, those outside the window zero."""
    (_, height, width), frames = queries.shape, len(keys)
    affinity = torch.zeros(height * width, frames, height, width)
    for y in range(height):
        for x in range(width):
            for v in range(height):
                for u in range(width):
                    if radius == 0 or (abs(y - v) <= radius and abs(x - u) <= radius):
                        affinity[y * width + x, :, v, u] = (keys[:, :, v, u] @ queries[:, y, x] / temperature).exp()
    flat = affinity.flatten(1)
    flat = flat * (flat >= flat.topk(min(top_k, flat.shape[1]), dim=1).values[:, -1:])
    flat = flat / flat.sum(1, keepdim=True)
    return torch.einsum("qfvu,fcvu->cq", flat.view_as(affinity), context).view(-1, height, width)


@pytest.mark.parametrize("tile", [1, 3, 16])
@pytest.mark.parametrize(
    "settings", [Propagation(radius=2), Propagation(radius=0, top_k=3), Propagation(radius=1, top_k=50)]
)
def test_looking_up_in_tiles_equals_the_table_of_all_pairs(monkeypatch, settings, tile):
    monkeypatch.setattr(video, "TILE", tile)
    queries, keys = F.normalize(noise(6, 7, 5), dim=0), F.normalize(noise(3, 6, 7, 5, seed=2), dim=1)
    context = labels(3, 4, 7, 5)
    expected = naive(queries, keys, context, radius=settings.radius, top_k=settings.top_k)
    torch.testing.assert_close(look_up(queries, keys, context, settings), expected)


def test_keys_that_are_equally_similar_all_count():
    keys = F.normalize(torch.ones(4, 6, 3, 3), dim=1)  # 36 ties for five places
    context = labels(4, 2, 3, 3)
    found = look_up(keys[0], keys, context, Propagation(radius=0))
    torch.testing.assert_close(found, context.mean((0, 2, 3))[:, None, None].expand(2, 3, 3))


def test_the_context_is_the_first_frame_and_the_last_few_with_their_soft_labels():
    settings = Propagation(num_context=2, radius=2)
    frames, first = list(noise(6, 8, 4, 4)), F.one_hot(torch.arange(16).view(4, 4) % 3, 3).permute(2, 0, 1).float()
    unit = [F.normalize(frame, dim=0) for frame in frames]
    soft = [first]
    for now in range(1, 6):
        asked = [0, *range(max(1, now - 2), now)]
        keys, context = torch.stack([unit[i] for i in asked]), torch.stack([soft[i] for i in asked])
        soft.append(naive(unit[now], keys, context, radius=2))
    torch.testing.assert_close(torch.stack(list(propagate(frames, first, settings))), torch.stack(soft))


class Pixels(nn.Module):
    """Each pixel is a patch, and its own features."""

    embed_dim, num_blocks, num_attention_blocks, patch_size, stage_dims = CHANNELS, 1, 0, 1, ()

    def patch_features(self, images):
        return images

    def forward(self, images):
        return images.mean((2, 3))

    def last_blocks(self, images, n):
        return only_block("pixels", n, images)

    def attention(self, images, block=-1):
        raise NoAttention("pixels have none")

    def set_grad_checkpointing(self, enable=True):
        raise NotImplementedError

    def stage_features(self, images):
        raise NotImplementedError

    pooled_and_stages = pooled_and_preactivations = stage_features


def moving_square(num_frames, step, side=12):
    """Frames and masks of a square with a texture of its own over noise.

    The noise repeats every 8 pixels: what the square uncovers was to be seen before, beside it.
    """
    rng = np.random.default_rng(0)
    ground = np.tile(rng.integers(0, 256, (CHANNELS, 8, 8), np.uint8), (1, 8, 8))
    square = rng.integers(0, 256, (CHANNELS, side, side), np.uint8)
    frames, masks = [], []
    for now in range(num_frames):
        frame, mask = ground.copy(), np.zeros((64, 64), np.uint8)
        place = tuple(slice(26 + move * now, 26 + move * now + side) for move in step)
        frame[:, *place], mask[place] = square, 1
        frames.append(torch.from_numpy(frame))
        masks.append(torch.from_numpy(mask))
    return frames, masks


def carried(frames, first):
    return carry_masks(
        Pixels(), frames, first, Propagation(short_side=64), mean=(0.5,) * CHANNELS, std=(0.3,) * CHANNELS,
        device=torch.device("cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("step", [(0, 0), (1, 2), (-2, 0), (1, -2)])
def test_a_square_that_moves_over_noise_is_followed_without_a_wrong_pixel(step):
    frames, masks = moving_square(12, step)
    found = list(carried(iter(frames), masks[0]))
    assert torch.equal(torch.stack(found), torch.stack(masks))


def test_the_frames_are_asked_for_one_by_one():
    frames, masks = moving_square(4, (0, 0))
    asked = []

    def watched():
        for number, frame in enumerate(frames):
            asked.append(number)
            yield frame

    found = carried(watched(), masks[0])
    assert torch.equal(next(found), masks[0])
    next(found)
    assert asked == [0, 1]


@pytest.mark.parametrize(
    ("height", "width", "patch", "expected"),
    [
        (480, 854, 16, (480, 832)),  # DAVIS
        (480, 854, 8, (480, 832)),
        (480, 854, 14, (476, 826)),  # 34 and 59 patches
        (854, 480, 16, (832, 480)),
        (1080, 1920, 16, (480, 832)),
        (480, 480, 16, (480, 448)),
        (2160, 4096, 32, (480, 896)),
    ],
)  # fmt: skip
def test_frame_sizes_are_worked_by_hand(height, width, patch, expected):
    assert frame_size(height, width, patch, 480) == expected


def test_frames_are_resized_as_opencv_does():
    frame = np.random.default_rng(0).integers(0, 256, (97, 173, 3), np.uint8)
    expected = cv2.resize(frame, (128, 64)).astype(int)
    ours = video._resized(torch.from_numpy(frame).permute(2, 0, 1), (64, 128)).permute(1, 2, 0).numpy()
    assert abs(ours - expected).max() <= 1


def test_a_small_object_keeps_its_label_though_the_background_is_stronger_everywhere():
    soft = torch.full((2, 4, 4), 0.0)
    soft[1, 1, 1] = 0.3
    soft[0] = 1 - soft[1]
    mask = hard_mask(soft, (4, 4), (8, 8))
    expected = torch.zeros(8, 8, dtype=torch.uint8)
    expected[2:4, 2:4] = 1
    assert torch.equal(mask, expected)


def test_without_an_object_all_is_background_and_nothing_is_divided_by_zero():
    soft = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])
    assert not hard_mask(soft, (8, 8), (9, 7)).any()
    assert hard_mask(soft.flip(0), (8, 8), (9, 7)).all()


def test_an_object_smaller_than_a_patch_does_not_renumber_the_others():
    mask = torch.zeros(16, 16, dtype=torch.uint8)
    mask[0, 0], mask[8:, 8:] = 1, 2
    first = first_labels(mask, (4, 4))
    assert first.shape == (3, 4, 4)
    assert first[1].sum() == 0 and first[2, 2:, 2:].all()


SCRIPT = """
import resource, torch
from dino_ssl.evaluation.video import Propagation, look_up
keys = torch.nn.functional.normalize(torch.randn(8, 16, 60, 104), dim=1)
labels = torch.rand(8, 3, 60, 104)
look_up(keys[0, :, :8, :8], keys[:1, :, :8, :8], labels[:1, :, :8, :8], Propagation())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
look_up(keys[0], keys, labels, Propagation({}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("arguments", ["", "radius=0"])
def test_memory_stays_far_below_the_table_of_all_pairs(arguments):
    # Patches of 8 pixels on a frame of DAVIS: all pairs with eight frames are 1.2 GB.
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(arguments)], capture_output=True, text=True, check=True, timeout=300
    )
    kilobytes = int(run.stdout) // (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < 300_000
