"""What eval.all leaves behind: numbers for programs, a table, and a page with pictures."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn

from dino_ssl.data.sources import Source
from dino_ssl.data.transfer import normalize
from dino_ssl.durable import naming
from dino_ssl.evaluation.attention import attention_figure
from dino_ssl.evaluation.examples import examples
from dino_ssl.evaluation.features import center_pixels
from dino_ssl.evaluation.queries import attention_from, attention_or_similarity, default_query
from dino_ssl.evaluation.report_page import Picture, markdown, write_page
from dino_ssl.evaluation.results import Evaluation, write
from dino_ssl.models.encoder import Encoder

NUM_IMAGES = 6
# Attention is shown at twice the size of the evaluation (the original: 480 pixels for 224), for a finer grid.
SCALE = 2


def write_report(
    words: Namespace, found: Sequence[Evaluation], encoder: Encoder, source: Source, device: torch.device
) -> None:
    """Write results.json, results.md, report.html and the pictures.

    Args:
        words: `weights`, and `output_dir`; None: beside a run, or report-NAME here.
        source: whose images are shown.
    Raises:
        RunError: the folder cannot be written.
    """
    weights: Path = words.weights
    beside = weights / "eval" / "report" if weights.is_dir() else Path(f"report-{weights.stem}")
    folder: Path = words.output_dir or beside
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "results.json", found)
        (folder / "results.md").write_text(markdown(found), encoding="utf-8")
        pictures = [attention(encoder, source, folder, device), *_curve(weights)]
        write_page(folder / "report.html", f"{encoder.name}: {source.name}", found, pictures)
    print(f"\nwritten to {folder}: results.json, results.md, report.html")


def attention(encoder: Encoder, source: Source, folder: Path, device: torch.device) -> Picture:
    """The last block's attention on a few images; in networks without, what comes nearest to it."""
    cast(nn.Module, encoder.backbone).to(device)
    size, images = SCALE * encoder.size, examples(source, encoder.channels, NUM_IMAGES)
    pixels = torch.stack([center_pixels(image, size, encoder.center_crop) for image in images])
    with torch.no_grad():
        inputs = normalize(pixels.to(device), encoder.mean, encoder.std)
        found, note = attention_or_similarity(encoder.backbone, inputs, -1)
    query = default_query(found)
    path = folder / "attention.png"
    attention_figure(pixels, attention_from(found, query), path)
    said = note or f"Attention of the last block, query: {query.text}"
    return Picture(path, f"{said}. Images of {source.name} at {size} pixels.")


def _curve(weights: Path) -> list[Picture]:
    path = weights / "curve.png"
    return [Picture(path, "The run: loss, schedules, accuracy while it trained.")] if path.is_file() else []
