"""What eval.all leaves behind: numbers for programs, a table, and a page with pictures."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from dino_ssl.commands.compute import Compute
from dino_ssl.data.sources import Source, load
from dino_ssl.data.statistics import spread
from dino_ssl.data.transfer import normalize
from dino_ssl.data.whole_image import as_rgb
from dino_ssl.durable import naming
from dino_ssl.evaluation.attention import attention_figure
from dino_ssl.evaluation.examples import examples
from dino_ssl.evaluation.features import center_pixels
from dino_ssl.evaluation.nearest_sheet import Found, nearest_sheet
from dino_ssl.evaluation.queries import attention_from, attention_or_similarity, default_query
from dino_ssl.evaluation.report_page import Picture, markdown, write_page
from dino_ssl.evaluation.results import Evaluation, write
from dino_ssl.models.encoder import Encoder

NUM_IMAGES, NUM_NEIGHBOURS = 6, 6
# Attention is shown at twice the size of the evaluation (the original: 480 pixels for 224), for a finer grid; of coarse
# networks at what gives this many places a side.
SCALE, LEAST_PLACES = 2, 8


def folder_of(words: Namespace) -> Path:
    """What `output_dir` says, beside a run, or report-NAME here."""
    weights: Path = words.weights
    is_run = (weights / "config.yaml").is_file()
    folder: Path = words.output_dir or (weights / "eval" / "report" if is_run else Path(f"report-{weights.stem}"))
    return folder


def write_report(
    words: Namespace, found: Sequence[Evaluation], encoder: Encoder, sources: tuple[Source, Source], compute: Compute
) -> None:
    """Write results.json, results.md, report.html and the pictures.

    Args:
        words: `weights`, and `output_dir`.
        sources: what was learned from, and what was classified.
    Raises:
        RunError: the folder cannot be written.
    """
    folder, weights = folder_of(words), words.weights
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "results.json", found)
        (folder / "results.md").write_text(markdown(found), encoding="utf-8")
        pictures = [*neighbours(encoder, sources, folder, compute), attention(encoder, sources[1], folder, compute)]
        write_page(folder / "report.html", f"{encoder.name}: {sources[1].name}", found, [*pictures, *_curve(weights)])
    print(f"\nwritten to {folder}: results.json, results.md, report.html")


def neighbours(encoder: Encoder, sources: tuple[Source, Source], folder: Path, compute: Compute) -> Iterator[Picture]:
    """The nearest training images of a few test images; none where features are not kept, and would be made again."""
    train, test = sources
    if compute.cache is None:
        return
    bank, queries = compute.features(encoder, train), compute.features(encoder, test)
    rows = []
    for place in spread(len(queries.indices), NUM_IMAGES):
        similarity = cosine_similarity(queries.values[place : place + 1], bank.values)
        if train is test:
            similarity[place] = -1
        top = similarity.topk(min(NUM_NEIGHBOURS, len(similarity)))
        nearest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        found = [_found(train, int(bank.indices[index]), encoder, f"{value:.2f}  ") for index, value in nearest]
        rows.append([_found(test, int(queries.indices[place]), encoder, ""), *found])
    nearest_sheet(rows).save(folder / "neighbours.png")
    yield Picture(folder / "neighbours.png", f"Images of {test.name} and what is nearest to them in {train.name}.")


def _found(source: Source, index: int, encoder: Encoder, before: str) -> Found:
    assert source.labels is not None
    pixels = as_rgb(load(source, index, channels=encoder.channels).pixels)
    return Found(pixels, before + source.classes[int(source.labels[index])])


def attention(encoder: Encoder, source: Source, folder: Path, compute: Compute) -> Picture:
    """The last block's attention on a few images; in networks without, what comes nearest to it."""
    device, places = compute.device, encoder.backbone.patch_size
    cast(nn.Module, encoder.backbone).to(device)
    size = max(SCALE * encoder.size, LEAST_PLACES * places)
    images = examples(source, encoder.channels, NUM_IMAGES)
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
