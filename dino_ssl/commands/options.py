"""The options that every evaluation has, with one spelling and one meaning."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ssl.commands.parsing import Parser, real, whole
from dino_ssl.config import PretrainConfig

if TYPE_CHECKING:  # torch takes seconds, for which help and mistakes should not wait
    import torch

    from dino_ssl.models.encoder import Encoder


def add_weights(parser: Parser) -> None:
    """Which network, and how its images are prepared: --weights, --key, --arch, --patch-size, --size, --center-crop."""
    add = parser.add_argument
    add("--weights", type=Path, required=True, metavar="RUN_OR_FILE", help="a run's folder, or a file of weights")
    key = "which of the two networks of a DINO checkpoint (%(default)s)"
    add("--key", choices=("teacher", "student"), default="teacher", help=key)
    add("--arch", metavar="NAME", help="the backbone, where the file does not say: vit_small, resnet50, timm/NAME")
    add("--patch-size", type=whole(1), metavar="P", help="of a ViT, pixels, where the file does not say")
    add("--size", type=whole(1), metavar="PIXELS", help="side of the images (what the network was made for)")
    crop = "side of the centre crop over the resized short side (0.875, or what the run used)"
    add("--center-crop", type=real(0, 1, open_below=True), metavar="SHARE", help=crop)


def add_device(parser: Parser) -> None:
    """Where and how to compute: --device, --precision, --batch-size, --num-workers."""
    add = parser.add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes CUDA where there is one")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the backbone (%(default)s)")
    add("--batch-size", type=whole(1), default=64, metavar="N", help="images at once (%(default)s)")
    add("--num-workers", type=whole(0), metavar="N", help="processes that read images (all cores but one)")


def add_data_root(parser: Parser) -> None:
    """--data-root."""
    root = PretrainConfig().data_root
    parser.add_argument(
        "--data-root", type=Path, default=root, metavar="DIR", help="folder of known data sets (%(default)s)"
    )


def add_output(parser: Parser) -> None:
    """--output."""
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write the numbers as JSON")


def encoder_of(words: Namespace) -> "Encoder":
    """The encoder that the options of `add_weights` ask for; prints what matched.

    Raises:
        UsageError: see `load_encoder`.
    """
    from dino_ssl.models.weights import load_encoder  # noqa: PLC0415

    encoder = load_encoder(
        words.weights,
        key=words.key,
        arch=words.arch,
        patch_size=words.patch_size,
        size=words.size,
        center_crop=words.center_crop,
    )
    print(f"{encoder.name} from {encoder.origin}: {encoder.report}")
    return encoder


def device_of(words: Namespace) -> "torch.device":
    """The device that the options of `add_device` ask for.

    Raises:
        UsageError: CUDA is asked for and not there.
    """
    from dino_ssl.training.distributed import device_kind, local_device  # noqa: PLC0415

    return local_device(device_kind(words.device))
