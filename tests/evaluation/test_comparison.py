from pathlib import Path

import pytest

from dino_ssl.cli import main
from dino_ssl.config import PretrainConfig
from dino_ssl.config_yaml import write_config
from dino_ssl.evaluation import results
from dino_ssl.evaluation.comparison import letter, reservations, side_by_side
from dino_ssl.evaluation.results import Evaluation, Measurement


def evaluation(*values: tuple[str, float], name: str = "vit_tiny/8", fingerprint: str = "f1", **encoder: int):
    return Evaluation(
        protocol="knn/1",
        encoder={"name": name, "size": 32, **encoder},
        data={"bank": {"source": "cifar10:train", "fingerprint": fingerprint, "num_images": 50_000}},
        measurements=[Measurement(metric, value, None, {"k": 20}) for metric, value in values],
        seconds=1.0,
    )


TITLE = "knn/1: bank cifar10:train (50,000)"


def cells(*columns: list[Evaluation]) -> list[tuple[str, str, list[float | None]]]:
    rows = side_by_side(columns)
    return [(row.title, row.name, [cell and cell.value for cell in row.cells]) for row in rows]


def test_equal_metrics_on_equal_data_stand_in_one_row_and_what_one_lacks_is_empty():
    one, other = evaluation(("knn/top1", 0.5), ("knn/top5", 0.9)), evaluation(("knn/top1", 0.25))
    assert cells([one], [other]) == [
        (TITLE, "knn/top1 k=20", [0.5, 0.25]),
        (TITLE, "knn/top5 k=20", [0.9, None]),
    ]


def test_numbers_on_other_data_of_that_name_stand_apart_and_a_note_says_so():
    columns = [evaluation(("knn/top1", 0.5))], [evaluation(("knn/top1", 0.25), fingerprint="f2")]
    assert [values for _, _, values in cells(*columns)] == [[0.5, None], [None, 0.25]]
    assert reservations(columns) == ["knn/1: cifar10:train is not the same data in A and B"]


def test_the_baselines_of_a_run_carry_their_names_and_the_network_itself_is_compared():
    a_run = [evaluation(("knn/top1", 0.5), name="teacher"), evaluation(("knn/top1", 0.4), name="untrained")]
    assert cells(a_run, [evaluation(("knn/top1", 0.6), name="resnet50")]) == [
        (TITLE, "knn/top1 k=20", [0.5, 0.6]),
        (TITLE, "untrained: knn/top1 k=20", [0.4, None]),
    ]


def test_another_image_size_is_noted():
    columns = [evaluation(("knn/top1", 0.5))], [evaluation(("knn/top1", 0.6), size=64)]
    assert reservations(columns) == ["knn/1: size is 32 in A and 64 in B"]
    assert reservations([columns[0], columns[0]]) == []


def test_columns_are_named_beyond_z():
    assert [letter(place) for place in (0, 25, 26, 52)] == ["A", "Z", "A1", "A2"]


def a_run(folder: Path, value: float, seed: int) -> Path:
    results.write(folder / "eval" / "results.json", [evaluation(("knn/top1", value))])
    write_config(PretrainConfig(data="photos", seed=seed, output_dir=folder), folder / "config.yaml")
    return folder


def test_the_command_prints_numbers_differences_and_knobs(tmp_path, capsys):
    one, other = a_run(tmp_path / "one", 0.5, 0), a_run(tmp_path / "two", 0.625, 1)
    assert main(["compare", str(one), str(other)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"A  {one}  (vit_tiny/8)",
        f"B  {other}  (vit_tiny/8)",
        "",
        TITLE,
        "                 A       B       B - A",
        "  knn/top1 k=20  50.0 %  62.5 %  +12.5",
        "",
        "knobs that differ",
        "        A  B",
        "  seed  0  1",
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["one"], "only one is given; write two or more"),
        ([], "the following arguments are required: RUN_OR_FILE"),
        (["one", "gone"], "gone does not exist"),
        (["one", "empty"], "empty has no results: there is no empty/eval/*.json"),
        (["one", "one/config.yaml"], "one/config.yaml is no results file"),
    ],
)
def test_a_mistake_is_named(tmp_path, monkeypatch, capsys, words, problem):
    monkeypatch.chdir(tmp_path)
    a_run(Path("one"), 0.5, 0)
    Path("empty").mkdir()
    assert main(["compare", *words]) == 2
    assert problem in capsys.readouterr().err
