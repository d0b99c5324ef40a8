"""What `dino-ssl attention` was asked to draw, and the network that it asks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dino_ssl.data.transfer import normalize
from dino_ssl.data.whole_image import whole_size
from dino_ssl.errors import RunError, UsageError
from dino_ssl.evaluation.heat import Upsampling
from dino_ssl.evaluation.queries import attention_or_similarity
from dino_ssl.evaluation.query import Query
from dino_ssl.models.attention_map import AttentionMap
from dino_ssl.models.encoder import Encoder

LARGEST_SIDE = 480
"""Of the square whose area an image gets: that of the original's pictures."""
OVER_TRAINING = 480 / 224
"""The original draws networks that were made for 224 pixels at 480; others are drawn at the same ratio."""


@dataclass(frozen=True)
class Wish:
    """What to draw.

    Attributes:
        blocks: from 0 on.
        heads: None for all.
        query: None for the class token, or the mean where there is none.
        threshold: None draws no masks.
        side: pixels of the square whose area an image gets; None goes by what the network was made for.
    """

    folder: Path
    blocks: list[int]
    heads: list[int] | None
    query: Query | None
    threshold: float | None
    upsampling: Upsampling
    side: int | None
    square: bool

    def heads_of(self, attention: AttentionMap) -> list[int]:
        """The heads to draw.

        Raises:
            UsageError: one is not there.
        """
        number = attention.query.shape[1]
        if self.heads is None:
            return list(range(number))
        if wrong := [head for head in self.heads if not -number <= head < number]:
            raise UsageError(f"head={wrong[0]} must lie in 0 to {number - 1}, or count from the last as -1")
        return [head % number for head in self.heads]


@dataclass(frozen=True)
class Reader:
    """An encoder on its device."""

    encoder: Encoder
    device: torch.device

    @staticmethod
    def of(encoder: Encoder, device: torch.device) -> "Reader":
        cast(nn.Module, encoder.backbone).to(device)
        return Reader(encoder, device)

    def side(self, wish: Wish) -> int:
        """Side of the square whose area an image gets, pixels."""
        return wish.side or min(LARGEST_SIDE, round(self.encoder.size * OVER_TRAINING))

    def input_size(self, width: int, height: int, wish: Wish) -> tuple[int, int]:
        """Height and width at which the network sees an image."""
        return whole_size(width, height, self.side(wish), self.encoder.backbone.patch_size, square=wish.square)

    def attention(self, pixels: UInt8[Tensor, "b c y x"], block: int) -> tuple[AttentionMap, str]:
        """A block's attention, and a note where it is not a class token's.

        Raises:
            UsageError: there is no such block.
            RunError: the images do not go through.
        """
        with self._through(pixels) as images:
            return attention_or_similarity(self.encoder.backbone, images, block)

    def patch_features(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b d h w"]:
        """Features of the patches, on the CPU; raises as `attention`."""
        with self._through(pixels) as images:
            return self.encoder.backbone.patch_features(images).float().cpu()

    @contextmanager
    def _through(self, pixels: UInt8[Tensor, "b c y x"]) -> Iterator[Float[Tensor, "b c y x"]]:
        """Images for the network; what it cannot take becomes an error that says what to write."""
        try:
            with torch.inference_mode():
                yield normalize(pixels.to(self.device), self.encoder.mean, self.encoder.std)
        except UsageError:
            raise
        except (RuntimeError, AssertionError, ValueError) as reason:
            height, width = pixels.shape[-2:]
            raise RunError(
                f"an image of {width} x {height} pixels does not go through {self.encoder.name} ({reason}); write "
                f"--square --size {self.encoder.size}, for which it was made, or a smaller --size if memory is short"
            ) from reason


def chosen_blocks(asked: Sequence[int | None], num_blocks: int) -> list[int]:
    """The blocks, counted from the first, each once; None stands for all.

    Raises:
        UsageError: one is not there.
    """
    if None in asked:
        return list(range(num_blocks))
    if wrong := [block for block in asked if block is not None and not -num_blocks <= block < num_blocks]:
        raise UsageError(f"block={wrong[0]} must lie in 0 to {num_blocks - 1}, or count from the last as -1")
    return list(dict.fromkeys(block % num_blocks for block in asked if block is not None))
