"""The numbers of a run for people (a table) and for programs (a JSON file)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dino_ssl.durable import write_atomically


@dataclass(frozen=True)
class KnnProtocol:
    """Everything that a k-NN accuracy depends on but the features' origin.

    Attributes:
        k: neighbours.
        temperature: of the weights exp(similarity / temperature).
        size: side of the centre crop, pixels.
        center_crop: `size` over the resized short side.
        bank, queries: SOURCE, as the user wrote it; the same twice leaves each image out in turn.
        num_bank, num_queries: images that could be read.
    """

    k: int
    temperature: float
    size: int
    center_crop: float
    bank: str
    queries: str
    num_bank: int
    num_queries: int

    def title(self) -> str:
        """One line for the head of a table."""
        left_out = self.bank == self.queries
        where = f"{self.queries}, each left out in turn" if left_out else self.queries
        return f"k-NN accuracy, k = {self.k}, T = {self.temperature:g}: {self.num_queries:,} images of {where}"


def table(rows: Sequence[tuple[str, float]], title: str) -> str:
    """Lines of names and percentages under a title, for a plain terminal.

    Args:
        rows: name and accuracy in [0, 1].
    """
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {100 * value:5.1f} %" for name, value in rows)])


def write_results(path: Path, protocol: KnnProtocol, rows: Sequence[tuple[str, float]]) -> None:
    """Write protocol and accuracies in [0, 1] as JSON; never half a file."""
    results = [{"name": name, "accuracy": value} for name, value in rows]
    text = json.dumps({"protocol": asdict(protocol), "results": results}, indent=2, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (text + "\n").encode())
