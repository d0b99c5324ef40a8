"""Programs of eval/ on small sets in their published layouts; the numbers themselves are the library's tests."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

import eval as programs
from dino_ssl.cli import answer
from dino_ssl.evaluation import results
from dino_ssl.evaluation.protocols import KNN, LINEAR_GRID, LOGISTIC
from eval import all as everything
from eval import imagenet
from tests.commands.networks import write_network
from tests.training.small_runs import a_config, run_here


def test_everything_of_a_run_is_one_file_one_table_and_one_page(tmp_path, capsys):
    config = a_config(tmp_path, steps=2)
    run_here(config)
    words = [str(config.output_dir), "--data", "digits", "--num-workers", "0", "--batch-size", "256"]
    assert answer(partial(everything.main, words), "eval.all") == 0
    folder = config.output_dir / "eval" / "report"
    found = results.read(folder / "results.json")
    assert [evaluation.protocol for evaluation in found] == [KNN, LINEAR_GRID, LOGISTIC]
    printed, table, page = (
        capsys.readouterr().out,
        (folder / "results.md").read_text(),
        (folder / "report.html").read_text(),
    )
    for evaluation in found:
        assert evaluation.encoder["digest"] == found[0].encoder["digest"]
        for measurement in evaluation.measurements:
            for text in (printed, table, page):
                assert results.percent(measurement.value) in text
    assert page.count("data:image/png;base64,") == 2
    assert all((folder / name).stat().st_size > 1000 for name in ("attention.png", "neighbours.png"))


def test_imagenet_measures_class_folders_and_says_what_was_published(tmp_path, capsys):
    images = class_folders(tmp_path / "imagenet")
    weights = write_network(tmp_path / "weights.pth", image_size=32)
    words = ["--weights", str(weights), "--arch", "vit_micro", "--size", "32", "--data", str(images)]
    words += ["--methods", "knn", "--num-workers", "0", "--no-cache", "--output", str(tmp_path / "out.json")]
    assert answer(partial(imagenet.main, words), "eval.imagenet") == 0
    (found,) = results.read(tmp_path / "out.json")
    assert found.data["bank"]["num_images"] == 12 and found.data["queries"]["num_images"] == 4
    assert "knn/top1 k=10" in capsys.readouterr().out


def class_folders(root: Path) -> Path:
    for split, number in (("train", 6), ("val", 2)):
        for name, level in (("n01440764", 60), ("n01443537", 200)):
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (48, 40), (level + index, level, 255 - level)).save(
                    root / split / name / f"{index}.png"
                )
    return root


PROGRAMS = sorted(
    path.stem for path in Path(programs.__path__[0]).glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_says_what_it_takes_and_names_a_mistake(name):
    command = [sys.executable, "-m", f"eval.{name}"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0 and f"python -m eval.{name}" in shown.stdout
    wrong = subprocess.run([*command, "--wieghts", "x"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "error: " in wrong.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_stays_short_enough_to_read(name):
    text = Path(programs.__path__[0], f"{name}.py").read_text(encoding="utf-8")
    assert text.count("\n") <= 80
