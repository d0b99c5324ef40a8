"""`dino-ssl export`: a backbone for other programs, checked before it gets its name."""

import logging
from collections.abc import Sequence
from pathlib import Path

from dino_ssl.commands.options import add_weights, encoder_of
from dino_ssl.commands.parsing import Parser

SUMMARY = (
    "Write a backbone for other programs. What was written is read back and has to give the same features before it "
    "gets its name; nothing is overwritten."
)
FORMATS = {
    "timm": "timm.create_model('local-dir:{path}', pretrained=True, num_classes=0)",
    "torch": "network.load_state_dict(torch.load('{path}', weights_only=True))",
    "safetensors": "network.load_state_dict(safetensors.torch.load_file('{path}'))",
    "onnx": "onnxruntime.InferenceSession('{path}').run(['features'], {{'images': normalised_images}})",
}
"""How each is read."""


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl export`.

    Raises:
        UsageError: a mistake in the arguments, a file that is refused, an output that exists.
        RunError: what was written does not compute the same; it is deleted.
    """
    words = _parser().read(arguments)
    if words is None:
        return
    encoder = encoder_of(words)
    from dino_ssl.durable import naming  # noqa: PLC0415
    from dino_ssl.models.export import export  # noqa: PLC0415  (torch takes seconds)

    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells of every step
    with naming(words.output):
        done = export(encoder, words.format, words.output)
    images = f"{encoder.size} px, centre crop {encoder.center_crop:g}, mean {encoder.mean}, std {encoder.std}"
    print(
        f"wrote {done.path}: read back, its features of {done.num_images} random images differ by at most "
        f"{done.difference:.1e} of the largest\nimages  {images}\nread it with  "
        f"{FORMATS[words.format].format(path=done.path)}"
    )


def _parser() -> Parser:
    parser = Parser(command="export", description=SUMMARY)
    add_weights(parser, positional=True)
    add = parser.add_argument
    form = (
        "timm: a folder with model.safetensors and config.json; torch: a .pth with the original's names; safetensors: "
        "the same without a pickle; onnx: images of --size to features, any number at once"
    )
    add("--format", choices=tuple(FORMATS), required=True, help=form)
    add("--output", type=Path, required=True, metavar="PATH", help="a folder (timm), or FILE.pth, .safetensors, .onnx")
    return parser
