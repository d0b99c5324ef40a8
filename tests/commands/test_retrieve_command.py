import csv
import json
import pickle

import numpy as np
import pytest
from networks import write_network
from PIL import Image

from dino_ssl.cli import main

COLOURS = {"red": (200, 20, 20), "green": (10, 190, 30), "blue": (20, 20, 210)}


@pytest.fixture
def place(tmp_path):
    write_network(tmp_path / "vit.pth")
    for split, shifts in (("gallery", (0, 12, 24)), ("queries", (6,))):
        (tmp_path / split).mkdir()
        for name, colour in COLOURS.items():
            for shift in shifts:
                Image.new("RGB", (80, 70), tuple(np.add(colour, shift).tolist())).save(
                    tmp_path / split / f"{name}{shift}.png"
                )
    return tmp_path


def retrieve(place, *words):
    weights = ("--weights", str(place / "vit.pth"), "--arch", "vit_micro", "--size", "64", "--device", "cpu")
    return main(["retrieve", *weights, *(str(word).format(place) for word in words)])


SEARCH = ("--queries", "{}/queries", "--gallery", "{}/gallery", "--cache", "{}/cache", "--num-workers", "0")


def test_the_nearest_images_are_printed_listed_and_drawn(place, capsys):
    assert retrieve(place, *SEARCH, "--top", 2, "--output-dir", "{}/out") == 0
    with (place / "out" / "nearest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2"] * 3
    for row in rows:
        colour = next(name for name in COLOURS if name in row["query"])
        assert f"/{colour}" in row["image"] and float(row["similarity"]) <= 1.000001
    said = capsys.readouterr().out
    assert all(row["image"] in said for row in rows)
    with Image.open(place / "out" / "nearest.png") as page:
        assert page.width > 3 * 144 and page.height > 3 * 144


def test_images_that_are_looked_for_among_themselves_do_not_find_themselves(place):
    words = ("--queries", "{}/gallery", "--gallery", "{}/gallery", "--num-workers", "0", "--no-cache")
    assert retrieve(place, *words, "--top", 100, "--output-dir", "{}/out") == 0
    with (place / "out" / "nearest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 * 8
    assert all(row["query"] != row["image"] for row in rows)


def test_a_revisited_data_set_is_measured(place):
    (place / "roxford5k" / "jpg").mkdir(parents=True)
    names = [f"{name}{shift}" for name in COLOURS for shift in (0, 12, 24)]
    for name in names:
        Image.open(place / "gallery" / f"{name}.png").save(place / "roxford5k" / "jpg" / f"{name}.jpg")
    Image.open(place / "queries" / "red6.png").save(place / "roxford5k" / "jpg" / "query.jpg")
    truth = {"easy": [0, 1], "hard": [2], "junk": [], "bbx": [0, 0, 80, 70]}
    content = {"imlist": names, "qimlist": ["query"], "gnd": [truth]}
    (place / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content))
    words = ("--data", "{}", "--dataset", "roxford5k", "--multiscale", "--output", "{}/found.json")
    assert retrieve(place, *words, "--num-workers", "0") == 0
    found = json.loads((place / "found.json").read_text())["evaluations"][0]
    assert found["protocol"] == "revisited/1" and found["settings"]["side"] == 64
    values = {(m["metric"], m["settings"]["level"]): m["value"] for m in found["measurements"]}
    assert values["retrieval/map", "medium"] == 1
    assert len(values) == 3 * 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), ["--queries is missing", "--gallery is missing"]),
        (("--data", "{}"), ["--dataset is missing"]),
        (("--data", "{}", "--dataset", "roxford5k"), ["gnd_roxford5k.pkl; expected is"]),
        (("--data", "{}", "--dataset", "roxford5k", "--top", 3), ["--top does not go with --data"]),
        ((*SEARCH, "--multiscale", "--output", "x.json"), ["--multiscale does not go with --queries", "--output-dir"]),
        ((*SEARCH, "--output-dir", "{}/gallery/out"), ["write --output-dir with a folder outside"]),
        (("--queries", "{}/none", "--gallery", "{}/gallery"), ["none' does not exist"]),
    ],
)
def test_mistakes_end_with_what_to_write_instead(place, capsys, words, said):
    assert retrieve(place, *words) == 2
    errors = capsys.readouterr().err
    assert all(text in errors for text in said)


def test_several_processes_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["retrieve", "--weights", "x.pth", "--queries", "digits", "--gallery", "digits"]) == 2
    assert "this runs on one process" in capsys.readouterr().err
