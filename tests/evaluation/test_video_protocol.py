import numpy as np
import pytest
import torch

from dino_ssl.data.masks import default_palette
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.mask_overlay import laid_over, sheet, shown_palette
from dino_ssl.evaluation.video_metrics import contour_accuracy
from dino_ssl.evaluation.video_protocol import by_clip_and_object, check, measurements, score


def boxes(*columns):
    """Objects 1 and 2 as boxes of 4 x 4 that begin at these columns, frame by frame."""
    masks = torch.zeros(len(columns), 12, 40, dtype=torch.uint8)
    for mask, (one, two) in zip(masks, columns, strict=True):
        mask[2:6, one : one + 4], mask[7:11, two : two + 4] = 1, 2
    return masks


def test_the_first_and_the_last_frame_do_not_count():
    truth = boxes((0, 0), (2, 0), (4, 0), (6, 0))
    found = truth.clone()
    found[0], found[-1] = 0, 1
    for one in score("a", found, truth):
        assert (one.region.mean, one.contour.mean) == (1.0, 1.0)


def test_numbers_are_means_over_objects_of_all_sequences_worked_by_hand():
    truth = boxes((0, 0), (4, 0), (8, 0), (12, 0))
    copied = truth[:1].expand(4, -1, -1)  # the first object is missed altogether, the second is always right
    long, short = score("long", copied, truth), score("short", truth[:3], truth[:3])
    values = {m.metric: m.value for m in measurements([*long, *short])}
    f = contour_accuracy(copied[1:3] == 1, truth[1:3] == 1)
    assert values["davis/j_mean"] == pytest.approx(3 / 4)
    assert values["davis/j_recall"] == pytest.approx(3 / 4)
    assert values["davis/f_mean"] == pytest.approx((f.mean().item() + 3) / 4)
    assert values["davis/j_and_f"] == pytest.approx((values["davis/j_mean"] + values["davis/f_mean"]) / 2)
    assert values["davis/j_decay"] == 0
    details = by_clip_and_object([*long, *short])
    assert list(details) == ["long", "long/1", "long/2", "short", "short/1", "short/2"]
    assert details["long/2"] == {"j": 1.0, "f": 1.0}
    assert details["long"] == {"j": pytest.approx(1 / 2), "f": pytest.approx((f.mean().item() + 1) / 2)}


def test_objects_are_those_of_the_first_frame():
    truth = boxes((0, 0), (2, 0), (4, 0))
    truth[1, 0, 39] = 9
    assert [one.number for one in score("a", truth, truth)] == [1, 2]


@pytest.mark.parametrize(("num_frames", "objects", "said"), [(2, 1, "2 frames and an"), (5, 0, "5 frames and no")])
def test_too_short_a_sequence_or_one_without_objects_is_an_error_that_names_it(num_frames, objects, said):
    with pytest.raises(UsageError, match=f"sequence bear has {said} object in the first"):
        check("bear", num_frames, np.full((4, 4), objects, np.uint8))


def test_an_overlay_tints_objects_and_leaves_the_background():
    frame = np.full((40, 60, 3), 100, np.uint8)
    numbers = np.zeros((40, 60), np.uint8)
    numbers[10:30, 10:50] = 2
    picture = laid_over(frame, numbers, default_palette())
    assert picture[20, 30].tolist() == [50, 114, 50]
    assert picture[10, 30].tolist() == [0, 128, 0]  # the contour
    assert (picture[numbers == 0] == 100).all()


def test_colours_that_somebody_chose_are_shown_and_those_of_davis_are_made_bright_and_distinct():
    chosen = default_palette()
    chosen[1] = (1, 2, 3)
    assert np.array_equal(shown_palette(chosen), chosen)
    bright = shown_palette(default_palette())
    assert len(np.unique(bright[:101], axis=0)) == 101 and (bright.max(1) == 255).all()


def test_a_sheet_has_each_frame_at_its_place():
    colours = [np.full((50, 100, 3), value, np.uint8) for value in (10, 20, 30, 40)]
    page = np.asarray(sheet(colours))
    assert page.shape == (8 + 2 * 58, 8 + 3 * 108, 3)
    assert [page[30, 50, 0], page[30, 158, 0], page[30, 266, 0], page[90, 50, 0]] == [10, 20, 30, 40]
