"""`dino-ssl video`: carry the masks of a first frame through a video, and on DAVIS 2017 measure how well."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dino_ssl.commands import options
from dino_ssl.commands.mask_output import OVERLAYS, Overlay, Write, written
from dino_ssl.commands.output_folder import output_folder
from dino_ssl.commands.parsing import Parser, real, whole
from dino_ssl.commands.progress import progress
from dino_ssl.errors import UsageError

if TYPE_CHECKING:  # torch takes seconds, for which help and mistakes should not wait
    from torch import Tensor

    from dino_ssl.commands.compute import Compute
    from dino_ssl.data.davis import Clip, Davis
    from dino_ssl.data.footage import Footage
    from dino_ssl.evaluation.results import Evaluation, Plain
    from dino_ssl.evaluation.video import Propagation
    from dino_ssl.evaluation.video_protocol import ObjectScores
    from dino_ssl.models.encoder import Encoder

SUMMARY = (
    "Carry the masks of a first frame through a video by the similarity of patch features, without any training. On "
    "DAVIS 2017 (--data its root) every sequence of the split is done and measured: J, F and their mean. Anything else "
    "(--data a folder of frames, or a video) needs --first-mask, and --output-dir for what is found."
)


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl video`.

    Raises:
        UsageError: a mistake in the arguments, the weights, the data or the mask.
        RunError: a frame cannot be read, or a file not be written.
    """
    words = _parser().read(arguments)
    if words is None:
        return
    options.only_one_process()
    _check(words)
    from dino_ssl.commands.compute import PRECISIONS, Compute  # noqa: PLC0415
    from dino_ssl.data.davis import open_davis  # noqa: PLC0415
    from dino_ssl.durable import naming  # noqa: PLC0415

    davis = open_davis(words.data, split=words.split, sequences=words.sequences) if not words.first_mask else None
    if words.output_dir:
        output_folder(words.output_dir, [words.data])  # what is found must not replace what is known
    settings = settings_of(words)
    encoder = options.encoder_of(words)
    compute = Compute(options.device_of(words), PRECISIONS[words.precision])
    with naming(words.output_dir or Path()):
        if davis is None:
            _follow_one(words, encoder, settings, compute)
            return
        found = evaluate(
            encoder, davis, settings, compute,
            folder=words.output_dir, overlay=words.overlay,
        )  # fmt: skip
    options.say([found], words.output)
    print(_details_of(found))


def _parser() -> Parser:
    parser = Parser(command="video", description=SUMMARY)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="PATH", help="root of DAVIS 2017, a folder of frames, or a video")
    add("--first-mask", type=Path, metavar="FILE.png", help="of the first frame: a number or a colour for each object")
    add("--split", default="val", metavar="NAME", help="of DAVIS (%(default)s)")
    add("--sequences", nargs="+", default=[], metavar="NAME", help="of DAVIS, some of the split (all)")
    where = "for the masks, as DIR/SEQUENCE/00000.png, which the evaluation of DAVIS reads"
    add("--output-dir", type=Path, metavar="DIR", help=where)
    add("--overlay", choices=OVERLAYS, help="also the masks over the frames: a video, or a page of frames")
    options.add_network(parser)
    add_propagation(parser)
    options.add_place(parser)
    options.add_precision(parser)
    options.add_output(parser)
    return parser


def add_propagation(parser: Parser) -> None:
    """--size, --context, --radius, --top-k, --temperature; without them, the protocol."""
    add = parser.add_argument
    parser.set_defaults(size=None, center_crop=None)  # frames are seen whole, at a size of their own
    side = "short side of the frames, as near as the patches allow (480)"
    add("--size", dest="short_side", type=whole(1), metavar="PIXELS", help=side)
    add("--context", type=whole(0), default=7, metavar="N", help="frames before, beside the first (%(default)s)")
    add("--radius", type=whole(0), default=12, metavar="PATCHES", help="of the window; 0: everywhere (%(default)s)")
    add("--top-k", type=whole(1), default=5, metavar="K", help="most similar patches (%(default)s)")
    add("--temperature", type=real(0, open_below=True), default=0.1, metavar="T", help="of their weights (%(default)s)")


def settings_of(words: argparse.Namespace) -> "Propagation":
    """What the options of `add_propagation` ask for."""
    from dino_ssl.evaluation.video import Propagation  # noqa: PLC0415

    short_side = words.short_side or Propagation.short_side
    return Propagation(short_side, words.context, words.radius, words.top_k, words.temperature)


def _check(words: argparse.Namespace) -> None:
    problems = []
    if words.overlay and not words.output_dir:
        problems.append(f"--overlay {words.overlay} has no place; write --output-dir DIR")
    if words.first_mask:
        problems += [] if words.output_dir else ["--first-mask: write --output-dir DIR for what is found"]
        problems += ["--sequences belongs to DAVIS, --first-mask to another video"] if words.sequences else []
        problems += ["--output: there is no annotation to measure by with --first-mask"] if words.output else []
    if problems:
        raise UsageError(*problems)


