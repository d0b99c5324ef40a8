"""The three methods of `dino-ssl linear`, from an encoder and two sources to what is reported."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from dino_ssl.commands.compute import Compute
from dino_ssl.commands.progress import progress
from dino_ssl.data.sources import Source, labels_in
from dino_ssl.errors import UsageError
from dino_ssl.evaluation import linear_protocol
from dino_ssl.evaluation.features import Labelled
from dino_ssl.evaluation.linear import Sweep
from dino_ssl.evaluation.linear_features import (
    POOLED,
    Choice,
    original_choice,
    side_by_side,
    usual_choices,
)
from dino_ssl.evaluation.linear_protocol import Found
from dino_ssl.evaluation.linear_selection import hold_out, num_steps
from dino_ssl.evaluation.logistic import INVERSE_STRENGTHS
from dino_ssl.evaluation.protocols import LINEAR_GRID, LINEAR_ORIGINAL, LOGISTIC
from dino_ssl.evaluation.readouts import Readout, blocks
from dino_ssl.evaluation.results import Plain
from dino_ssl.models.encoder import Encoder
from dino_ssl.models.weight_files import read_weight_file
from dino_ssl.training import distributed
from dino_ssl.training.linear_original import Machine, OriginalProtocol, Task, classifier_in, train_original


@dataclass(frozen=True)
class Settings:
    """How to train; empty and None stand for what the method has.

    Attributes:
        method: a key of `METHODS`.
        learning_rates: for a batch of 256.
        choices: of features.
        epochs: over the training images.
        train_batch: images a step; of `original` on each rank.
        val_share: of each class, to choose on; in (0, 1).
        folder: where `original` saves each epoch; None saves nothing.
        linear_weights: file with a trained classifier, which `original` only measures.
    """

    method: str = "grid"
    learning_rates: tuple[float, ...] = ()
    choices: tuple[Choice, ...] = ()
    epochs: int = 100
    train_batch: int | None = None
    val_share: float = 0.1
    seed: int = 0
    folder: Path | None = None
    linear_weights: Path | None = None


@dataclass(frozen=True)
class Answer:
    """What was found, by which protocol, with how many images that could be read."""

    protocol: str
    found: Found
    num_train: int
    num_test: int


def grid(encoder: Encoder, train: Source, test: Source, settings: Settings, compute: Compute) -> Answer:
    """Features by all ranks, the classifiers by rank 0."""
    choices = _choices(settings, encoder) or usual_choices(encoder.backbone.num_blocks)
    sweep = Sweep(epochs=settings.epochs, seed=settings.seed)
    sweep = replace(sweep, learning_rates=settings.learning_rates or sweep.learning_rates)
    sweep = replace(sweep, batch_size=settings.train_batch or sweep.batch_size)
    if len(choices) * len(sweep.learning_rates) > 1:
        _check_split(train, settings)
    bank, queries = _features(encoder, train, test, choices, compute)
    found = None
    if distributed.is_main():
        steps = num_steps(bank.labels, sweep, num_choices=len(choices), val_share=settings.val_share)
        with progress(steps, "steps") as advance:
            found = linear_protocol.grid(
                bank, queries, train.classes, choices, sweep,
                val_share=settings.val_share, device=compute.device, advance=advance,
            )  # fmt: skip
    return _answer(LINEAR_GRID, found, bank, queries)


def logistic(encoder: Encoder, train: Source, test: Source, settings: Settings, compute: Compute) -> Answer:
    """Features by all ranks, the regressions by rank 0."""
    choice = (_choices(settings, encoder) or (POOLED,))[0]
    _check_split(train, settings)
    bank, queries = _features(encoder, train, test, (choice,), compute)
    found = None
    if distributed.is_main():
        with progress(len(INVERSE_STRENGTHS) + 1, "fits") as advance:
            found = linear_protocol.logistic(
                bank, queries, train.classes, choice,
                val_share=settings.val_share, seed=settings.seed, advance=advance,
            )  # fmt: skip
    return _answer(LOGISTIC, found, bank, queries)


def original(encoder: Encoder, train: Source, test: Source, settings: Settings, compute: Compute) -> Answer:
    """All ranks together; or a classifier that somebody has trained, on the test images alone."""
    protocol = _protocol(settings, encoder)
    read = compute.labelled(encoder, test, train.classes, _readout(encoder, protocol.choice))
    columns = protocol.choice.columns(read.values.shape[1], encoder.backbone.embed_dim)
    queries = Labelled(side_by_side(read.values)[:, columns], read.labels)
    if settings.linear_weights is not None:
        return _measured(settings.linear_weights, protocol.choice, queries, train, compute)
    labels = torch.from_numpy(labels_in(train, train.classes))
    task = Task(encoder, train, labels, len(train.classes), queries.values, queries.labels)
    machine = Machine(compute.device, compute.precision, compute.num_workers, settings.folder)
    if distributed.is_main():
        with progress(protocol.epochs * len(train), "images") as advance:
            state = train_original(task, protocol, machine, advance)
    else:
        state = train_original(task, protocol, machine)
    knobs: dict[str, Plain] = {"features": str(protocol.choice), **asdict(protocol)}
    del knobs["choice"]
    found = linear_protocol.original(state.classifier, queries, train.classes, knobs, state.test_top1)
    return Answer(LINEAR_ORIGINAL, found, len(train) - len(state.broken), len(queries.labels))


def _protocol(settings: Settings, encoder: Encoder) -> OriginalProtocol:
    backbone = encoder.backbone
    (choice,) = _choices(settings, encoder) or (original_choice(backbone.num_blocks, backbone.embed_dim),)
    usual = OriginalProtocol(choice)
    return OriginalProtocol(
        choice,
        epochs=settings.epochs,
        learning_rate=(settings.learning_rates or (usual.learning_rate,))[0],
        batch_size=(settings.train_batch or usual.batch_size) * distributed.world_size(),
        seed=settings.seed,
    )


def _measured(path: Path, choice: Choice, queries: Labelled, train: Source, compute: Compute) -> Answer:
    classifier = classifier_in(
        read_weight_file(path).content, path, choice,
        dim=queries.values.shape[1], num_classes=len(train.classes), device=compute.device,
    )  # fmt: skip
    knobs: dict[str, Plain] = {"features": str(choice), "linear_weights": str(path)}
    found = linear_protocol.original(classifier, queries, train.classes, knobs)
    return Answer(LINEAR_ORIGINAL, found, 0, len(queries.labels))


def _choices(settings: Settings, encoder: Encoder) -> tuple[Choice, ...]:
    """The features that are asked for, if any.

    Raises:
        UsageError: the network has fewer blocks.
    """
    has = encoder.backbone.num_blocks
    if wrong := [str(choice) for choice in settings.choices if choice.blocks > has]:
        raise UsageError(f"--blocks {' '.join(wrong)}: {encoder.name} has {has} to read; write --blocks {has}")
    return settings.choices


def _check_split(train: Source, settings: Settings) -> None:
    """Whether there are images to choose on, before features are computed.

    Raises:
        UsageError: there are none.
    """
    hold_out(torch.from_numpy(labels_in(train, train.classes)), settings.val_share, settings.seed)


def _features(
    encoder: Encoder, train: Source, test: Source, choices: tuple[Choice, ...], compute: Compute
) -> tuple[Labelled, Labelled]:
    readout = _readout(encoder, *choices)
    bank = compute.labelled(encoder, train, train.classes, readout)
    return bank, compute.labelled(encoder, test, train.classes, readout)


def _readout(encoder: Encoder, *choices: Choice) -> Readout:
    """Blocks for these choices, and at least for the usual ones, so that all methods share what is cached."""
    return blocks(max(choice.blocks for choice in (*choices, *usual_choices(encoder.backbone.num_blocks))))


def _answer(protocol: str, found: Found | None, bank: Labelled, queries: Labelled) -> Answer:
    """What rank 0 found, on all."""
    told = distributed.broadcast(found)
    assert told is not None
    return Answer(protocol, told, len(bank.labels), len(queries.labels))


METHODS = {"grid": grid, "logistic": logistic, "original": original}
