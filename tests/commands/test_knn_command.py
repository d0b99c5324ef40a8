import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dino_ssl.commands import knn
from dino_ssl.data.sources import load, open_source
from dino_ssl.data.transfer import normalize
from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.batch_norm import with_statistics_of


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(build_backbone("vit_tiny", image_size=32, patch_size=16).state_dict(), folder / "tiny.pth")
    return folder / "tiny.pth"


def draw(folder, classes, *, each=6, seed=0):
    """Class folders of noise around a colour of each class."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for image in range(each):
            colour = 40 + 60 * number + rng.integers(0, 40, (32, 32, 3))
            Image.fromarray(colour.astype(np.uint8)).save(folder / name / f"{image}.png")
    return folder


@pytest.fixture
def images(tmp_path):
    draw(tmp_path / "set" / "train", ("red", "green", "blue"))
    draw(tmp_path / "set" / "val", ("red", "green", "blue"), seed=1)
    return tmp_path / "set"


def measure(weights, folder, *words):
    settings = ("--weights", weights, "--arch", "vit_tiny", "--size", 32, "--num-workers", 0, "--device", "cpu")
    knn.run([str(word) for word in (*settings, "--cache", folder / "cache", "--output", folder / "out.json", *words)])
    (evaluation,) = json.loads((folder / "out.json").read_text())["evaluations"]
    return evaluation


def numbers(evaluation):
    return {role: one["num_images"] for role, one in evaluation["data"].items()}


def test_the_test_split_is_found_although_its_files_have_the_same_names(weights, images, tmp_path, capsys):
    found = measure(weights, tmp_path, "--train", images)
    assert [one["source"].rpartition("/")[2] for one in found["data"].values()] == ["train", "val"]
    assert {m["settings"]["k"] for m in found["measurements"]} == {10}
    said = capsys.readouterr().out
    assert "k = 20, 100, 200 left out: the bank has 18 neighbours" in said and "knn/1: " in said


@pytest.mark.parametrize("how", ["asked for", "the bank itself is given"])
def test_each_image_is_classified_by_all_the_others(weights, images, tmp_path, capsys, how):
    words = ("--leave-one-out",) if how == "asked for" else ("--test", images / "train")
    found = measure(weights, tmp_path, "--train", images / "train", "--k", 17, "--temperature", "inf", *words)
    assert numbers(found) == {"bank": 18, "queries": 18}
    # Of all 17 others, 5 are of the image's own class and 6 of each other one.
    assert found["measurements"][0]["metric"] == "knn/top1" and found["measurements"][0]["value"] == 0
    assert "each image was classified by all the others" in capsys.readouterr().out


def test_images_that_cannot_be_read_are_named_and_not_counted(weights, images, tmp_path, capsys):
    (images / "train" / "red" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = measure(weights, tmp_path, "--train", images)
    assert numbers(found) == {"bank": 17, "queries": 18}
    said = capsys.readouterr().err
    assert "1 of 18 images" in said and "red/3.png" in said


def test_a_default_that_broken_images_make_too_large_is_left_out_and_a_wish_is_an_error(weights, images, tmp_path):
    draw(images / "train", ("cyan",), each=2)  # 20 images
    (images / "train" / "red" / "3.png").write_bytes(b"")
    found = measure(weights, tmp_path, "--train", images)
    assert {m["settings"]["k"] for m in found["measurements"]} == {10}
    with pytest.raises(UsageError, match="k=20 is more than the 19 neighbours in the bank"):
        measure(weights, tmp_path, "--train", images, "--k", 20)


def test_more_neighbours_than_the_bank_has_are_an_error_before_the_weights_are_read(images, tmp_path):
    with pytest.raises(UsageError, match="k=19 is more than the 18 neighbours in the bank; write --k 18"):
        measure(tmp_path / "no such weights", tmp_path, "--train", images, "--k", 19)


def test_batch_norm_of_the_training_images_gives_the_features_of_such_a_network(images, tmp_path, capsys):
    torch.manual_seed(0)
    cmt = build_backbone("resnet18", image_size=32)
    torch.save(cmt.state_dict(), tmp_path / "resnet18.pth")
    source = open_source(str(images / "train"), tmp_path)
    words = ["--weights", tmp_path / "resnet18.pth", "--size", 32, "--center-crop", 1, "--train", images, "--k", 3]
    words += ["--num-workers", 0, "--device", "cpu", "--cache", tmp_path / "cache", "--batch-size", 5]
    values = {}
    for name, more in (("running", []), ("precise", ["--precise-bn", 9])):
        knn.run([str(word) for word in (*words, *more, "--output", tmp_path / f"{name}.json")])
        (values[name],) = json.loads((tmp_path / f"{name}.json").read_text())["evaluations"]
    assert values["running"]["encoder"]["digest"] != values["precise"]["encoder"]["digest"]
    assert "batch norm of 9 images of" in values["precise"]["encoder"]["origin"]
    batches = [[0, 4, 8, 12, 17], [2, 6, 10, 14]]  # of 18 images, nine that are spread, in two batches
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    tensors = [torch.stack([torch.from_numpy(load(source, i, channels=3).pixels) for i in batch]) for batch in batches]
    exact = with_statistics_of(cmt, [normalize(pixels.permute(0, 3, 1, 2), mean, std) for pixels in tensors])
    first = normalize(torch.from_numpy(load(source, 0, channels=3).pixels).permute(2, 0, 1)[None], mean, std)
    with torch.no_grad():
        expected = exact(first)[0]
    kept = [load_file(file)["values"][0] for file in (tmp_path / "cache").rglob("*.safetensors")]
    assert sum(torch.allclose(values, expected, rtol=1e-3, atol=1e-4) for values in kept) == 1 and len(kept) == 4


def test_batch_norm_of_a_network_without_is_refused(weights, images, tmp_path):
    with pytest.raises(UsageError, match="precise_bn=9, but vit_tiny/16 has no batch norm"):
        measure(weights, tmp_path, "--train", images, "--precise-bn", 9)


def test_one_image_of_each_class_is_enough(weights, tmp_path):
    draw(tmp_path / "set" / "train", ("red", "green"), each=1)
    draw(tmp_path / "set" / "val", ("red", "green"), each=1, seed=1)
    found = measure(weights, tmp_path, "--train", tmp_path / "set" / "train")
    assert numbers(found) == {"bank": 2, "queries": 2}
    assert [m["settings"]["k"] for m in found["measurements"]] == [2, 2, 2]
    assert found["measurements"][1]["value"] == 1  # the right one is among the first two of two


def test_a_test_split_beside_leave_one_out_is_a_contradiction(weights, images, tmp_path):
    with pytest.raises(UsageError, match="leave out --test or --leave-one-out"):
        measure(weights, tmp_path, "--train", images, "--test", images, "--leave-one-out")


def test_few_shot_needs_so_many_readable_images_of_each_class(weights, images, tmp_path):
    found = measure(weights, tmp_path, "--train", images, "--few-shot", 6, "--tries", 2)
    assert found["measurements"][-1]["settings"] == {"shots": 6, "k": 10, "tries": 2}
    assert found["measurements"][-1]["value"] == 0  # all images, in each try
    (images / "train" / "green" / "0.png").write_bytes(b"")
    with pytest.raises(UsageError, match="few_shot=6, but class 'green' has 5 images; write --few-shot 5"):
        measure(weights, tmp_path, "--train", images, "--few-shot", 6)


def test_a_cache_that_cannot_be_written_is_named(weights, images, tmp_path):
    (tmp_path / "cache").write_text("a file, and no folder")
    with pytest.raises(Exception, match="cache") as caught:
        measure(weights, tmp_path, "--train", images)
    assert type(caught.value).__name__ == "RunError"


@pytest.mark.parametrize(
    ("output", "said"),
    [("set", "is a folder; write a file"), ("set/train/red/0.png/a.json", "cannot be written: .*0.png is no folder")],
)
def test_an_output_that_cannot_be_written_is_an_error_before_anything_is_read(images, tmp_path, output, said):
    with pytest.raises(UsageError, match=f"--output: .*{said}"):
        knn.run(["--weights", "missing.pth", "--train", str(images), "--output", str(tmp_path / output)])


def test_tries_without_few_shot_banks_are_refused():
    with pytest.raises(UsageError, match="--tries is of few-shot banks; write --few-shot N"):
        knn.run(["--weights", "x.pth", "--train", "digits", "--tries", "3"])
