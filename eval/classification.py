"""What every data set with labels is measured by; torch is imported when it is called."""

from typing import TYPE_CHECKING

from dino_ssl.commands import knn as knn_command
from dino_ssl.commands import linear as linear_command

if TYPE_CHECKING:
    from dino_ssl.commands.compute import Compute
    from dino_ssl.data.sources import Source
    from dino_ssl.evaluation.results import Evaluation
    from dino_ssl.models.encoder import Encoder


FEW_IMAGES = 5_000
"""Training images up to which scikit-learn's logistic regression takes seconds."""


def classification(
    encoder: "Encoder", train: "Source", test: "Source | None", compute: "Compute"
) -> list["Evaluation"]:
    """Every protocol that the images allow."""
    found = [knn(encoder, train, test, compute)]
    if test is not None:
        methods = ("grid", "logistic") if len(train) <= FEW_IMAGES else ("grid",)
        found += [linear(encoder, train, test, compute, method=method) for method in methods]
    return found


def knn(encoder: "Encoder", train: "Source", test: "Source | None", compute: "Compute") -> "Evaluation":
    """Weighted k-NN with 10, 20, 100 and 200 neighbours, as far as the bank has so many; DINO's temperature."""
    from dino_ssl.evaluation.knn_protocol import Neighbours  # noqa: PLC0415

    return knn_command.evaluate(encoder, train, test, Neighbours(device=compute.device), compute)


def linear(encoder: "Encoder", train: "Source", test: "Source", compute: "Compute", *, method: str) -> "Evaluation":
    """A linear probe as its method has it by default: grid, original or logistic."""
    from dino_ssl.commands.linear_methods import Settings  # noqa: PLC0415

    return linear_command.evaluate(encoder, train, test, Settings(method=method), compute)
