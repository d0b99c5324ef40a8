import pickle

import numpy as np
import pytest
from opening import Malicious

from dino_ssl.data.revisited import open_revisited
from dino_ssl.errors import UsageError


def content(**changes):
    truth = {"easy": [0], "hard": np.array([1], np.int64), "junk": [], "bbx": (1.0, 2.0, 3.0, 4.0)}
    return {"imlist": ["a_1", "b_2"], "qimlist": ["q"], "gnd": [truth]} | changes


def write(root, written, protocol=2):
    folder = root / "rparis6k" / "jpg"
    folder.mkdir(parents=True)
    for name in ("a_1", "b_2", "q"):
        (folder / f"{name}.jpg").touch()
    (root / "rparis6k" / "gnd_rparis6k.pkl").write_bytes(pickle.dumps(written, protocol=protocol))
    return root


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_lists_and_truth_are_read_whatever_wrote_them(tmp_path, protocol):
    found = open_revisited(write(tmp_path, content(), protocol), "rparis6k")
    assert [found.gallery.path(i).name for i in range(2)] == ["a_1.jpg", "b_2.jpg"]
    assert found.queries.path(0).name == "q.jpg" and found.queries.name == "rparis6k:queries"
    (truth,) = found.truth
    assert (truth.easy.tolist(), truth.hard.tolist(), truth.junk.tolist()) == ([0], [1], [])
    assert truth.box == (1, 2, 3, 4)


def test_another_layout_is_an_error_that_shows_the_tree(tmp_path):
    with pytest.raises(UsageError, match=r"there is no .*gnd_roxford5k.pkl; expected is\n  DIR/roxford5k/gnd_rox"):
        open_revisited(tmp_path, "roxford5k")
    write(tmp_path, content(imlist=["a_1", "c_3"]))
    with pytest.raises(UsageError, match=r"1 images are missing, such as .*c_3.jpg"):
        open_revisited(tmp_path, "rparis6k")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gnd": [{"easy": [2], "hard": [], "junk": [], "bbx": [0, 0, 1, 1]}]}, "places 2 to 2 among 2 images"),
        ({"gnd": [{"easy": [0], "hard": []}]}, "KeyError: 'junk'"),
        ({"gnd": []}, "2 images, 1 queries and 0 annotations"),
        ({"imlist": ["../secret", "b_2"]}, "'../secret' is no name of an image"),
    ],
)
def test_a_damaged_annotation_is_refused_by_name(tmp_path, changes, said):
    with pytest.raises(UsageError, match=r"gnd_rparis6k.pkl") as caught:
        open_revisited(write(tmp_path, content(**changes)), "rparis6k")
    assert said in str(caught.value)


def test_an_annotation_cannot_run_code(tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(UsageError, match="it was not run"):
        open_revisited(write(tmp_path, content(gnd=[Malicious(marker)])), "rparis6k")
    assert not marker.exists()
