"""The pictures of a report."""

from pathlib import Path
from typing import cast

import torch
from torch import nn

from dino_ssl.data.sources import Source
from dino_ssl.data.transfer import normalize
from dino_ssl.evaluation.attention import attention_figure
from dino_ssl.evaluation.examples import examples
from dino_ssl.evaluation.features import center_pixels
from dino_ssl.evaluation.queries import Query, attention_from, attention_or_similarity
from dino_ssl.evaluation.report_page import Picture
from dino_ssl.models.encoder import Encoder

NUM_IMAGES = 6
# Attention is shown at twice the size of the evaluation (the original: 480 pixels for 224), for a finer grid.
SCALE = 2


def attention(encoder: Encoder, source: Source, folder: Path, device: torch.device) -> Picture:
    """The last block's attention on a few images; in networks without, what comes nearest to it."""
    cast(nn.Module, encoder.backbone).to(device)
    size, images = SCALE * encoder.size, examples(source, encoder.channels, NUM_IMAGES)
    pixels = torch.stack([center_pixels(image, size, encoder.center_crop) for image in images])
    with torch.no_grad():
        inputs = normalize(pixels.to(device), encoder.mean, encoder.std)
        found, note = attention_or_similarity(encoder.backbone, inputs, -1)
    query = Query("cls" if found.has_class_token and found.num_prefix_tokens else "mean")
    path = folder / "attention.png"
    attention_figure(pixels, attention_from(found, query), path)
    said = note or f"Attention of the last block, query: {query.text}"
    return Picture(path, f"{said}. Images of {source.name} at {size} pixels.")
