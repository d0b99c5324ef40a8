"""Linear classifiers of frozen features, many at once: each as if it were trained alone.

Sizes: b images (n in a set), d features (w of all choices together), c classes, m members (classifiers of the same
features, each with a learning rate of its own), r = m * c rows of weights.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dino_ssl.evaluation.metrics import ranks_of_truth

MOMENTUM = 0.9
INITIAL_STD = 0.01
REFERENCE_BATCH = 256
"""Learning rates are for so many images a step, and are scaled with the batch (Goyal et al., arXiv:1706.02677)."""
MAX_SCORES = 2**24
"""Scores in memory at once when a set is classified, 64 MiB."""


@dataclass(frozen=True)
class Sweep:
    """How a grid is trained: SGD with momentum 0.9, no weight decay, a cosine to 0 step by step.

    Attributes:
        learning_rates: for a batch of 256. These are DINOv2's (arXiv:2304.07193, appendix B.3).
        epochs: over the features; DINO's number.
        batch_size: images per step; the last step of an epoch may have fewer.
        seed: of the first weights and of the order of the images.
    """

    learning_rates: tuple[float, ...] = (
        0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5,
    )  # fmt: skip
    epochs: int = 100
    batch_size: int = 256
    seed: int = 0

    def steps(self, num_images: int) -> int:
        return self.epochs * math.ceil(num_images / self.batch_size)


@dataclass(frozen=True)
class Judgement:
    """What the members make of a set.

    Attributes:
        ranks: how many classes come before the true one of each image.
        loss: mean cross-entropy, nats; not finite where a member has diverged.
    """

    ranks: Int64[Tensor, "m n"]
    loss: Float[Tensor, " m"]


class Classifiers:
    """Members side by side in one matrix, so that one product gives the scores of all of them.

    Nothing passes from one to another: a member that overflows spoils itself only.

    Attributes:
        weight: the classes of member 0, then those of member 1, and so on.
        velocity: what SGD with momentum remembers of weight and bias.
    """

    def __init__(self, weight: Float[Tensor, "r d"], bias: Float[Tensor, " r"], *, num_members: int) -> None:
        self.weight, self.bias = weight, bias
        self.velocity = torch.zeros_like(weight), torch.zeros_like(bias)
        self.num_members = num_members
        self.num_classes = len(bias) // num_members

    def scores(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b m c"]:
        """Logits of every member."""
        rows = torch.addmm(self.bias, features, self.weight.T)
        return rows.view(len(features), self.num_members, self.num_classes)

    def step(self, features: Float[Tensor, "b d"], labels: Int64[Tensor, " b"], rates: Float[Tensor, " m"]) -> None:
        """One step of SGD with momentum on the mean cross-entropy, each member at its own rate.

        The gradient by the logits is known: the probabilities, less 1 at the true class. Written out, a step is two
        products and no copy of the weights.
        """
        scores = self.scores(features)
        # Where there are few classes, a softmax by hand takes a fifth of the time of PyTorch's.
        wrong = (scores - scores.amax(-1, keepdim=True)).exp_()
        wrong /= wrong.sum(-1, keepdim=True)
        wrong[torch.arange(len(labels), device=labels.device), :, labels] -= 1
        wrong = wrong.flatten(1).div_(len(labels))
        weight, bias = self.velocity
        weight.addmm_(wrong.T, features, beta=MOMENTUM)
        bias.mul_(MOMENTUM).add_(wrong.sum(0))
        rates = rates.repeat_interleave(self.num_classes)
        self.weight.addcmul_(weight, rates[:, None], value=-1)
        self.bias.addcmul_(bias, rates, value=-1)

    def member(self, index: int) -> "Classifiers":
        """One of them by itself."""
        rows = slice(index * self.num_classes, (index + 1) * self.num_classes)
        return Classifiers(self.weight[rows], self.bias[rows], num_members=1)

    def judge(self, features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Judgement:
        """Classify a set, which may lie on another device; the answer is on the CPU."""
        ranks, losses = [], []
        for part in _chunks(len(labels), max(1, MAX_SCORES // len(self.bias))):
            truth = labels[part].to(self.bias.device)
            scores = self.scores(features[part].to(self.bias.device)).unbind(1)
            ranks.append(torch.stack([ranks_of_truth(own, truth) for own in scores]).cpu())
            loss = [torch.nn.functional.cross_entropy(own, truth, reduction="none").double().sum() for own in scores]
            losses.append(torch.stack(loss).cpu())
        return Judgement(torch.cat(ranks, 1), torch.stack(losses).sum(0) / len(labels))


def fresh(num_members: int, dim: int, num_classes: int, *, seed: int, device: torch.device) -> Classifiers:
    """Members that all start from the same weights, N(0, 0.01); these depend on the seed and a member's sizes alone."""
    first = INITIAL_STD * torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(seed))
    weight = first.to(device).repeat(num_members, 1)
    return Classifiers(weight, torch.zeros(len(weight), device=device), num_members=num_members)


def train(
    features: Float[Tensor, "n w"],
    labels: Int64[Tensor, " n"],
    choices: Sequence[slice],
    sweep: Sweep,
    *,
    rows: Int64[Tensor, " t"],
    num_classes: int,
    device: torch.device,
    advance: Callable[[int], object] = lambda steps: None,
) -> list[Classifiers]:
    """Train every learning rate on every choice of features, in one pass: a batch is fetched once for all of them.

    Args:
        features: of all choices, on the CPU or on `device`.
        choices: the columns of each.
        rows: the images to train on.
        advance: called with 1 after each step.
    Returns:
        For each choice its members, in the order of the learning rates.
    """
    grid = [
        fresh(len(sweep.learning_rates), columns.stop - columns.start, num_classes, seed=sweep.seed, device=device)
        for columns in choices
    ]
    peak = torch.tensor(sweep.learning_rates, device=device) * sweep.batch_size / REFERENCE_BATCH
    for step, places in enumerate(batches(len(rows), sweep)):
        batch, truth = features[rows[places]].to(device), labels[rows[places]].to(device)
        rates = peak * cosine(step, sweep.steps(len(rows)))
        for columns, members in zip(choices, grid, strict=True):
            members.step(batch[:, columns], truth, rates)
        advance(1)
    return grid


def cosine(step: int, steps: int) -> float:
    """Share of the first learning rate: 1 at step 0, and 0 after the last."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def batches(num_images: int, sweep: Sweep) -> Iterator[Int64[Tensor, " b"]]:
    """Which images each step takes: every epoch all of them, in a new order."""
    generator = torch.Generator().manual_seed(sweep.seed)
    for _ in range(sweep.epochs):
        yield from torch.randperm(num_images, generator=generator).split(sweep.batch_size)


def _chunks(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
