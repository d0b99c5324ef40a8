import struct
import sys
from fractions import Fraction

import numpy as np
import pytest

from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.video import is_video, open_video, write_video
from dino_ssl.errors import UsageError

COLOURS = np.array([[200, 40, 40], [40, 160, 60], [50, 60, 190], [230, 230, 230]], np.uint8)


def frames(count=12, height=48, width=64):
    """Four coloured quarters that change places from frame to frame."""
    made = []
    for number in range(count):
        colours = np.roll(COLOURS, number, axis=0).reshape(2, 2, 3)
        made.append(colours.repeat(height // 2, 0).repeat(width // 2, 1))
    return made


def write(path, made, rate=Fraction(25)):
    with write_video(path, rate) as write_frame:
        for frame in made:
            write_frame(frame)
    return path


def read(path):
    with open_video(path) as video:
        return video.rate, list(video.frames)


@pytest.mark.parametrize(("name", "difference"), [("a b#.mp4", 8), ("ä.gif", 0)])
@pytest.mark.parametrize("rate", [Fraction(25), Fraction(10)])
def test_what_is_written_is_read_again(name, difference, rate, tmp_path):
    made = frames()
    found_rate, found = read(write(tmp_path / name, made, rate))
    assert found_rate == rate and is_video(tmp_path / name)
    assert len(found) == len(made)
    for ours, theirs in zip(found, made, strict=True):
        inner = np.abs(ours.astype(int) - theirs)[4:20, 4:28]  # H.264 halves the resolution of colours
        assert inner.max() <= difference
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_rate_of_films_survives(tmp_path):
    assert read(write(tmp_path / "a.mp4", frames(), Fraction(24000, 1001)))[0] == Fraction(24000, 1001)


def test_an_odd_size_grows_by_a_copy_of_its_last_row_and_column(tmp_path):
    made = [frame[:47, :63] for frame in frames()]
    _, found = read(write(tmp_path / "a.mp4", made))
    assert found[0].shape == (48, 64, 3)
    assert np.abs(found[0][47].astype(int) - found[0][46]).max() <= 8


def turned(path, a, b, c, d):
    """Write the matrix of a phone that was held on its side into the file (ISO 14496-12, 8.3.2)."""
    data = path.read_bytes()
    at = data.index(b"tkhd") + 44
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:at] + matrix + data[at + 36 :])


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_the_video_of_a_phone_held_on_its_side_is_upright(matrix, turns, tmp_path):
    made = frames()
    turned(write(tmp_path / "a.mp4", made), *matrix)
    _, found = read(tmp_path / "a.mp4")
    assert np.abs(found[0].astype(int) - np.rot90(made[0], turns)).mean() < 8


def test_frames_are_read_when_they_are_asked_for(tmp_path):
    path = write(tmp_path / "a.mp4", frames(count=50))
    with open_video(path) as video:
        first = next(video.frames)
    assert first.shape == (48, 64, 3)


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video_is_named(content, tmp_path):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(BrokenImage, match=r"a\.mp4: no video that can be read"), open_video(tmp_path / "a.mp4"):
        pass


def test_a_video_that_has_gone_is_named(tmp_path):
    for name in ("a.mp4", "a.gif"):
        with pytest.raises(BrokenImage, match=name), open_video(tmp_path / name):
            pass


def test_a_damaged_video_is_named_where_the_damage_is(tmp_path):
    path = write(tmp_path / "a.gif", frames())
    path.write_bytes(path.read_bytes()[:-200])
    with open_video(path) as video, pytest.raises(BrokenImage, match=r"a\.gif: damaged"):
        list(video.frames)


def test_a_still_gif_is_no_video(tmp_path):
    assert not is_video(write(tmp_path / "a.gif", frames(count=1)))
    assert not is_video(tmp_path / "there is none.gif")


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_a_video_that_is_given_up_leaves_nothing(name, tmp_path):
    with pytest.raises(ZeroDivisionError), write_video(tmp_path / name, Fraction(25)) as write_frame:
        write_frame(frames()[0])
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_without_pyav_a_gif_is_read_and_for_others_the_error_says_what_to_install(tmp_path, monkeypatch):
    gif, mp4 = (write(tmp_path / name, frames()) for name in ("a.gif", "a.mp4"))
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(read(gif)[1]) == 12
    with pytest.raises(UsageError, match=r"pip install 'dino-ssl\[video\]'"), open_video(mp4):
        pass
