"""Logistic regression on frozen features by scikit-learn: the cross-check of the linear classifiers on small sets.

Sizes: n images, d features, c classes.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dino_ssl.errors import UsageError
from dino_ssl.evaluation.linear_selection import Candidate, best, hold_out
from dino_ssl.evaluation.metrics import ranks_of_truth

INVERSE_STRENGTHS = (0.00001, 0.0001, 0.001, 0.01, 0.1, 1.0)
"""scikit-learn's C, of features that have been brought to mean 0 and standard deviation 1."""
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class LogisticProbe:
    """The chosen regression, fitted again to all training images.

    Attributes:
        candidates: every C, with the images held out; empty where there was nothing to choose from.
        converged: whether L-BFGS ended before `MAX_ITERATIONS`.
    """

    model: Pipeline
    inverse_strength: float
    candidates: list[Candidate]
    converged: bool

    def scores(self, features: Float[Tensor, "n d"], num_classes: int) -> Float[Tensor, "n c"]:
        """Log-probabilities; minus infinity for a class that the training images lack."""
        scores = torch.full((len(features), num_classes), -torch.inf, dtype=torch.float64)
        scores[:, self.model.classes_] = torch.from_numpy(self.model.predict_log_proba(features.double().numpy()))
        return scores


def probe_logistic(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    *,
    num_classes: int,
    inverse_strengths: Sequence[float] = INVERSE_STRENGTHS,
    val_share: float,
    seed: int = 0,
    advance: Callable[[int], object] = lambda fits: None,
) -> LogisticProbe:
    """Choose C on a held-out part of the images, then fit it to all of them, as `linear_selection.probe_grid` does.

    Args:
        advance: called with 1 after each fit.
    Raises:
        UsageError: the images are all of one class, or none can be held out.
    """
    if len(labels.unique()) < 2:
        raise UsageError("a logistic regression needs two classes at least; the training images have one")
    candidates: list[Candidate] = []
    chosen = inverse_strengths[0]
    if len(inverse_strengths) > 1:
        fitted, held = hold_out(labels, val_share, seed)
        for strength in inverse_strengths:
            probe = _fit(features[fitted], labels[fitted], strength)
            candidates.append(_measured(probe, features[held], labels[held], num_classes))
            advance(1)
        chosen = best(candidates).setting
    probe = _fit(features, labels, chosen)
    advance(1)
    return LogisticProbe(probe.model, chosen, candidates, probe.converged)


def _fit(features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], strength: float) -> LogisticProbe:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=MAX_ITERATIONS))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features.double().numpy(), labels.numpy())
    return LogisticProbe(model, strength, [], not any(w.category is ConvergenceWarning for w in said))


def _measured(
    probe: LogisticProbe, features: Float[Tensor, "h d"], labels: Int64[Tensor, " h"], num_classes: int
) -> Candidate:
    scores = probe.scores(features, num_classes)
    loss = -scores.gather(1, labels[:, None]).mean().item()
    accuracy = (ranks_of_truth(scores, labels) == 0).double().mean().item()
    return Candidate("", probe.inverse_strength, accuracy, loss)
