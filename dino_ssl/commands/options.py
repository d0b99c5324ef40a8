"""The options that every evaluation has, with one spelling and one meaning."""

import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ssl.commands.parsing import Parser, real, whole
from dino_ssl.config import PretrainConfig
from dino_ssl.errors import UsageError

if TYPE_CHECKING:  # torch takes seconds, for which help and mistakes should not wait
    import torch

    from dino_ssl.data.sources import Source
    from dino_ssl.evaluation.results import Evaluation
    from dino_ssl.models.encoder import Encoder
    from dino_ssl.models.weights import Loaded


def add_network(parser: Parser, *, positional: bool = False, optional: bool = False) -> None:
    """Which network: --weights, --key, --arch, --patch-size.

    Args:
        positional: RUN_OR_FILE stands by itself, in commands that are about it.
        optional: it may be left out.
    """
    add = parser.add_argument
    what = "a run's folder, or a file of weights"
    if positional:
        add("weights", type=Path, nargs="?" if optional else None, metavar="RUN_OR_FILE", help=what)
    else:
        add("--weights", type=Path, required=True, metavar="RUN_OR_FILE", help=what)
    key = "which of the two networks of a DINO checkpoint (%(default)s)"
    add("--key", choices=("teacher", "student"), default="teacher", help=key)
    add("--arch", metavar="NAME", help="the backbone, where the file does not say: vit_small, resnet50, timm/NAME")
    add("--patch-size", type=whole(1), metavar="P", help="of a ViT, pixels; the file tells, another is refused")


def add_weights(parser: Parser, *, positional: bool = False, optional: bool = False) -> None:
    """Which network, and how its images are prepared: those of `add_network`, --size, --center-crop."""
    add_network(parser, positional=positional, optional=optional)
    add = parser.add_argument
    add("--size", type=whole(1), metavar="PIXELS", help="side of the images (what the network was made for)")
    crop = "side of the centre crop over the resized short side (0.875, or what the run used)"
    add("--center-crop", type=real(0, 1, open_below=True), metavar="SHARE", help=crop)


def add_place(parser: Parser) -> None:
    """Where to compute: --device."""
    help_text = "auto takes CUDA where there is one"
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=help_text)


def add_precision(parser: Parser) -> None:
    """--precision."""
    help_text = "of the backbone (%(default)s)"
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help=help_text)


def add_workers(parser: Parser) -> None:
    """--num-workers."""
    help_text = "processes that read images (all cores but one)"
    parser.add_argument("--num-workers", type=whole(0), metavar="N", help=help_text)


def add_device(parser: Parser) -> None:
    """Where and how to compute: --device, --precision, --batch-size, --num-workers."""
    add_place(parser)
    add_precision(parser)
    add_workers(parser)
    parser.add_argument("--batch-size", type=whole(1), default=64, metavar="N", help="images at once (%(default)s)")


def add_cache(parser: Parser) -> None:
    """--cache, --no-cache."""
    where = "where features are kept (RUN/eval/features; of other files ~/.cache/dino_ssl/features)"
    parser.add_argument("--cache", type=Path, metavar="DIR", help=where)
    parser.add_argument("--no-cache", action="store_true", help="keep no features")


def add_data_root(parser: Parser) -> None:
    """--data-root."""
    root = PretrainConfig().data_root
    parser.add_argument(
        "--data-root", type=Path, default=root, metavar="DIR", help="folder of known data sets (%(default)s)"
    )


def add_labelled(parser: Parser) -> None:
    """What is learned from and what is classified: --train, --test, --data-root."""
    add = parser.add_argument
    add("--train", required=True, metavar="SOURCE", help="labelled images, as after dino-ssl pretrain --data")
    add("--test", metavar="SOURCE", help="images to classify (the test split that belongs to --train)")
    add_data_root(parser)


def labelled_sources(words: Namespace) -> tuple["Source", "Source | None"]:
    """The sources that the options of `add_labelled` ask for; the second is None where there is no test split.

    Raises:
        UsageError: one cannot be opened, has no labels, or the second has classes that the first lacks.
    """
    from dino_ssl.data.sources import labels_in, open_source, test_source_of  # noqa: PLC0415

    train = open_source(words.train, words.data_root)
    spec = words.test or test_source_of(words.train)
    test = open_source(spec, words.data_root) if spec else None
    for source in (train, test or train):
        labels_in(source, train.classes)
    return train, test


def say(evaluations: "Sequence[Evaluation]", output: Path | None) -> None:
    """Print the tables and write the file, on rank 0.

    Raises:
        RunError: the file cannot be written.
    """
    from dino_ssl.durable import naming  # noqa: PLC0415
    from dino_ssl.evaluation.results import table, write  # noqa: PLC0415
    from dino_ssl.training.ranks import placement  # noqa: PLC0415

    if placement().rank > 0:
        return
    print("\n".join(f"\n{table(evaluation)}\n  {evaluation.seconds:.1f} s" for evaluation in evaluations))
    if output is not None:
        with naming(output):
            write(output, evaluations)
        print(f"\nwritten to {output}")


def add_output(parser: Parser) -> None:
    """--output."""
    parser.add_argument("--output", type=new_file, metavar="FILE.json", help="also write the numbers as JSON")


def new_file(text: str) -> Path:
    """A place that a file can be written to: hours of measuring should not end with one that cannot."""
    path = Path(text)
    above = next((place for place in path.parents if os.access(place, os.F_OK)), path)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ArgumentTypeError(f"'{text}' cannot be written: {above} is no folder that you may write to")
    if path.is_dir():
        raise ArgumentTypeError(f"'{text}' is a folder; write a file in it")
    return path


def add_compute(parser: Parser) -> None:
    """`add_device`, `add_cache` and `add_output`."""
    add_device(parser)
    add_cache(parser)
    add_output(parser)


def encoder_of(words: Namespace) -> "Encoder":
    """The encoder that the options of `add_weights`, or of `add_network` with defaults for the rest, ask for.

    Prints what matched.

    Raises:
        UsageError: see `load_encoder`.
    """
    from dino_ssl.training.ranks import placement  # noqa: PLC0415

    encoder = loaded_of(words).encoder
    if placement().rank == 0:
        print(f"{encoder.name} from {encoder.origin}: {encoder.report}")
    return encoder


def loaded_of(words: Namespace) -> "Loaded":
    """The same with all that there is to know of the file, and nothing printed."""
    from dino_ssl.models.weights import load  # noqa: PLC0415

    return load(
        words.weights,
        key=words.key,
        arch=words.arch,
        patch_size=words.patch_size,
        size=words.size,
        center_crop=words.center_crop,
    )


def only_one_process() -> None:
    """For what is not shared out: every rank would do all of it, and write the same files.

    Raises:
        UsageError: there are several.
    """
    from dino_ssl.training.ranks import placement  # noqa: PLC0415

    here = placement()
    if here.world_size > 1:
        raise UsageError(f"this runs on one process, and here are {here}; start it without torchrun or srun -n")


def device_of(words: Namespace) -> "torch.device":
    """The device that the option of `add_place` asks for.

    Raises:
        UsageError: CUDA is asked for and not there.
    """
    from dino_ssl.training.distributed import device_kind, local_device  # noqa: PLC0415

    return local_device(device_kind(words.device))
