"""The programs of `eval/` for video, retrieval and copy detection, on small data sets in the published layouts."""

import json
import pickle

import numpy as np
import pytest
from davis_tree import moving_boxes, write_davis
from networks import write_network
from PIL import Image

from eval import copydays, davis, revisited_retrieval


@pytest.fixture
def place(tmp_path):
    write_network(tmp_path / "vit.pth", patch_size=16)
    return tmp_path


def measured(program, place, *words):
    weights = ("--weights", str(place / "vit.pth"), "--arch", "vit_micro", "--device", "cpu")
    program.main([*weights, *map(str, words), "--output", str(place / "found.json")])
    return json.loads((place / "found.json").read_text())["evaluations"]


def save(path, seed, size=(90, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 256, (2, 3, 3), np.uint8)
    Image.fromarray(colours).resize(size).save(path)


def test_davis_is_measured_by_its_protocol(place):
    (found,) = measured(davis, place, "--data", write_davis(place / "DAVIS", {"boxes": moving_boxes(4)}))
    assert found["protocol"] == "davis2017/1"
    assert found["settings"] == {"short_side": 480, "num_context": 7, "radius": 12, "top_k": 5, "temperature": 0.1}
    assert len(found["measurements"]) == 7


def test_each_revisited_set_is_measured_by_its_own_protocol(place):
    for name in ("roxford5k", "rparis6k"):
        for seed, image in enumerate(("a", "b", "q")):
            save(place / name / "jpg" / f"{image}.jpg", min(seed, 1))  # the query is the second image again
        truth = {"easy": [1], "hard": [], "junk": [], "bbx": [0, 0, 9, 9]}
        content = {"imlist": ["a", "b"], "qimlist": ["q"], "gnd": [truth]}
        (place / name / f"gnd_{name}.pkl").write_bytes(pickle.dumps(content))
    oxford, paris = measured(revisited_retrieval, place, "--data", place, "--num-workers", 0)
    assert oxford["settings"] == {"side": 224, "multiscale": False, "crop_queries": False}
    assert paris["settings"] == {"side": 512, "multiscale": True, "crop_queries": False}
    for found in (oxford, paris):
        assert {m["settings"]["level"]: m["value"] for m in found["measurements"]} == {"easy": 1, "medium": 1}
    (only,) = measured(revisited_retrieval, place, "--data", place, "--num-workers", 0, "--dataset", "rparis6k")
    assert only["measurements"] == paris["measurements"]


def test_copies_are_found_among_distractors(place):
    for number in range(3):
        save(place / "copies" / "original" / f"200{number}00.jpg", number)
        save(place / "copies" / "strong" / f"200{number}01.jpg", number, size=(70, 60))
        save(place / "others" / f"{number}.jpg", 10 + number)
    words = ("--data", place / "copies", "--distractors", place / "others", "--num-workers", 0)
    (found,) = measured(copydays, place, *words)
    assert found["protocol"] == "copydays/1"
    assert found["settings"] == {"side": 320, "top": 20}
    assert [m["value"] for m in found["measurements"]] == [1.0]
    assert {role: data["num_images"] for role, data in found["data"].items()} == {
        "originals": 3, "strong": 3, "distractors": 3,
    }  # fmt: skip