def evaluate(
    encoder: "Encoder",
    data: "Davis",
    settings: "Propagation",
    compute: "Compute",
    *,
    folder: Path | None = None,
    overlay: Overlay | None = None,
) -> "Evaluation":
    """Carry the masks through every sequence, and measure those whose frames all have an annotation.

    Args:
        folder: for the masks; None writes none.
    Raises:
        UsageError: a sequence is too short or has no object, or its mask another size.
        RunError: a frame cannot be read.
    """
    from dino_ssl.data.footage import footage_of_clip  # noqa: PLC0415
    from dino_ssl.evaluation import video_protocol  # noqa: PLC0415
    from dino_ssl.evaluation.protocols import DAVIS  # noqa: PLC0415
    from dino_ssl.evaluation.results import Evaluation, Plain, about  # noqa: PLC0415

    begin = time.perf_counter()
    firsts = [clip.first_mask() for clip in data.clips]
    for clip, first in zip(data.clips, firsts, strict=True):
        video_protocol.check(clip.name, len(clip.frames), first.numbers)
    objects = []
    for clip, first in zip(data.clips, firsts, strict=True):
        footage = footage_of_clip(clip, first, encoder.channels)
        with written(folder, footage, overlay) as write:
            found = list(followed(encoder, footage, settings, compute, write))
        objects += _scores(clip, found)
    num_frames = sum(len(clip.frames) for clip in data.clips)
    about_data: dict[str, Plain] = {"source": data.name, "fingerprint": data.fingerprint(), "num_images": num_frames}
    return Evaluation(
        DAVIS, about(encoder), {"videos": about_data}, video_protocol.measurements(objects),
        time.perf_counter() - begin, settings=asdict(settings),
        details=video_protocol.by_clip_and_object(objects),
    )  # fmt: skip


def followed(
    encoder: "Encoder",
    footage: "Footage",
    settings: "Propagation",
    compute: "Compute",
    write: Write,
) -> Iterator["Tensor"]:
    """The mask of every frame, after it has been written."""
    import torch  # noqa: PLC0415

    from dino_ssl.evaluation.video import carry_masks  # noqa: PLC0415

    cast(torch.nn.Module, encoder.backbone).to(compute.device)
    shown, read = tee(footage.frames)
    masks = carry_masks(
        encoder.backbone,
        (torch.tensor(pixels).permute(2, 0, 1) for _, pixels in read),
        torch.from_numpy(footage.first.numbers),
        settings,
        mean=encoder.mean, std=encoder.std, device=compute.device, precision=compute.precision,
    )  # fmt: skip
    with progress(footage.num_frames, f"frames of {footage.name}") as advance:
        for (name, pixels), mask in zip(shown, masks, strict=True):
            write(name, pixels, mask.numpy())
            advance(1)
            yield mask


def _scores(clip: "Clip", found: "list[Tensor]") -> "list[ObjectScores]":
    import torch  # noqa: PLC0415

    from dino_ssl.data.masks import read_mask  # noqa: PLC0415
    from dino_ssl.evaluation.video_protocol import score  # noqa: PLC0415

    if not clip.annotated:
        return []
    truth = torch.stack([torch.from_numpy(read_mask(path).numbers) for path in clip.masks])
    return score(clip.name, torch.stack(found), truth)


def _follow_one(words: argparse.Namespace, encoder: "Encoder", settings: "Propagation", compute: "Compute") -> None:
    from dino_ssl.data.footage import open_footage  # noqa: PLC0415
    from dino_ssl.data.masks import read_mask  # noqa: PLC0415

    first = read_mask(words.first_mask, colours=True)
    folder: Path = words.output_dir
    with open_footage(words.data, first, encoder.channels) as footage, written(folder, footage, words.overlay) as write:
        count = sum(1 for _ in followed(encoder, footage, settings, compute, write))
    print(f"masks of {count:,} frames are in {folder / footage.name}")


def _details_of(found: "Evaluation") -> str:
    from dino_ssl.evaluation.results import percent  # noqa: PLC0415

    scores = {name: one for name, one in found.details.items() if isinstance(one, Mapping)}
    rows = [f"  {name:<24} {'   '.join(_named(one, percent))}" for name, one in scores.items()]
    return "\n".join(
        ["by sequence and object", *rows] if rows else ["no sequence has a mask for every frame: nothing is measured"]
    )


def _named(scores: "Mapping[str, Plain]", percent: Callable[[float], str]) -> Iterator[str]:
    return (f"{name.upper()} {percent(value):>7}" for name, value in scores.items() if isinstance(value, float))
