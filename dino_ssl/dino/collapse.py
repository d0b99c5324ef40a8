"""What tells a run that learns from one that collapses: sums that no step waits for, and the statistics of them.

Sizes: t teacher views, s student views, b images, n rows, k prototypes, d features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

NUM_FEATURES = 2048
"""Newest vectors of the teacher, over all ranks, whose effective rank is measured."""


def entropy(probabilities: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
    """Shannon entropy in nats; 0 ln 0 is 0."""
    terms: Tensor = torch.special.entr(probabilities)
    return terms.sum(dim=-1)


def effective_rank(squares: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
    """RankMe of vectors, given the sum of their outer products: exp of the entropy of the singular values' shares.

    1 where all are 0; numbers that are not finite count as 0: they would stop the decomposition, and errors of
    their own tell of them.

    Source: Garrido et al., arXiv:2210.02885, equation 1.
    """
    singular = torch.linalg.eigvalsh(squares.nan_to_num(0, 0, 0)).clamp(min=0).sqrt()
    return entropy(singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)).exp()


@dataclass(frozen=True)
class Totals:
    """Sums over the rows (teacher views of images) since the last look, and over the ring of features.

    Attributes:
        scalars: entropy of the targets, loss, rows whose best prototype the student agrees on, rows.
        used: by prototype, 1 or more if it was the best of a row.
        squares: outer products of the features.
    """

    scalars: Float[Tensor, "4"]
    probabilities: Float[Tensor, " k"]
    used: Float[Tensor, " k"]
    squares: Float[Tensor, "d d"]

    def over(self, add_up: Callable[[Tensor], Tensor]) -> "Totals":
        """These sums over all ranks, given the sum of one tensor over them."""
        return Totals(*(add_up(total) for total in vars(self).values()))

    def statistics(self) -> dict[str, Float[Tensor, ""]]:
        """Scalars by name, on the device; entropies and the divergence in nats, shares in [0, 1].

        The share of prototypes in use is one of those that so few rows could use. The divergence is that of the
        student from the teacher: the cross-entropy of their views less the entropy of the teacher.

        Source: arXiv:2104.14294, section 5.3.
        """
        entropies, losses, agreeing, rows = self.scalars
        return {
            "teacher_entropy": entropies / rows,
            "mean_entropy": entropy(self.probabilities / rows),
            "divergence": (losses - entropies) / rows,
            "prototypes_used": (self.used > 0).sum() / rows.clamp(max=len(self.used)),
            "agreement": agreeing / rows,
            "effective_rank": effective_rank(self.squares),
        }


class Observations:
    """What teacher and student said since the last look, on this rank, and a ring of the teacher's newest features.

    Features are what the prototypes see: the vectors of the bottleneck. Nothing here waits for the device, and no
    rank for another.

    Args:
        num_features: of this rank's ring.
    """

    def __init__(self, prototypes: int, device: torch.device, *, num_features: int = NUM_FEATURES) -> None:
        self.num_features = num_features
        self.num_seen = 0
        self.features = torch.zeros(0, 0, device=device)
        self.scalars = torch.zeros(4, dtype=torch.float64, device=device)
        self.probabilities = torch.zeros(prototypes, dtype=torch.float64, device=device)
        self.used = torch.zeros_like(self.probabilities)

    @torch.no_grad()
    def add(
        self, targets: Float[Tensor, "t b k"], student_logits: Float[Tensor, "s b k"], loss: Float[Tensor, ""]
    ) -> None:
        """Take in a micro-batch; student views begin with the teacher's, in the same order."""
        best = targets.argmax(dim=-1)
        of_another_view = student_logits[: len(targets)].argmax(dim=-1).roll(1, dims=0)
        rows = torch.full_like(loss, best.numel())
        self.scalars += torch.stack((entropy(targets).sum(), loss * rows, (best == of_another_view).sum(), rows))
        self.probabilities += targets.sum(dim=(0, 1))
        self.used.index_fill_(0, best.flatten(), 1)

    @torch.no_grad()
    def keep(self, features: Float[Tensor, "n d"]) -> None:
        """Put features of the teacher into the ring."""
        if not len(self.features):
            self.features = features.new_zeros(self.num_features, features.shape[-1], dtype=torch.float32)
        newest = features[-self.num_features :].float()
        places = torch.arange(self.num_seen, self.num_seen + len(newest), device=features.device) % self.num_features
        self.features.index_copy_(0, places, newest)
        self.num_seen += len(newest)

    def totals(self) -> Totals:
        """The sums of this rank."""
        features = self.features[: self.num_seen].double()
        return Totals(self.scalars, self.probabilities, self.used, features.T @ features)

    def forget(self) -> None:
        """Begin the sums anew; the ring stays."""
        for total in (self.scalars, self.probabilities, self.used):
            total.zero_()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; of this rank."""
        return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict` of the same rank of as many ranks."""
        for name, value in state.items():
            setattr(self, name, value.to(self.scalars.device, copy=True) if isinstance(value, Tensor) else value)
