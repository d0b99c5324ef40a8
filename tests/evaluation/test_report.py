import json
from dataclasses import asdict

import pytest

from dino_ssl.evaluation.report import KnnProtocol, table, write_results

ROWS = [
    ("teacher, last checkpoint", 0.9611),
    ("the same network, untrained", 0.8139),
    ("raw pixels, L2", 1.0),
]
PROTOCOL = KnnProtocol(
    k=20,
    temperature=0.07,
    size=16,
    center_crop=1.0,
    bank="digits",
    queries="digits:test",
    num_bank=1437,
    num_queries=360,
)


def test_a_table_is_a_title_and_aligned_percentages():
    assert table(ROWS, "k-NN").splitlines() == [
        "k-NN",
        "  teacher, last checkpoint      96.1 %",
        "  the same network, untrained   81.4 %",
        "  raw pixels, L2               100.0 %",
    ]


def test_a_table_without_rows_is_its_title():
    assert table([], "k-NN") == "k-NN"


def test_a_title_says_what_was_compared_and_how():
    assert PROTOCOL.title() == "k-NN accuracy, k = 20, T = 0.07: 360 images of digits:test"


def test_a_title_says_that_images_were_left_out_in_turn():
    alone = KnnProtocol(**(asdict(PROTOCOL) | {"queries": "digits", "num_queries": 1437}))
    assert alone.title().endswith("1,437 images of digits, each left out in turn")


def test_results_hold_the_protocol_and_every_row(tmp_path):
    path = tmp_path / "eval" / "results.json"
    write_results(path, PROTOCOL, ROWS)
    written = json.loads(path.read_text())
    assert written["protocol"] == asdict(PROTOCOL)
    assert [(row["name"], row["accuracy"]) for row in written["results"]] == ROWS
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_results_that_cannot_be_written_leave_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, PROTOCOL, ROWS)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(path, PROTOCOL, [("teacher", float("nan"))])
    assert path.read_bytes() == before
