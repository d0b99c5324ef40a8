"""The token whose attention is shown, as a person writes it."""

import re
from dataclasses import dataclass

RULE = "cls, mean, register1 (2, 3, ...), or X,Y: shares of width and height from the top left corner, such as 0.5,0.25"


@dataclass(frozen=True)
class Query:
    """The token that looks.

    Attributes:
        text: as it was written: cls, mean, register1, or X,Y.
        register: from 1 on; 0 for other tokens.
        place: shares of the image's width and height, each in [0, 1], so that one query means the same place of
            images of any size and of networks with any patches.
    """

    text: str
    register: int = 0
    place: tuple[float, float] | None = None

    @classmethod
    def of(cls, text: str) -> "Query":
        """Read what a person wrote.

        Raises:
            ValueError: it is none of these.
        """
        if text in ("cls", "mean"):
            return cls(text)
        if found := re.fullmatch(r"register([1-9]\d{0,3})", text, re.ASCII):
            return cls(text, register=int(found[1]))
        number = r"(\d*\.?\d+|\d+\.)"
        if found := re.fullmatch(f"{number},{number}", text, re.ASCII):
            place = float(found[1]), float(found[2])
            if max(place) <= 1:
                return cls(text, place=place)
        raise ValueError(f"'{text}' must be {RULE}")

    def patch(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        """Row and column of the patch that looks; None for the other tokens."""
        if self.place is None:
            return None
        (x, y), (rows, columns) = self.place, grid
        return min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
