"""Names of classes to numbers, label by label."""

from array import array

import numpy as np
from jaxtyping import Int64


class Numbering:
    """Gives every label the number of its class: the place in the order of the names.

    Args:
        as_integers: the names are integers, and 9 comes before 10.
    """

    def __init__(self, *, as_integers: bool = False) -> None:
        self._met: dict[str, int] = {}
        self._numbers = array("q")
        self._as_integers = as_integers

    def add(self, name: str) -> None:
        """The next label."""
        self._numbers.append(self._met.setdefault(name, len(self._met)))

    def __len__(self) -> int:
        return len(self._numbers)

    def result(self) -> tuple[Int64[np.ndarray, " n"] | None, tuple[str, ...]]:
        """Each image's label as a place in the classes, and their names; None and no names if there was no label."""
        if not self._numbers:
            return None, ()
        classes = tuple(sorted(self._met, key=int) if self._as_integers else sorted(self._met))
        places = {name: place for place, name in enumerate(classes)}
        renumbered = np.array([places[name] for name in self._met], np.int64)
        return renumbered[np.array(self._numbers, np.int64)], classes
