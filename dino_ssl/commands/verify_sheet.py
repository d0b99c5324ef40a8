"""The picture of `dino-ssl verify`: where a teacher and a student look in the same faces, resolution by resolution."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from dino_ssl.data.degradation import degraded
from dino_ssl.data.sources import Source, load
from dino_ssl.data.statistics import spread
from dino_ssl.data.transfer import normalize
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.face_protocols import Views
from dino_ssl.evaluation.features import center_pixels, evaluating
from dino_ssl.evaluation.gate_sheet import Gaze, Sight, gate_sheet
from dino_ssl.finetuning.attention_similarity import log_rows
from dino_ssl.finetuning.looking import Looks, features_and_looks
from dino_ssl.models.backbone import Backbone
from dino_ssl.models.cbam import Gates
from dino_ssl.models.encoder import Encoder
from dino_ssl.models.necks import EmbeddingNetwork

FACES = 2
"""That are drawn, from the beginning and the middle of the source."""
MOST_BLOCKS = 3


def draw(path: Path, teacher: Encoder, student: Encoder, images: Source, views: Views) -> None:
    """Write the sheet; the teacher sees whole faces, the student what is left of them.

    Raises:
        UsageError: a network has neither gates nor attention, or the two have other blocks.
        BrokenImage: a face cannot be read.
    """
    sights = [
        sight
        for index in spread(len(images), FACES)
        for sight in _sights(load(images, index, channels=student.channels).pixels, teacher, student, views)
    ]
    lines = [f"teacher {teacher.name} from {teacher.origin}", f"student {student.name} from {student.origin}"]
    gate_sheet(f"Where they look in {images.name}", lines, sights).save(path)


def _sights(pixels: UInt8[np.ndarray, "h w c"], teacher: Encoder, student: Encoder, views: Views) -> list[Sight]:
    whole = {encoder.size: center_pixels(pixels, encoder.size, 1.0)[None] for encoder in (teacher, student)}
    theirs = _looks(teacher, normalize(whole[teacher.size], teacher.mean, teacher.std))
    found = []
    for factor in views.factors:
        side = student.size // factor
        seen = degraded(whole[student.size].float(), side, views.degradation).round().clamp(0, 255).byte()
        clear = normalize(whole[student.size], student.mean, student.std)
        ours = _looks(student, degraded(clear, side, views.degradation))
        if len(ours) != len(theirs):
            raise UsageError(
                f"the teacher has {len(theirs)} blocks with maps, the student {len(ours)}: none belong together"
            )
        name = f"{factor}x: {side} pixels"
        found.append(Sight(name, _shown(whole[teacher.size]), _shown(seen), _gazes(theirs, ours)))
    return found


def _shown(images: UInt8[Tensor, "1 3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    return images[0].permute(1, 2, 0).contiguous().numpy()


@torch.no_grad()
def _looks(encoder: Encoder, images: Tensor) -> Looks:
    backbone = encoder.backbone
    inner: Backbone = backbone.inner if isinstance(backbone, EmbeddingNetwork) else backbone
    with evaluating(cast(nn.Module, backbone)):
        return features_and_looks(inner, images, max(1, min(MOST_BLOCKS, inner.num_attention_blocks)))[1]


def _gazes(teacher: Looks, student: Looks) -> list[Gaze]:
    """Of some blocks, the last one among them."""
    number = min(MOST_BLOCKS, len(teacher))
    places = [(turn + 1) * len(teacher) // number - 1 for turn in range(number)]
    found = []
    for place in places:
        name = f"block {place + 1} of {len(teacher)}"
        one, other = teacher[place], student[place]
        if isinstance(one, Gates) and isinstance(other, Gates):
            found.append(Gaze(name, one.spatial[0], other.spatial[0], one.channel[0], other.channel[0]))
        elif not isinstance(one, Gates) and not isinstance(other, Gates):
            maps = (log_rows(each, "saliency", 1.0)[0].exp().mean((0, 1)).reshape(each.grid) for each in (one, other))
            found.append(Gaze(f"attention, {len(teacher) - place} from the end", *maps))
        else:
            raise UsageError("one network has gates and the other attention: their maps cannot be compared")
    return found
