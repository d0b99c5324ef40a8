"""`dino-ssl retrieve`: find the nearest images of a gallery; on revisited Oxford and Paris, measure how well."""

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ssl.commands import options
from dino_ssl.commands.output_folder import output_folder
from dino_ssl.commands.parsing import Parser, whole
from dino_ssl.commands.progress import progress
from dino_ssl.data.decoding import escaped
from dino_ssl.errors import UsageError

if TYPE_CHECKING:  # torch takes seconds, for which help and mistakes should not wait
    from dino_ssl.commands.compute import Compute
    from dino_ssl.data.revisited import Revisited
    from dino_ssl.data.sources import Source
    from dino_ssl.evaluation.nearest_sheet import Found
    from dino_ssl.evaluation.results import Evaluation
    from dino_ssl.evaluation.revisited_protocol import Landmarks
    from dino_ssl.models.encoder import Encoder

SUMMARY = (
    "Find images by the cosine similarity of a network's features. With --queries and --gallery: print, and with "
    "--output-dir also list and draw, the nearest images to each query. With --data and --dataset: mean average "
    "precision on revisited Oxford or Paris (roxford5k, rparis6k), whose images are seen whole, the long side --size."
)
BENCHMARK = ("data", "dataset", "multiscale", "crop_queries")
"""Options of the data sets, and below those of other images, the needed ones first; the rest belongs to both."""
SEARCH = ("queries", "gallery", "top", "output_dir", "center_crop", "batch_size", "cache", "no_cache")
MOST_PRINTED, MOST_DRAWN = 10, 40
"""Queries."""


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl retrieve`.

    Raises:
        UsageError: a mistake in the arguments, the weights or the data.
        RunError: an image of a data set cannot be read, or a file cannot be written.
        DivergedError: a feature is not finite.
    """
    parser = _parser()
    words = parser.read(arguments)
    if words is None:
        return
    options.only_one_process()
    _check(words, parser)
    if words.data:
        _measure(words)
    else:
        _search(words)


def _parser() -> Parser:
    parser = Parser(command="retrieve", description=SUMMARY)
    add = parser.add_argument
    add("--queries", metavar="SOURCE", help="images to look for, as after dino-ssl pretrain --data")
    add("--gallery", metavar="SOURCE", help="images to look among; the queries' own SOURCE finds no image itself")
    add("--top", type=whole(1), default=10, metavar="N", help="images for each query (%(default)s)")
    add("--output-dir", type=Path, metavar="DIR", help="for nearest.csv, and nearest.png with some queries")
    add("--data", type=Path, metavar="ROOT", help="folder that holds roxford5k/ or rparis6k/")
    add("--dataset", choices=("roxford5k", "rparis6k"), help="which of the two")
    add("--multiscale", action="store_true", help="the mean of the features at 1, 0.71 and half the size")
    add("--crop-queries", action="store_true", help="only the landmark's box of each query; DINO takes all of it")
    options.add_weights(parser)
    options.add_data_root(parser)
    options.add_device(parser)
    options.add_cache(parser)
    options.add_output(parser)
    return parser


def _check(words: argparse.Namespace, parser: Parser) -> None:
    given = {dest for dest in (*BENCHMARK, *SEARCH) if getattr(words, dest) != parser.get_default(dest)}
    own, other = (BENCHMARK, SEARCH) if words.data else (SEARCH, BENCHMARK)
    problems = [f"{_flag(dest)} is missing" for dest in own[:2] if dest not in given]
    problems += [f"{_flag(dest)} does not go with {_flag(own[0])}" for dest in other if dest in given]
    if not words.data and words.output:
        problems.append("--output: there is nothing to measure with --queries; write --output-dir")
    if problems:
        raise UsageError(*problems)


def _flag(dest: str) -> str:
    return f"--{dest.replace('_', '-')}"


def _measure(words: argparse.Namespace) -> None:
    from dino_ssl.commands.compute import Compute  # noqa: PLC0415
    from dino_ssl.data.revisited import open_revisited  # noqa: PLC0415
    from dino_ssl.evaluation.revisited_protocol import Landmarks  # noqa: PLC0415

    data = open_revisited(words.data, words.dataset)
    compute = Compute.of(words)
    encoder = options.encoder_of(words)
    settings = Landmarks(encoder.size, multiscale=words.multiscale, crop_queries=words.crop_queries)
    options.say([evaluate(encoder, data, settings, compute)], words.output)


def evaluate(encoder: "Encoder", data: "Revisited", settings: "Landmarks", compute: "Compute") -> "Evaluation":
    """Measure an encoder, with progress.

    Raises:
        RunError: an image cannot be read.
    """
    from dino_ssl.evaluation import revisited_protocol  # noqa: PLC0415
    from dino_ssl.evaluation.whole_images import WholeImages  # noqa: PLC0415

    extraction = WholeImages(encoder, compute.device, compute.precision, num_workers=compute.num_workers)
    with progress(len(data.queries) + len(data.gallery), "images") as advance:
        return revisited_protocol.evaluate(extraction, data, settings, advance)


def _search(words: argparse.Namespace) -> None:
    from dino_ssl.commands.compute import Compute  # noqa: PLC0415
    from dino_ssl.data.sources import open_source  # noqa: PLC0415
    from dino_ssl.durable import naming  # noqa: PLC0415

    queries, gallery = (open_source(spec, words.data_root) for spec in (words.queries, words.gallery))
    if words.output_dir:
        output_folder(words.output_dir, [Path(source.name) for source in (queries, gallery)])
    compute = Compute.of(words)
    encoder = options.encoder_of(words)
    found = list(_nearest(encoder, queries, gallery, compute, words.top))
    for query, images in found[:MOST_PRINTED]:
        print(f"\n{escaped(queries.describe(query))}")
        print("\n".join(f"  {similarity:6.3f}  {escaped(gallery.describe(image))}" for image, similarity in images))
    if len(found) > MOST_PRINTED:
        print(f"\nand {len(found) - MOST_PRINTED:,} queries more" + ("" if words.output_dir else "; see --output-dir"))
    if words.output_dir:
        with naming(words.output_dir):
            _write(words.output_dir, (queries, gallery), found, encoder.channels)


Neighbours = list[tuple[int, float]]
"""Images of the gallery with their similarities, nearest first."""


def _nearest(
    encoder: "Encoder", queries: "Source", gallery: "Source", compute: "Compute", top: int
) -> Iterator[tuple[int, Neighbours]]:
    """Each query that can be read, with its neighbours."""
    from dino_ssl.evaluation.retrieval import rankings  # noqa: PLC0415

    same = queries.fingerprint() == gallery.fingerprint() and queries.name == gallery.name
    theirs = compute.features(encoder, gallery)
    ours = theirs if same else compute.features(encoder, queries)
    found = rankings(ours.values.to(compute.device), theirs.values.to(compute.device), leave_one_out=same)
    for query, ranking in zip(ours.indices.tolist(), found, strict=True):
        images = theirs.indices[ranking.order[:top]].tolist()
        yield query, list(zip(images, ranking.similarity[:top].tolist(), strict=True))


def _write(
    folder: Path, sources: "tuple[Source, Source]", found: Sequence[tuple[int, Neighbours]], channels: int
) -> None:
    from dino_ssl.data.statistics import spread  # noqa: PLC0415
    from dino_ssl.evaluation.nearest_sheet import nearest_sheet  # noqa: PLC0415

    queries, gallery = sources
    with (folder / "nearest.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("query", "rank", "similarity", "image"))
        for query, images in found:
            for rank, (image, similarity) in enumerate(images, 1):
                row = (escaped(queries.describe(query)), rank, f"{similarity:.6f}", escaped(gallery.describe(image)))
                table.writerow(row)
    rows = [
        [
            _drawn(queries, query, channels),
            *(_drawn(gallery, image, channels, similarity) for image, similarity in images),
        ]
        for query, images in (found[place] for place in spread(len(found), MOST_DRAWN))
    ]
    nearest_sheet(rows).save(folder / "nearest.png")
    print(f"\nwritten to {folder}: nearest.csv, and nearest.png with {len(rows)} queries")


def _drawn(source: "Source", index: int, channels: int, similarity: float | None = None) -> "Found":
    from dino_ssl.data.sources import load  # noqa: PLC0415
    from dino_ssl.data.whole_image import as_rgb  # noqa: PLC0415
    from dino_ssl.evaluation.nearest_sheet import Found  # noqa: PLC0415

    name = Path(source.describe(index)).name
    pixels = as_rgb(load(source, index, channels=channels).pixels)
    return Found(pixels, name if similarity is None else f"{similarity:.2f}  {name}")
