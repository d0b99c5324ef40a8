import json
from dataclasses import replace
from pathlib import Path

import pytest

from dino_ssl.errors import UsageError
from dino_ssl.evaluation import results
from dino_ssl.evaluation.results import Evaluation, Measurement

EVALUATION = Evaluation(
    protocol="knn/1",
    encoder={"name": "vit_small/16", "digest": "ab" * 32, "size": 224, "mean": [0.5, 0.5, 0.5]},
    data={
        "bank": {"source": "cifar10:train", "fingerprint": "one", "num_images": 50_000},
        "queries": {"source": "cifar10:test", "fingerprint": "two", "num_images": 10_000},
    },
    measurements=[
        Measurement("knn/top1", 0.7447, (0.7361, 0.7532), {"k": 20}),
        Measurement("knn/top5", 1.0, None, {"k": 20}),
    ],
    seconds=12.5,
    settings={"temperature": 0.07},
    details={"per_class": {"cat": 0.5}},
)


def test_what_is_written_is_read_again_whole(tmp_path):
    others = [EVALUATION, replace(EVALUATION, protocol="linear_grid/1", measurements=[])]
    results.write(tmp_path / "eval" / "results.json", others)
    assert results.read(tmp_path / "eval" / "results.json") == others
    assert [file.name for file in (tmp_path / "eval").iterdir()] == ["results.json"]


def test_a_number_that_is_none_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "results.json"
    results.write(path, [EVALUATION])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write(path, [replace(EVALUATION, measurements=[Measurement("knn/top1", float("nan"))])])
    assert path.read_bytes() == before


def changed(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"schema": 2}, "has schema 2; this version reads schema 1"),
        ({"evaluations": None}, "is no results file of dino-ssl"),
        ({"evaluations": [{"protocol": "knn/1"}]}, "is no results file of dino-ssl"),
        ({"evaluations": [{"surprise": 1, "measurements": []}]}, "is no results file of dino-ssl"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, entries, reason):
    path = tmp_path / "results.json"
    results.write(path, [EVALUATION])
    changed(path, **entries)
    with pytest.raises(UsageError, match=reason) as caught:
        results.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff\xfe", b'{"schema": 1}', b"3"])
def test_what_is_no_results_file_is_named(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_bytes(text)
    with pytest.raises(UsageError, match=r"results\.json is no results file"):
        results.read(path)


def test_a_file_from_before_the_schema_is_to_be_made_again(tmp_path):
    (tmp_path / "results.json").write_text('{"protocol": {}, "results": []}')
    with pytest.raises(UsageError, match=r"results\.json has no schema: .*; measure again"):
        results.read(tmp_path / "results.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.json"):
        results.read(tmp_path / "gone.json")


def test_a_table_says_what_was_measured_on_what():
    assert results.table(EVALUATION).splitlines() == [
        "knn/1: vit_small/16, bank cifar10:train (50,000), queries cifar10:test (10,000); temperature=0.07",
        "  knn/top1 k=20   74.5 %  [73.6, 75.3]",
        "  knn/top5 k=20  100.0 %",
    ]
