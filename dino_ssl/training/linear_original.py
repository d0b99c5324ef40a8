"""The original's linear evaluation: a classifier of frozen features of augmented images, epoch by epoch, resumable.

Ranks exchange features and labels instead of gradients (about as many numbers), and each takes the whole step: it is
that of one process with the same batch, whatever the ranks, the last batch of an epoch and images that cannot be read.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from dino_ssl.data.sources import Source
from dino_ssl.data.transfer import normalize
from dino_ssl.errors import DivergedError, RunError, UsageError
from dino_ssl.evaluation.linear import REFERENCE_BATCH, Classifiers, cosine, fresh
from dino_ssl.evaluation.linear_features import Choice, from_original_layout, side_by_side, to_original_layout
from dino_ssl.evaluation.linear_views import StepOrder, TrainingViews, Views, load_views
from dino_ssl.evaluation.readouts import blocks
from dino_ssl.models.encoder import Encoder
from dino_ssl.training import distributed
from dino_ssl.training.checkpoint import CheckpointStore

FORMAT = "dino-ssl/linear_original/1"


@dataclass(frozen=True)
class OriginalProtocol:
    """Every knob of the protocol; the rest is fixed (SGD with momentum 0.9, no weight decay, cosine epoch by epoch).

    Attributes:
        choice: the features; see `linear_features.original_choice`.
        learning_rate: for a batch of 256 over all ranks.
        batch_size: images per step on all ranks together; the original has 128 on each.

    Source: facebookresearch/dino, `eval_linear.py`.
    """

    choice: Choice
    epochs: int = 100
    learning_rate: float = 0.001
    batch_size: int = 128
    seed: int = 0

    def rate(self, epoch: int) -> float:
        """Of all steps of an epoch."""
        return self.learning_rate * self.batch_size / REFERENCE_BATCH * cosine(epoch, self.epochs)


@dataclass(frozen=True)
class Task:
    """What is to be learned and on what it is measured; the test features stay as they are, the encoder is frozen.

    Attributes:
        labels: of every image of the training source.
        test: features of the choice, and labels.
    """

    encoder: Encoder
    train: Source
    labels: Int64[Tensor, " n"]
    num_classes: int
    test: Float[Tensor, "t d"]
    test_labels: Int64[Tensor, " t"]


@dataclass(frozen=True)
class Machine:
    """How it is computed; nothing of it changes the result but for rounding.

    Attributes:
        precision: autocast of the encoder to this type; None computes as the weights are.
        num_workers: processes that read images; 0 reads in this one.
        folder: where each epoch is saved; None saves nothing.
    """

    device: torch.device
    precision: torch.dtype | None = None
    num_workers: int = 0
    folder: Path | None = None


@dataclass
class State:
    """How far it is.

    Attributes:
        epoch: finished epochs.
        test_top1: accuracy on test after each of them, for comparison with published numbers; chooses nothing.
        broken: (file, reason) of training images that cannot be read, found so far; known to rank 0.
    """

    classifier: Classifiers
    epoch: int = 0
    test_top1: list[float] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)


def train_original(
    task: Task,
    protocol: OriginalProtocol,
    machine: Machine,
    advance: Callable[[int], object] = lambda images: None,
) -> State:
    """Train to the last epoch, from where an earlier call with the same folder was interrupted.

    Args:
        advance: called with numbers of images, of all ranks together, as they are done; what was done before counts.
    Raises:
        UsageError: the folder holds another training.
        RunError: no image can be read, or the disk refuses.
        DivergedError: the classifier is no longer finite.
    """
    store = None if machine.folder is None else CheckpointStore(machine.folder, keep_last=1, keep_every=0)
    saved = None if store is None else distributed.broadcast(store.load_latest() if distributed.is_main() else None)
    state = _begun(task, protocol, machine.device) if saved is None else _resumed(*saved, task, protocol, machine)
    advance(state.epoch * len(task.train))
    order = StepOrder(
        len(task.train), protocol.batch_size, protocol.seed, state.epoch, protocol.epochs,
        distributed.rank(), distributed.world_size(),
    )  # fmt: skip
    views = TrainingViews(task.train, task.encoder.size, task.encoder.channels, protocol.seed)
    steps = load_views(views, order, num_workers=machine.num_workers, pin_memory=machine.device.type == "cuda")
    while state.epoch < protocol.epochs:
        for step in islice(steps, order.steps_per_epoch):
            advance(_step(state, step, task, protocol, machine))
        _measure(state, task)
        if store is not None and distributed.is_main():
            store.save(_saved(state, task, protocol), state.epoch)
    return state


def _begun(task: Task, protocol: OriginalProtocol, device: torch.device) -> State:
    dim = task.test.shape[1]
    return State(fresh(1, dim, task.num_classes, seed=protocol.seed, device=device))


def _step(state: State, views: Views, task: Task, protocol: OriginalProtocol, machine: Machine) -> int:
    """One step on all ranks; its number of images, those that cannot be read included."""
    features = encoded(views.pixels, task.encoder, protocol.choice, machine)
    parts = distributed.gather((features.cpu(), views.indices, views.broken))
    state.broken |= dict(entry for _, _, broken in parts for entry in broken)
    indices = [index for _, found, _ in parts for index in found]
    if indices:
        batch = torch.cat([part for part, _, _ in parts]).to(machine.device)
        rates = torch.tensor([protocol.rate(state.epoch)], device=machine.device)
        state.classifier.step(batch, task.labels[indices].to(machine.device), rates)
    return len(indices) + sum(len(broken) for _, _, broken in parts)


def encoded(
    pixels: UInt8[Tensor, "b c s s"], encoder: Encoder, choice: Choice, machine: Machine
) -> Float[Tensor, "b d"]:
    """Features of the choice, in float32."""
    backbone = cast(nn.Module, encoder.backbone).to(machine.device)
    if not len(pixels):
        return torch.empty(0, choice.dim(encoder.backbone.embed_dim), device=machine.device)
    images = normalize(pixels.to(machine.device), encoder.mean, encoder.std)
    with torch.no_grad(), torch.autocast(machine.device.type, machine.precision, machine.precision is not None):
        found = blocks(choice.blocks)(backbone, images).float()
    return side_by_side(found)[:, choice.columns(choice.blocks, found.shape[-1])]


def _measure(state: State, task: Task) -> None:
    """End an epoch."""
    if len(state.broken) == len(task.train):
        name, reason = next(iter(state.broken.items()))
        raise RunError(f"{task.train.name}: none of the {len(task.train)} images can be read; {name}: {reason}")
    found = state.classifier.judge(task.test, task.test_labels)
    if not found.loss.isfinite().all():
        raise DivergedError(f"the classifier is not finite after epoch {state.epoch + 1}; write a smaller --lr")
    state.test_top1.append((found.ranks == 0).double().mean().item())
    state.epoch += 1


def _settings(task: Task, protocol: OriginalProtocol) -> dict[str, Any]:
    """What a training that is resumed must have in common with the one that was interrupted."""
    return {
        **asdict(protocol),
        "choice": str(protocol.choice),
        "weights": task.encoder.digest,
        "size": task.encoder.size,
        "train": task.train.fingerprint(),
        "num_classes": task.num_classes,
    }


def _saved(state: State, task: Task, protocol: OriginalProtocol) -> dict[str, Any]:
    """The state in plain types; the classifier under the original's names and in its layout."""
    members = state.classifier
    return {
        "format": FORMAT,
        "settings": _settings(task, protocol),
        "epoch": state.epoch,
        "state_dict": {
            "linear.weight": to_original_layout(members.weight.cpu(), protocol.choice),
            "linear.bias": members.bias.cpu(),
        },
        "velocity": [part.cpu() for part in members.velocity],
        "test_top1": state.test_top1,
        "broken": state.broken,
    }


