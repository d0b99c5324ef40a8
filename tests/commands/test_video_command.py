import json
from fractions import Fraction

import numpy as np
import pytest
from davis_tree import moving_boxes, write_davis
from networks import write_network
from PIL import Image

from dino_ssl.cli import main
from dino_ssl.data.masks import Mask, default_palette, read_mask, write_mask
from dino_ssl.data.video import open_video, write_video


@pytest.fixture
def place(tmp_path):
    write_network(tmp_path / "vit.pth")
    write_davis(tmp_path / "DAVIS", {"boxes": moving_boxes(5), "first": moving_boxes(3, 1)}, only_first=["first"])
    return tmp_path


def video(place, *words, data="DAVIS"):
    weights = ("--weights", str(place / "vit.pth"), "--arch", "vit_micro", "--size", "64", "--device", "cpu")
    return main(["video", *weights, "--data", str(place / data), *map(str, words)])


def test_a_davis_tree_gives_numbers_and_masks_as_its_own_evaluation_reads_them(place, capsys):
    assert video(place, "--output-dir", place / "out", "--output", place / "found.json", "--overlay", "sheet") == 0
    found = json.loads((place / "found.json").read_text())["evaluations"][0]
    assert found["protocol"] == "davis2017/1"
    values = {m["metric"]: m["value"] for m in found["measurements"]}
    assert list(values) == [
        f"davis/{n}" for n in ("j_and_f", *(f"{m}_{k}" for m in "jf" for k in ("mean", "recall", "decay")))
    ]
    written = [read_mask(place / "out" / "boxes" / f"0000{n}.png").numbers for n in range(5)]
    truth = moving_boxes(5)[1]
    j = [
        ((written[n] == number) & (truth[n] == number)).sum() / ((written[n] == number) | (truth[n] == number)).sum()
        for number in (1, 2)
        for n in (1, 2, 3)  # the first frame is given, and the last does not count
    ]
    assert values["davis/j_mean"] == pytest.approx(np.mean(j), abs=1e-6)
    assert np.array_equal(written[0], truth[0])
    assert sorted(found["details"]) == ["boxes", "boxes/1", "boxes/2"]
    assert found["data"]["videos"]["num_images"] == 8
    names = sorted(str(path.relative_to(place / "out")) for path in (place / "out").rglob("*.*"))
    assert names == [
        "boxes.sheet.png", *(f"boxes/0000{n}.png" for n in range(5)),
        "first.sheet.png", *(f"first/0000{n}.png" for n in range(3)),
    ]  # fmt: skip
    with Image.open(place / "out" / "boxes" / "00003.png") as image:
        assert image.mode == "P" and image.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
    assert "boxes/2" in capsys.readouterr().out


def test_settings_that_leave_the_protocol_are_written_down(place):
    assert video(place, "--sequences", "boxes", "--radius", 3, "--context", 2, "--output", place / "found.json") == 0
    settings = json.loads((place / "found.json").read_text())["evaluations"][0]["settings"]
    assert settings == {"short_side": 64, "num_context": 2, "radius": 3, "top_k": 5, "temperature": 0.1}


def test_a_size_that_is_no_multiple_of_the_patch_is_met_as_near_as_the_patches_allow(place):
    assert video(place, "--sequences", "boxes", "--size", 60, "--output", place / "found.json") == 0
    found = json.loads((place / "found.json").read_text())["evaluations"][0]
    assert found["settings"]["short_side"] == 60


def test_a_folder_of_frames_follows_a_drawing_in_colours(place):
    frames, masks = moving_boxes(4)
    drawing = np.array([(0, 0, 0), (0, 200, 9), (255, 0, 0)], np.uint8)[masks[0]]
    Image.fromarray(drawing).save(place / "drawing.png")
    (place / "clip").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(place / "clip" / f"img{number}.png")
    assert video(place, "--first-mask", place / "drawing.png", "--output-dir", place / "out", data="clip") == 0
    found = [read_mask(place / "out" / "clip" / f"img{number}.png") for number in range(4)]
    assert np.array_equal(found[0].numbers, masks[0])
    assert found[0].palette[1].tolist() == [0, 200, 9]
    assert (found[3].numbers == masks[3]).mean() > 0.9


def test_a_video_file_gets_its_masks_and_a_video_laid_over(place):
    frames, masks = moving_boxes(4)
    with write_video(place / "clip.gif", Fraction(10)) as write:
        for frame in frames:
            write(frame)
    write_mask(place / "first.png", Mask(masks[0], default_palette()))
    words = ("--first-mask", place / "first.png", "--output-dir", place / "out", "--overlay", "gif")
    assert video(place, *words, data="clip.gif") == 0
    assert (read_mask(place / "out" / "clip" / "00003.png").numbers == masks[3]).mean() > 0.9
    with open_video(place / "out" / "clip.gif") as shown:
        assert len(list(shown.frames)) == 4


@pytest.mark.parametrize(
    ("words", "data", "said"),
    [
        ([], "DAVIS/Annotations", "DIR/Annotations/480p/SEQUENCE/00000.png"),
        (["--sequences", "boxs"], "DAVIS", "it has boxes"),
        (["--overlay", "gif"], "DAVIS", "write --output-dir DIR"),
        (["--first-mask", "mask.png"], "DAVIS", "--first-mask: write --output-dir DIR"),
        (["--first-mask", "{}/small.png", "--output-dir", "{}/out"], "DAVIS/JPEGImages/480p/boxes", "draw it on that"),
        (["--first-mask", "{}/small.png", "--output-dir", "{}/out"], "vit.pth", "no folder of frames and no video"),
        (["--output-dir", "{}/DAVIS/Annotations/480p"], "DAVIS", "write --output-dir with a folder outside"),
    ],
)  # fmt: skip
def test_mistakes_end_with_what_to_write_instead(place, capsys, words, data, said):
    write_mask(place / "small.png", Mask(np.ones((5, 5), np.uint8), default_palette()))
    assert video(place, *(word.format(place) for word in words), data=data) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_frame_is_an_error_that_names_it(place, capsys):
    (place / "DAVIS/JPEGImages/480p/boxes/00002.jpg").write_bytes(b"\xff\xd8")
    assert video(place) == 1
    assert "00002.jpg" in capsys.readouterr().err
