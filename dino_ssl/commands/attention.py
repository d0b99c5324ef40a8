"""`dino-ssl attention`: what a network looks at in photographs and videos."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dino_ssl.commands.attention_inputs import Input, find_inputs
from dino_ssl.commands.options import add_network, add_place
from dino_ssl.commands.output_folder import output_folder
from dino_ssl.commands.parsing import Parser, real, whole
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.query import Query

USAGE = "dino-ssl attention PATH... --weights RUN_OR_FILE [--output-dir DIR] [--FLAG VALUE ...]"
DESCRIPTION = (
    "Draw where a network looks in images, folders of images, and videos (MP4 and others through PyAV; GIF). Each "
    "image gets a folder with one page for the eye (heads.png), a map, an overlay and, if asked for, a mask for each "
    "head, and the numbers (attention.npz). A video becomes a video. Blocks and heads count from 0, or as -1, -2, ... "
    "from the last."
)
QUERY = (
    "who looks: cls, the class token; register1, ...; mean, over all patches; or the patch at X,Y, shares of width and "
    "height such as 0.5,0.25 (cls; mean where there is none)"
)


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl attention`.

    Raises:
        UsageError: a mistake in the arguments, a PATH or a file of weights.
        RunError: no image can be read, or one does not go through the network.
    """
    words = _parser().read(arguments)
    if words is None:
        return
    inputs = find_inputs(words.paths, folders_are_videos=words.fps is not None)
    _check(words, inputs)
    folder = output_folder(words.output_dir, words.paths)
    from dino_ssl.commands.attention_drawing import draw  # noqa: PLC0415  (torch takes seconds)

    draw(inputs, folder, words)


def _parser() -> Parser:
    parser = Parser(command="attention", usage=USAGE, description=DESCRIPTION)
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="PATH", help="an image, a folder of images, or a video")
    add_network(parser)
    parser.set_defaults(size=None, center_crop=None)  # the whole image is shown, at a size of its own
    add("--output-dir", type=Path, default=Path("attention"), metavar="DIR", help="for the pictures (%(default)s)")
    add("--block", type=_numbers, action="extend", metavar="B,...", help="blocks to read, or all (-1)")
    add("--head", type=_numbers, action="extend", metavar="H,...", help="heads to draw, or all (all)")
    add("--query", type=_query, metavar="TOKEN", help=QUERY)
    add("--threshold", type=real(0, 1, open_below=True), metavar="MASS", help="draw masks that hold it; the paper: 0.6")
    upsample = "squares as in the paper, or smooth (%(default)s)"
    add("--upsample", choices=("nearest", "bilinear"), default="nearest", help=upsample)
    size = "an image gets the area of a square of this side (480 for networks made for 224 pixels, in proportion below)"
    add("--size", dest="side", type=whole(1), metavar="PIXELS", help=size)
    square = "squeeze each image into that square, as the original does; without it the aspect is kept"
    add("--square", action="store_true", help=square)
    add("--pca", action="store_true", help="also patch features as colours, the same directions for all images")
    add("--foreground", action="store_true", help="with --pca: colours for the object alone")
    viewer = "also viewer.html, where every patch of an image can be asked, in all blocks or those of --block"
    add("--viewer", action="store_true", help=viewer)
    add("--compare", type=Path, metavar="RUN_OR_FILE", help="with --viewer: a second network beside the first")
    fps = "take each folder for a video of so many frames per second"
    add("--fps", type=real(0, 1000, open_below=True), metavar="N", help=fps)
    add("--max-frames", type=whole(1), metavar="N", help="of each video, from its beginning (all)")
    shows = "frame beside overlay, or one of: overlay, map (%(default)s)"
    add("--video-shows", choices=("both", "overlay", "map"), default="both", help=shows)
    add("--video-format", choices=("mp4", "gif"), help="of videos (mp4; gif for a GIF)")
    add_place(parser)
    return parser


def _numbers(text: str) -> list[int | None]:
    """Numbers between commas; None for all."""
    words = text.split(",")
    if words == ["all"]:
        return [None]
    if not text.isascii() or not all(word.removeprefix("-").isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"'{text}' must be whole numbers between commas, such as 0,5 (=-2,-1), or all")
    return [int(word) for word in words]


def _query(text: str) -> Query:
    try:
        return Query.of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _check(words: argparse.Namespace, inputs: Sequence[Input]) -> None:
    """Whether the arguments go together.

    Raises:
        UsageError: they do not.
    """
    videos, problems = [item.is_video for item in inputs], []
    if words.foreground and not words.pca:
        problems.append("--foreground goes with --pca; write both")
    if words.compare and not words.viewer:
        problems.append("--compare goes with --viewer; write both")
    if all(videos) and (words.pca or words.viewer):
        problems.append("--pca and --viewer go with images, and there are only videos; write a folder of their frames")
    if not any(videos) and (words.max_frames or words.video_format or words.video_shows != "both"):
        problems.append(
            "--max-frames, --video-shows and --video-format go with videos, and there is none; "
            "write --fps to take a folder for one"
        )
    if words.fps and not any(item.frames for item in inputs):
        problems.append("--fps goes with folders of frames, and there is none; leave it out")
    if problems:
        raise UsageError(*problems)