def _resumed(saved: dict[str, Any], path: Path, task: Task, protocol: OriginalProtocol, machine: Machine) -> State:
    wanted = _settings(task, protocol)
    if saved.get("format") != FORMAT:
        raise UsageError(f"{path} is of another program; write --output with another file")
    if changed := [
        f"{name}: {old} -> {wanted[name]}" for name, old in saved["settings"].items() if old != wanted[name]
    ]:
        raise UsageError(
            f"{path.parent} holds another training, not to be resumed: {', '.join(changed)}; write --output with "
            "another file, or remove that folder"
        )
    sizes = {"dim": task.test.shape[1], "num_classes": task.num_classes}
    classifier = classifier_in(saved, path, protocol.choice, **sizes, device=machine.device)
    classifier.velocity = saved["velocity"][0].to(machine.device), saved["velocity"][1].to(machine.device)
    return State(classifier, saved["epoch"], saved["test_top1"], saved["broken"])


def classifier_in(
    content: dict[str, Any], path: Path, choice: Choice, *, dim: int, num_classes: int, device: torch.device
) -> Classifiers:
    """A classifier as the original releases it, and as `train_original` saves it: state_dict with linear.weight, .bias.

    Args:
        content: of the file `path`.
        dim: number of features of the choice.
    Raises:
        UsageError: there is none in the file, or it is of other features or other classes.
    """
    inner = content.get("state_dict", content)
    weights = {str(name).removeprefix("module.").removeprefix("linear."): value for name, value in inner.items()}
    weight, bias = weights.get("weight"), weights.get("bias")
    if weight is None or bias is None:
        raise UsageError(f"{path} holds no linear classifier: it has no linear.weight and linear.bias")
    if weight.shape != (num_classes, dim) or len(bias) != num_classes:
        raise UsageError(
            f"{path} holds a classifier of {weight.shape[1]} features for {weight.shape[0]} classes; features {choice} "
            f"are {dim}, and --train has {num_classes} classes; write the --blocks and --train of the classifier"
        )
    return Classifiers(
        from_original_layout(weight.float(), choice).contiguous().to(device), bias.float().to(device), num_members=1
    )
