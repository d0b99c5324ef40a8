import io
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from dino_ssl.data import render_fused, render_pil
from dino_ssl.data.crops import MultiCrop, dino_recipe
from dino_ssl.data.decoding import BrokenImage, Decoded
from dino_ssl.data.loader import BOX_GRID, CropDataset, Workers, _shrink_boxes, batches, padded
from dino_ssl.data.order import BatchOrder, Shares
from dino_ssl.data.streams import Purpose, stream
from dino_ssl.data.transfer import copied_ahead

CROPS = MultiCrop(
    dino_recipe(global_size=8, global_scale=(0.4, 1.0), num_local_crops=2, local_size=4, local_scale=(0.05, 0.4))
)
ALONE = Workers(0, 0)


@dataclass
class Colours:
    """Image i is filled with the colour (i, 2i, 3i), so that a crop tells where it came from."""

    num_images: int
    broken: tuple[int, ...] = ()
    name: str = "colours"
    labels: None = None
    classes: tuple[str, ...] = ()
    shard_sizes: None = None
    threads: set[int] = field(default_factory=set)

    def __len__(self):
        return self.num_images

    def raw(self, index):
        self.threads.add(threading.get_ident())
        if index in self.broken:
            raise BrokenImage(f"{index}.png", "truncated")
        return np.full((12, 10 + index, 3), (index, 2 * index, 3 * index), np.uint8)

    def describe(self, index):
        return f"{index}.png"

    def fingerprint(self):
        return "colours"


def keys(num_images=23, start=0, total=4):
    return list(BatchOrder(num_images, seed=0, shares=Shares(1, 1, 6), rank=0, start_step=start, total_steps=total))


def load(source, order, workers=ALONE, *, seed=0, render=render_pil.render, channels=3):
    dataset = CropDataset(source, CROPS, seed, channels, render, enough_pixels=float("inf"))
    return list(batches(dataset, order, workers, pin_memory=False))


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours.views, theirs.views, strict=True))


def test_a_batch_holds_global_and_local_views_in_order():
    batch = load(Colours(23), keys()[:1])[0]
    assert [tuple(view.shape) for view in batch.views] == [(2, 6, 3, 8, 8), (2, 6, 3, 4, 4)]
    assert all(view.dtype == torch.uint8 and view.is_contiguous() for view in batch.views)


def test_each_place_of_a_batch_shows_the_image_of_its_key():
    order = [[(0, 3), (0, 20), (5, 7)]]
    crops = MultiCrop(dino_recipe(
        global_size=8, global_scale=(0.4, 1.0), num_local_crops=2, local_size=4, local_scale=(0.05, 0.4),
        color_jitter=0.0, grayscale=0.0, solarize=0.0,
    ))  # fmt: skip
    dataset = CropDataset(Colours(23), crops, 0, 3, render_pil.render, enough_pixels=float("inf"))
    (batch,) = batches(dataset, order, Workers(0, 2), pin_memory=False)
    for view in batch.views:
        for place, index in enumerate((3, 20, 7)):
            colour = torch.tensor([index, 2 * index, 3 * index], dtype=torch.uint8)
            assert torch.equal(view[:, place], colour[:, None, None].expand_as(view[:, place]))


@pytest.mark.parametrize("workers", [Workers(0, 1), Workers(0, 4), Workers(1, 0), Workers(2, 2)])
def test_workers_change_no_pixel(workers):
    order = keys()
    for alone, together in zip(load(Colours(23), order), load(Colours(23), order, workers), strict=True):
        assert same(alone, together)


@pytest.mark.parametrize("workers", [ALONE, Workers(0, 2), Workers(1, 1)])
def test_starting_in_the_middle_gives_the_same_batches(workers):
    whole, rest = load(Colours(23), keys()), load(Colours(23), keys(start=2), workers)
    assert len(rest) == 2 and all(same(a, b) for a, b in zip(whole[2:], rest, strict=True))


class Noise(Colours):
    """Images of several sizes in which every rounding shows."""

    def raw(self, index):
        return np.random.default_rng(index).integers(0, 256, (30 + 7 * index, 40 + 5 * index, 3), np.uint8)


