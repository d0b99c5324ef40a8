"""A page that shows what was written for each image, by links to the files beside it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from dino_ssl.data.decoding import escaped
from dino_ssl.durable import write_atomically
from dino_ssl.evaluation.report_page import STYLE

WIDE = "main { max-width: 92rem; }"


@dataclass(frozen=True)
class Entry:
    """An image or a video.

    Attributes:
        name: for people.
        shown: pictures and videos for the page, paths below its folder.
        others: further files to link to.
    """

    name: str
    shown: Sequence[Path]
    others: Sequence[Path] = ()


def write_index(folder: Path, title: str, about: str, entries: Sequence[Entry], skipped: Sequence[str]) -> Path:
    """Write `index.html` into the folder.

    Args:
        about: a line below the title.
        skipped: a line for each input that could not be read.
    """
    sections = "\n".join(_section(folder, entry) for entry in entries)
    lines = "".join(f"<li>{_text(line)}</li>" for line in skipped)
    left_out = f"<section>\n<h2>Skipped</h2>\n<ul>{lines}</ul>\n</section>\n" if skipped else ""
    page = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}{WIDE}\n</style>\n"
        f'<main>\n<h1>{_text(title)}</h1>\n<p class="data">{_text(about)}</p>\n{sections}\n{left_out}</main>\n</html>\n'
    )
    path = folder / "index.html"
    write_atomically(path, page.encode())
    return path


def _section(folder: Path, entry: Entry) -> str:
    figures = "\n".join(_figure(folder, path) for path in entry.shown)
    links = " · ".join(f'<a href="{_link(folder, path)}">{_text(_label(entry, path))}</a>' for path in entry.others)
    links = f'<p class="data">{links}</p>\n' if links else ""
    return f"<section>\n<h2>{_text(entry.name)}</h2>\n{figures}\n{links}</section>"


def _label(entry: Entry, path: Path) -> str:
    """The file's name, with the folders that lie between what is shown and it."""
    return str(path.relative_to(entry.shown[0].parent)) if entry.shown else path.name


def _figure(folder: Path, path: Path) -> str:
    link = _link(folder, path)
    if path.suffix == ".mp4":
        return f'<figure><video src="{link}" controls loop muted playsinline></video></figure>'
    return f'<figure><a href="{link}"><img src="{link}" alt="{_text(path.name)}" loading="lazy"></a></figure>'


def _link(folder: Path, path: Path) -> str:
    return quote(os.fsencode(path.relative_to(folder)))


def _text(text: str) -> str:
    return escape(escaped(text))
