"""The original linear protocol: PyTorch's training over the same views, resumable, and one thing on any ranks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from linear_runs import CPU, NUM_IMAGES, PROTOCOL, a_task, saved_in, train_on_ranks
from PIL import Image
from small_runs import assert_bitwise_equal
from torch import nn

from dino_ssl.data.sources import labels_in, open_source
from dino_ssl.errors import DivergedError, RunError, UsageError
from dino_ssl.evaluation.linear import fresh
from dino_ssl.evaluation.linear_features import VIT_BASE, Choice
from dino_ssl.evaluation.linear_views import StepOrder, TrainingViews
from dino_ssl.training.linear_original import Machine, OriginalProtocol, classifier_in, encoded, train_original

STEPS_PER_EPOCH = 4


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear") / "images"
    a_task(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train_original(a_task(images), PROTOCOL, Machine(CPU, folder=folder))
    return folder


def weights_in(folder):
    state = saved_in(folder)
    return state["state_dict"]["linear.weight"], state["state_dict"]["linear.bias"]


def assert_same(one, other):
    """Seen: at most 1e-7 in weights that moved by 0.5; batches of other sizes round otherwise in the encoder."""
    torch.testing.assert_close(weights_in(one), weights_in(other), rtol=0, atol=2e-6)
    assert saved_in(one)["test_top1"] == saved_in(other)["test_top1"]


def test_it_is_what_pytorch_trains_on_the_same_views_with_a_new_rate_each_epoch(images, undisturbed):
    task = a_task(images)
    views = TrainingViews(task.train, 16, 3, PROTOCOL.seed)
    layer = nn.Linear(2 * 128, task.num_classes)
    nn.init.zeros_(layer.bias)
    first = fresh(1, 2 * 128, task.num_classes, seed=PROTOCOL.seed, device=CPU).weight
    with torch.no_grad():
        layer.weight.copy_(first)
    optimizer = torch.optim.SGD(layer.parameters(), PROTOCOL.learning_rate * 24 / 256, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, PROTOCOL.epochs, eta_min=0)
    order = list(StepOrder(NUM_IMAGES, 24, PROTOCOL.seed, 0, PROTOCOL.epochs))
    for step, keys in enumerate(order, 1):
        pixels = torch.stack([views[key][1] for key in keys])
        with torch.no_grad():
            found = task.encoder.backbone.last_blocks((pixels.float() / 255 - 0.5) / 0.25, 2)
        features, labels = torch.cat([block.pooled for block in found], 1), task.labels[[index for _, index in keys]]
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(features), labels).backward()
        optimizer.step()
        if step % STEPS_PER_EPOCH == 0:
            schedule.step()
    weight, bias = weights_in(undisturbed)
    torch.testing.assert_close(weight, layer.weight.data, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(bias, layer.bias.data, rtol=1e-4, atol=1e-6)
    last = (layer(task.test).argmax(1) == task.test_labels).double().mean().item()
    assert saved_in(undisturbed)["test_top1"][-1] == pytest.approx(last)
    assert (weight - first).abs().max() > 0.05, "too little to compare"


def test_a_training_that_is_interrupted_goes_on_as_if_it_had_not_been(images, undisturbed, tmp_path):
    done = 0

    def interrupt(number):
        nonlocal done
        done += number
        if done > 1.5 * NUM_IMAGES:
            raise KeyboardInterrupt

    machine, advanced = Machine(CPU, folder=tmp_path), []
    with pytest.raises(KeyboardInterrupt):
        train_original(a_task(images), PROTOCOL, machine, interrupt)
    assert saved_in(tmp_path)["epoch"] == 1
    train_original(a_task(images), PROTOCOL, machine, advanced.append)
    assert advanced[0] == NUM_IMAGES and sum(advanced) == 3 * NUM_IMAGES
    one, other = saved_in(tmp_path), saved_in(undisturbed)
    assert one.pop("saved_steps") == other.pop("saved_steps") == [1, 2, 3]
    assert_bitwise_equal(one, other)


def test_two_ranks_are_one_process_with_the_same_batch(images, undisturbed, tmp_path):
    assert train_on_ranks(2, images, tmp_path) == ["", ""]
    assert_same(undisturbed, tmp_path)


def test_a_finished_training_is_read_and_not_repeated(images, undisturbed):
    advanced = []
    state = train_original(a_task(images), PROTOCOL, Machine(CPU, folder=undisturbed), advanced.append)
    assert advanced == [3 * NUM_IMAGES] and state.epoch == 3
    torch.testing.assert_close(state.classifier.weight, weights_in(undisturbed)[0])


def test_the_folder_of_another_training_is_refused_with_what_differs(images, undisturbed):
    with pytest.raises(UsageError, match=r"learning_rate: 0.5 -> 0.1, batch_size: 24 -> 8"):
        train_original(
            a_task(images), replace(PROTOCOL, learning_rate=0.1, batch_size=8), Machine(CPU, folder=undisturbed)
        )


def test_worker_processes_change_nothing(images, undisturbed, tmp_path):
    train_original(a_task(images), PROTOCOL, Machine(CPU, num_workers=2, folder=tmp_path))
    assert_same(undisturbed, tmp_path)


def test_the_encoder_stays_as_it_is(images):
    task = a_task(images)
    before = {name: value.clone() for name, value in task.encoder.backbone.state_dict().items()}
    train_original(task, replace(PROTOCOL, epochs=1), Machine(CPU))
    after = task.encoder.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) and not task.encoder.backbone.training


def test_rates_are_the_originals():
    protocol = OriginalProtocol(Choice(4, patches=False), batch_size=1024)
    assert protocol.rate(0) == pytest.approx(0.004)
    assert protocol.rate(50) == pytest.approx(0.002)
    assert 0 < protocol.rate(99) < 1e-6


def test_images_that_cannot_be_read_are_left_out_and_counted(tmp_path):
    for label in range(2):
        (tmp_path / str(label)).mkdir()
        for number in range(3):
            pixels = np.full((16, 16, 3), 200 * label + number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / str(label) / f"{number}.png")
    (tmp_path / "0" / "0.png").write_bytes(b"no image")
    images, task = tmp_path, a_task_of(tmp_path)
    advanced = []
    state = train_original(task, replace(PROTOCOL, batch_size=4), Machine(CPU), advanced.append)
    assert list(state.broken) == [str(images / "0" / "0.png")] and sum(advanced) == 3 * 6
    for path in images.glob("*/*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(RunError, match="none of the 6 images can be read"):
        train_original(a_task_of(images), PROTOCOL, Machine(CPU))


def a_task_of(folder):
    source = open_source(str(folder), folder)
    labels = torch.from_numpy(labels_in(source, source.classes))
    digits = a_task(folder.parent / "digits")
    return replace(digits, train=source, labels=labels, num_classes=2, test_labels=digits.test_labels % 2)


def test_a_classifier_that_diverges_ends_the_training(images):
    with pytest.raises(DivergedError, match="smaller --lr"):
        train_original(a_task(images), replace(PROTOCOL, learning_rate=1e39), Machine(CPU))


def test_features_with_patches_are_the_class_token_and_the_mean_patch(images):
    task = a_task(images)
    pixels = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    (block,) = task.encoder.backbone.last_blocks((pixels.float() / 255 - 0.5) / 0.25, 1)
    expected = torch.cat([block.pooled, block.patches.mean((2, 3))], 1)
    torch.testing.assert_close(encoded(pixels, task.encoder, VIT_BASE, Machine(CPU)), expected)
    assert encoded(pixels[:0], task.encoder, VIT_BASE, Machine(CPU)).shape == (0, 256)


def test_a_released_classifier_gives_the_scores_that_it_gives_in_the_original(tmp_path):
    pooled, patches = torch.randn(7, 5), torch.randn(7, 5)
    layer = nn.Linear(10, 3)
    taking_turns = torch.cat((pooled.unsqueeze(-1), patches.unsqueeze(-1)), -1).reshape(7, -1)
    released = {"epoch": 100, "state_dict": {f"module.linear.{name}": p for name, p in layer.state_dict().items()}}
    read = classifier_in(released, tmp_path, VIT_BASE, dim=10, num_classes=3, device=CPU)
    torch.testing.assert_close(read.scores(torch.cat([pooled, patches], 1))[:, 0], layer(taking_turns))


def test_what_is_saved_is_in_the_layout_of_the_original(images, tmp_path):
    protocol = replace(PROTOCOL, choice=VIT_BASE, epochs=1)
    state = train_original(a_task(images, VIT_BASE), protocol, Machine(CPU, folder=tmp_path))
    saved = weights_in(tmp_path)[0]
    torch.testing.assert_close(saved[:, 0::2], state.classifier.weight[:, :128])
    torch.testing.assert_close(saved[:, 1::2], state.classifier.weight[:, 128:])


def test_a_classifier_of_other_features_or_classes_is_refused(tmp_path):
    released = {"state_dict": nn.Linear(10, 3).state_dict()}
    with pytest.raises(UsageError, match="of 10 features for 3 classes; features 4 are 8"):
        classifier_in(released, tmp_path, Choice(4, patches=False), dim=8, num_classes=3, device=CPU)
    with pytest.raises(UsageError, match="no linear classifier"):
        classifier_in({"teacher": {}}, tmp_path, Choice(4, patches=False), dim=8, num_classes=3, device=CPU)
