"""`dino-ssl linear` on a checkpoint of a small run and arrays of digits."""

import subprocess
import sys

import numpy as np
import pytest
from networks import write_network
from sklearn.datasets import load_digits

from dino_ssl import cli
from dino_ssl.evaluation.protocols import LINEAR_GRID, LINEAR_ORIGINAL, LOGISTIC
from dino_ssl.evaluation.results import read


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as arrays with a test split, and a checkpoint of a random ViT for them."""
    root = tmp_path_factory.mktemp("linear")
    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype(np.uint8)
    (root / "digits").mkdir()
    for split, part in (("train", slice(0, 300)), ("test", slice(300, 400))):
        np.save(root / "digits" / f"x_{split}.npy", pixels[part])
        np.save(root / "digits" / f"y_{split}.npy", digits.target[part])
    write_network(root / "vit.pth", image_size=16)
    return root


def words_for(folder):
    network = ("--weights", str(folder / "vit.pth"), "--arch", "vit_micro", "--size", "16", "--center-crop", "1")
    data = ("--train", str(folder / "digits"), "--cache", str(folder / "cache"), "--num-workers", "0")
    return [*network, *data, "--device", "cpu"]


def linear(folder, *words):
    return cli.main(["linear", *words_for(folder), *words])


def only(path):
    """The evaluation in a file, and its numbers by metric."""
    (evaluation,) = read(path)
    return evaluation, {row.metric: row.value for row in evaluation.measurements}


def test_the_grid_writes_what_it_prints(folder, tmp_path, capsys):
    output = tmp_path / "out.json"
    assert linear(folder, "--epochs", "15", "--train-batch", "32", "--output", str(output)) == 0
    evaluation, numbers = only(output)
    said = capsys.readouterr().out
    assert evaluation.protocol == LINEAR_GRID and len(evaluation.details["candidates"]) == 26
    assert f"{100 * numbers['linear/top1']:.1f} %" in said and evaluation.details["note"] in said
    assert numbers["linear/top1"] > 0.3, "random features of digits are better than chance"
    assert [evaluation.data[role]["num_images"] for role in ("train", "test")] == [300, 100]
    assert set(evaluation.details["chosen"]) == {"features", "learning_rate"}


def test_one_rate_and_one_choice_hold_nothing_out(folder, tmp_path):
    output = tmp_path / "out.json"
    assert linear(folder, "--epochs", "2", "--lr", "0.1", "--blocks", "2+patches", "--output", str(output)) == 0
    details = only(output)[0].details
    assert details["candidates"] == [] and details["chosen"] == {"features": "2+patches", "learning_rate": 0.1}


def test_the_original_goes_on_in_its_folder_and_its_classifier_can_be_measured_again(folder, tmp_path, capsys):
    output, again = tmp_path / "out.json", tmp_path / "again.json"
    words = ("--method", "original", "--epochs", "2", "--train-batch", "50", "--lr", "0.5", "--blocks", "1+patches")
    assert linear(folder, *words, "--output", str(output)) == 0
    assert "for comparison with published numbers only" in capsys.readouterr().out
    evaluation, numbers = only(output)
    assert evaluation.protocol == LINEAR_ORIGINAL and len(evaluation.details["test_top1"]) == 2
    assert evaluation.settings["learning_rate"] == 0.5 and evaluation.settings["features"] == "1+patches"
    assert linear(folder, *words, "--seed", "1", "--output", str(output)) == 2
    assert "seed: 0 -> 1" in capsys.readouterr().err
    classifier = str(tmp_path / "out_linear" / "checkpoint.pth")
    given = ("--method", "original", "--blocks", "1+patches", "--linear-weights", classifier, "--output", str(again))
    assert linear(folder, *given) == 0
    assert only(again)[1] == numbers and list(only(again)[0].data) == ["test"]


def test_logistic_regression_takes_one_choice(folder, tmp_path):
    output = tmp_path / "out.json"
    assert linear(folder, "--method", "logistic", "--blocks", "2", "--output", str(output)) == 0
    evaluation, numbers = only(output)
    assert evaluation.protocol == LOGISTIC and evaluation.details["chosen"]["features"] == "2"
    assert numbers["logistic/top1"] > 0.3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "logistic", "--lr", "0.1"], "--lr is of no use with --method logistic"),
        (["--method", "original", "--val-share", "0.2"], "--val-share is of no use with --method original"),
        (["--linear-weights", "x.pth"], "--linear-weights is of no use with --method grid"),
        (["--method", "original", "--lr", "0.1", "0.2"], "--lr takes one value with --method original, not 2"),
        (["--method", "logistic", "--blocks", "1", "4"], "--blocks takes one value with --method logistic, not 2"),
        (
            ["--method", "original", "--linear-weights", "x.pth", "--epochs", "3"],
            "--epochs is of no use with --linear-",
        ),
        (["--blocks", "0"], "'0' must be a number of blocks"),
        (["--blocks", "4+patch"], "'4+patch' must be a number of blocks"),
        (["--blocks", "5"], "--blocks 5: vit_micro/8 has 4 to read; write --blocks 4"),
        (["--val-share", "0.001"], "leaves none to choose on"),
        (["--lr", "0"], "'0' must be a number above 0"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_to_write(folder, capsys, words, message):
    assert linear(folder, *words) == 2
    assert message in capsys.readouterr().err


def test_images_that_are_learned_from_are_no_test(folder, capsys):
    assert linear(folder, "--test", str(folder / "digits")) == 2
    assert "holds the images that are learned from; write --test with another SOURCE" in capsys.readouterr().err


def test_without_test_images_nothing_is_trained(folder, tmp_path, capsys):
    for name in ("x_train.npy", "y_train.npy"):
        np.save(tmp_path / name, np.load(folder / "digits" / name))
    assert linear(folder, "--train", str(tmp_path)) == 2
    assert "has no test split that belongs to it; write --test SOURCE" in capsys.readouterr().err


def test_two_ranks_train_the_original_together_and_one_of_them_speaks(folder, tmp_path):
    words = ["--method", "original", "--epochs", "1", "--train-batch", "25", "--lr", "0.5"]
    command = [*words_for(folder), *words, "--output", str(tmp_path / "two.json")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "dino_ssl", "linear", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("linear/top1") == 1, done.stdout
    words[words.index("25")] = "50"
    assert linear(folder, *words, "--output", str(tmp_path / "one.json")) == 0
    two, one = only(tmp_path / "two.json"), only(tmp_path / "one.json")
    assert two[0].settings == one[0].settings
    assert two[1] == pytest.approx(one[1], abs=0.011)  # at most an image: batches of other sizes round otherwise
