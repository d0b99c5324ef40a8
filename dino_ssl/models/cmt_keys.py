"""The names of tensors in the released files of CMT, and what the tensors of a CMT say of it."""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from dino_ssl.models.cmt import CMT_SIZES, REDUCTIONS

# As github.com/ggjy/CMT.pytorch names its layers; ours stand on the right.
OF_STEM = {
    theirs: ours
    for number in (1, 2, 3)
    for theirs, ours in (
        (f"stem_conv{number}.", f"stem.{3 * number - 3}."),
        (f"stem_norm{number}.", f"stem.{3 * number - 1}."),
    )
}
OF_STAGES = {
    theirs: ours
    for index, letter in enumerate("abcd")
    for theirs, ours in (
        (f"patch_embed_{letter}.proj.", f"stages.{index}.patch_embed.0."),
        (f"patch_embed_{letter}.norm.", f"stages.{index}.patch_embed.1."),
        (f"relative_pos_{letter}", f"stages.{index}.position_bias.weight"),
        (f"blocks_{letter}.", f"stages.{index}.blocks."),
    )
}
OF_BLOCKS = {
    "proj.": "local.",
    "attn.q.": "attn.query.",
    "attn.k.": "attn.key.",
    "attn.v.": "attn.value.",
    "attn.sr.": "attn.reduce.",
    "mlp.conv1.": "mlp.widen.",
    "mlp.proj.": "mlp.depthwise.",
    "mlp.proj_bn.": "mlp.activate.1.",
    "mlp.conv2.": "mlp.narrow.",
}
STRIDE = 32
"""Pixels of the image for a key, with the ordinary stem."""
RELEASED = {"stem_conv1.weight", "relative_pos_a"}
"""Names that no other family has."""


def with_our_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a released CMT by our names; those of other networks as they are."""
    if not tensors.keys() >= RELEASED:
        return dict(tensors)
    return {_our_name(name): value for name, value in tensors.items()}


def _our_name(name: str) -> str:
    name = _replaced(name, OF_STEM | OF_STAGES)
    block = re.match(r"stages\.\d\.blocks\.\d+\.", name)
    return block[0] + _replaced(name[block.end() :], OF_BLOCKS) if block else name


def _replaced(name: str, table: Mapping[str, str]) -> str:
    return next((ours + name.removeprefix(theirs) for theirs, ours in table.items() if name.startswith(theirs)), name)


def cmt_options(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Arguments of `build_backbone` that the tensors give, with the ordinary stem; None if they are of no CMT.

    The size is that for which the position biases were made.
    """
    kind = "free" if "stages.0.position_bias.weight" in tensors else "relative"
    table = tensors.get("stages.0.position_bias." + ("weight" if kind == "free" else "0.bias"))
    first = tensors.get("stem.0.weight")
    if first is None or first.ndim != 4 or table is None or table.ndim != 3 or not table.numel():
        return None
    reduction = REDUCTIONS[0]
    side = isqrt(table.shape[2]) if kind == "free" else (table.shape[1] // reduction + 1) // 2
    if table.shape[1] != ((reduction * side) ** 2 if kind == "free" else (2 * side - 1) * reduction):
        return None
    return {"image_size": STRIDE * side, "position_bias": kind, "in_chans": first.shape[1]}


def cmt_name(tensors: Mapping[str, Tensor]) -> str | None:
    """The key of `CMT_SIZES` whose widths and depths the tensors have; None if it is none of them."""
    blocks = {tuple(name.split(".")[1:4:2]) for name in tensors if re.match(r"stages\.\d\.blocks\.\d+\.", name)}
    depths = tuple(sum(stage == str(index) for stage, _ in blocks) for index in range(len(REDUCTIONS)))
    names = ["stem.0", *(f"stages.{index}.patch_embed.0" for index in range(len(REDUCTIONS)))]
    widths = [tensors[f"{name}.weight"].shape[:1] for name in names if f"{name}.weight" in tensors]
    for name, size in CMT_SIZES.items():
        if depths == size.depths and [tuple(width) for width in widths] == [(size.stem_dim,), *zip(size.dims)]:
            return name
    return None