def pixels_by_key(render, *, ranks=1, start=0, workers=ALONE):
    """Epoch and index -> bytes of all views, rendered here or (None) on the device, over the ranks of a run."""
    source, found = Noise(23), {}
    for rank in range(ranks):
        shares = Shares(ranks, 1, 6 // ranks)
        order = list(BatchOrder(23, seed=0, shares=shares, rank=rank, start_step=start, total_steps=7))
        made = copied_ahead(load(source, order, workers, render=render), CROPS, torch.device("cpu"))
        for keys_of, batch in zip(order, made, strict=True):
            for place, key in enumerate(keys_of):
                found[key] = b"".join(view[:, place].numpy().tobytes() for view in batch.views)
    return found


@pytest.mark.parametrize("render", [render_fused.render, None])
@pytest.mark.parametrize("workers", [ALONE, Workers(0, 1), Workers(0, 4), Workers(2, 2)])
@pytest.mark.parametrize(("ranks", "start"), [(1, 0), (2, 0), (3, 4), (2, 4)])
def test_a_sample_has_the_same_pixels_whatever_the_workers_the_ranks_and_the_first_step(render, workers, ranks, start):
    whole, part = pixels_by_key(render), pixels_by_key(render, ranks=ranks, start=start, workers=workers)
    assert part == {key: whole[key] for key in part}
    assert len(part) == 6 * (7 - start)


def test_one_image_is_enough():
    order = list(BatchOrder(1, seed=0, shares=Shares(1, 1, 1), rank=0, start_step=0, total_steps=2))
    first, second = load(Colours(1), order, Workers(0, 3))
    assert first.views[0].shape[1] == second.views[0].shape[1] == 1


def test_threads_do_the_work_and_stop_with_the_iteration():
    source, before = Colours(23), threading.active_count()
    dataset = CropDataset(source, CROPS, 0, 3, render_pil.render, enough_pixels=float("inf"))
    iterator = batches(dataset, keys(total=8), Workers(0, 2), pin_memory=False)
    next(iterator)
    iterator.close()
    assert threading.get_ident() not in source.threads
    assert threading.active_count() == before


def test_loading_leaves_the_global_random_states_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    load(Colours(23), keys()[:2], Workers(0, 2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_crops_change_from_epoch_to_epoch_and_with_the_seed():
    source = Colours(23)
    first, again, epoch, other = (load(source, [[key]], seed=s)[0] for key, s in
                                  (((0, 5), 0), ((0, 5), 0), ((1, 5), 0), ((0, 5), 1)))  # fmt: skip
    assert same(first, again)
    assert not same(first, epoch)
    assert not same(first, other)


@pytest.mark.parametrize("workers", [ALONE, Workers(0, 2), Workers(1, 0)])
def test_a_broken_image_is_replaced_alike_each_time_and_reported(workers):
    source = Colours(23, broken=(4,))
    order = [[(0, 3), (0, 4)]]
    batch, again = load(source, order)[0], load(source, order, workers)[0]
    assert batch.broken == again.broken == [("4.png", "truncated")]
    assert batch.views[0].shape[1] == 2
    assert same(batch, again)


def test_a_batch_without_any_readable_image_says_so():
    batch = load(Colours(3, broken=(0, 1, 2)), [[(0, 1)]])[0]
    assert batch.views == [] and len(batch.broken) == 65


@pytest.mark.parametrize("workers", [ALONE, Workers(0, 2), Workers(1, 2)])
def test_what_goes_wrong_in_a_worker_comes_out_and_nothing_hangs(workers):
    class Faulty(Colours):
        def raw(self, index):
            if index == 5:
                raise ZeroDivisionError("a bug")
            return super().raw(index)

    with pytest.raises(ZeroDivisionError, match="a bug"):
        load(Faulty(23), keys(total=12), workers)


def test_a_source_of_other_channels_is_named_where_it_cannot_be_converted():
    batch = load(Colours(23), keys()[:1], channels=4)[0]
    assert batch.views == []
    assert batch.broken[0][1] == "3 channels where crops.channels=4"


def test_grey_is_asked_for_with_one_channel():
    batch = load(Colours(23), keys()[:1], channels=1)[0]
    assert [tuple(view.shape) for view in batch.views] == [(2, 6, 1, 8, 8), (2, 6, 1, 4, 4)]


@pytest.mark.parametrize("workers", [ALONE, Workers(0, 2), Workers(1, 2)])
def test_for_the_device_whole_images_travel_with_the_views_that_the_others_render(workers):
    order = keys()[:2]
    whole = load(Colours(23), order, workers, render=None)
    for batch, expected in zip(whole, load(Colours(23), order), strict=True):
        assert batch.images is not None and tuple(batch.images.shape) == (6, 64, 64, 3)
        out = np.zeros((4, 3, 8, 8), np.uint8)
        for place in range(6):
            render_pil.render(batch.images[place].numpy(), batch.drawn[:2, place], out[:2])
            assert torch.equal(torch.from_numpy(out[:2]), expected.views[0][:, place])


def test_padding_keeps_every_pixel_and_adds_zeros():
    images = [np.full((70, 20, 1), 9, np.uint8), np.full((30, 100, 1), 7, np.uint8)]
    batch = padded(images)
    assert tuple(batch.shape) == (2, 128, 128, 1)
    for image, place in zip(images, batch, strict=True):
        assert torch.equal(place[: image.shape[0], : image.shape[1]], torch.from_numpy(image))
        assert place.sum() == image.sum()


def test_wide_and_tall_images_in_one_batch_do_not_blow_each_other_up():
    """16000 x 8 and 8 x 16000 pixels padded to each other would be 768 MB an image; their views come instead."""

    @dataclass
    class Thin(Colours):
        def raw(self, index):
            shape = (8, 16000, 3) if index % 2 else (16000, 8, 3)
            return np.random.default_rng(index).integers(0, 256, shape, np.uint8)

    order = [[(0, 0), (0, 1)]]
    (whole,), (views,) = (load(Thin(2), order, render=render) for render in (None, render_fused.render))
    assert whole.images is None
    assert same(whole, views)


def test_boxes_of_a_shrunk_image_cover_the_same_share_and_stay_inside():
    """1001 x 667 pixels decoded to 501 x 334: at most a pixel of the small image off, never beyond its edge."""
    rng = np.random.default_rng(0)
    image = Decoded(np.zeros((334, 501, 3), np.uint8), 1001, 667)
    boxes = np.concatenate([MultiCrop(CROPS.recipes).draw(rng, 1001, 667)["box"] for _ in range(200)])
    boxes = np.concatenate([boxes, [[0, 0, 1001, 667], [1000, 666, 1, 1]]])
    shrunk = boxes.copy()
    _shrink_boxes(shrunk, image)
    scale = np.array([501 / 1001, 334 / 667] * 2)
    np.testing.assert_allclose(shrunk, boxes * scale, atol=2 / BOX_GRID)
    assert (shrunk[:, :2] >= 0).all() and (shrunk[:, 2:] > 0).all()
    assert (np.ceil(shrunk[:, :2] + shrunk[:, 2:]) <= (501, 334)).all()


def test_an_image_much_larger_than_its_crops_is_decoded_small_and_looks_the_same():
    y, x = np.mgrid[0:600, 0:800]
    smooth = np.stack([x * 255 // 800, y * 255 // 600, (x + y) * 255 // 1400], axis=-1).astype(np.uint8)

    @dataclass
    class Large(Colours):
        def raw(self, index):
            return jpeg(smooth)

    plain = MultiCrop(dino_recipe(
        global_size=32, global_scale=(0.4, 1.0), num_local_crops=2, local_size=16, local_scale=(0.05, 0.4),
        color_jitter=0.0, grayscale=0.0, solarize=0.0, blur=(0.0, 0.0, 0.0),
    ))  # fmt: skip
    whole, small = (
        next(iter(batches(CropDataset(Large(4), plain, 0, 3, render_pil.render, enough_pixels=enough),
                          [[(0, 0), (0, 1), (0, 2), (0, 3)]], ALONE, pin_memory=False)))
        for enough in (float("inf"), plain.enough_pixels)
    )  # fmt: skip
    for ours, theirs in zip(small.views, whole.views, strict=True):
        assert not torch.equal(ours, theirs)
        assert (ours.int() - theirs.int()).abs().float().mean() < 1


def jpeg(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def test_streams_differ_by_every_argument():
    draws = {
        stream(seed, purpose, epoch, sample).integers(2**62)
        for seed in (0, 1)
        for purpose in Purpose
        for epoch in (0, 1)
        for sample in (0, 1)
    }
    assert len(draws) == 2 * len(Purpose) * 4
