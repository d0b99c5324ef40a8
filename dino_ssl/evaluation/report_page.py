"""An evaluation for people: a Markdown table, and a page that holds its pictures in itself."""

import base64
import mimetypes
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

from dino_ssl.durable import write_atomically
from dino_ssl.evaluation.protocols import MEANING
from dino_ssl.evaluation.results import Evaluation, Measurement, between, conditions, label, percent

STYLE = resources.files("dino_ssl") / "evaluation" / "pages" / "report.css"


@dataclass(frozen=True)
class Picture:
    """An image or a video file and what it shows."""

    path: Path
    caption: str


def markdown(evaluations: Iterable[Evaluation]) -> str:
    """A table of every number, for a README or an issue."""
    head = ["| protocol | data | metric | value | 95 % interval |", "|---|---|---|---:|---|"]
    rows = [
        f"| {evaluation.protocol} | {_plain(conditions(evaluation))} | {label(m)} | {percent(m.value)} "
        f"| {between(m.interval)} |"
        for evaluation in evaluations
        for m in evaluation.measurements
    ]
    return "\n".join([*head, *rows]) + "\n"


def write_page(path: Path, title: str, evaluations: Sequence[Evaluation], pictures: Sequence[Picture]) -> None:
    """Write one HTML file that needs nothing beside it: numbers with their protocols, then the pictures."""
    sections = [*(_section(evaluation) for evaluation in evaluations), *_gallery(pictures)]
    page = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n"
        f"<main>\n<h1>{escape(title)}</h1>\n{_about(evaluations)}\n{chr(10).join(sections)}\n</main>\n</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode("utf-8", "backslashreplace"))


def _about(evaluations: Sequence[Evaluation]) -> str:
    """The encoder, once: all evaluations of a page are of one."""
    if not evaluations:
        return "<p>Nothing was measured.</p>"
    known = evaluations[0].encoder
    facts = [("network", known["name"]), ("weights", known.get("origin", "")), ("digest", known.get("digest", ""))]
    facts.append(("images", f"{known.get('size')} pixels, centre crop {known.get('center_crop')}"))
    items = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts if value)
    return f"<dl>{items}</dl>"


def _section(evaluation: Evaluation) -> str:
    rows = "\n".join(_row(measurement) for measurement in evaluation.measurements)
    return (
        f"<section>\n<h2>{escape(evaluation.protocol)}</h2>\n"
        f"<p>{escape(MEANING.get(evaluation.protocol, ''))}</p>\n"
        f'<p class="data">{escape(conditions(evaluation))} &middot; {evaluation.seconds:,.0f} s</p>\n'
        f"<table><thead><tr><th>metric<th>value<th>95 % interval<th></tr></thead>\n<tbody>\n{rows}\n</tbody></table>\n"
        "</section>"
    )


def _row(measurement: Measurement) -> str:
    low, high = measurement.interval or (measurement.value, measurement.value)
    bar = (
        f'<span class="bar" style="--value:{measurement.value:.4f};--low:{low:.4f};--high:{high:.4f}">'
        '<span class="value"></span><span class="interval"></span></span>'
    )
    cells = (escape(label(measurement)), percent(measurement.value), between(measurement.interval))
    return f"<tr>{''.join(f'<td>{cell}' for cell in cells)}<td>{bar}</tr>"


def _gallery(pictures: Sequence[Picture]) -> Iterator[str]:
    if pictures:
        figures = "\n".join(_figure(picture) for picture in pictures)
        yield f"<section>\n<h2>pictures</h2>\n{figures}\n</section>"


def _figure(picture: Picture) -> str:
    kind = mimetypes.guess_type(picture.path.name)[0] or "application/octet-stream"
    data = f"data:{kind};base64,{base64.b64encode(picture.path.read_bytes()).decode()}"
    caption = escape(picture.caption)
    shown = f'<video src="{data}" controls loop muted></video>' if kind.startswith("video/") else ""
    shown = shown or f'<img src="{data}" alt="{caption}">'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _plain(text: str) -> str:
    """Safe in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
