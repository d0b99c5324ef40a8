"""What the commands share in reading their arguments: one kind of mistake, and flags spelt alike everywhere."""

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from dino_ssl.config_schema import did_you_mean, nearest
from dino_ssl.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Mistakes become our errors; argparse itself would end the process.

    Args:
        command: what is typed after `program`.
    """

    def __init__(self, *, command: str, description: str, usage: str | None = None, program: str = "dino-ssl") -> None:
        super().__init__(
            prog=f"{program} {command}", usage=usage, description=description, add_help=False, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))

    def read(self, arguments: Sequence[str]) -> argparse.Namespace | None:
        """The arguments, each by itself sound; None after printing the help that they ask for.

        Raises:
            UsageError: a mistake; of all flags that are unknown, each is named.
        """
        if {"-h", "--help"} & set(arguments):
            print(self.format_help(), end="")
            return None
        # Before argparse, which of a misspelt flag would only say that the right one is missing.
        flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        known = [flag for action in self._actions for flag in action.option_strings]
        if strange := [flag for flag in flags if flag not in known]:
            raise UsageError(*(f"unknown flag {flag}{did_you_mean(nearest(flag, known))}" for flag in strange))
        words, surplus = self.parse_known_args(arguments)
        if surplus:
            raise UsageError(*(f"'{word}' is one argument too many" for word in surplus))
        return words


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """What reads a whole number in this range."""
    rule = f"a whole number from {least} on" if most is None else f"a whole number from {least} to {most}"

    def number(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"'{text}' must be {rule}")
        return int(text)

    return number


def real(least: float | int, most: float | int = float("inf"), *, open_below: bool = False) -> Callable[[str], float]:
    """What reads a number in [least, most], or in (least, most] if it is `open_below`."""
    below, up_to = ("above", " and up to") if open_below else ("from", " to")
    rule = f"a number {below} {least:g}" + (f"{up_to} {most:g}" if most < float("inf") else "")

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most or (open_below and value == least):
            raise argparse.ArgumentTypeError(f"'{text}' must be {rule}")
        return value

    return number
