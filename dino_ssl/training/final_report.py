"""What a person sees at the end of a run: a table, a picture of attention, the curve, the next step."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dino_ssl.config import PretrainConfig
from dino_ssl.data.transfer import normalize
from dino_ssl.durable import naming
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.attention import attention_figure, cls_attention
from dino_ssl.evaluation.examples import examples
from dino_ssl.evaluation.features import center_pixels, evaluating
from dino_ssl.evaluation.results import Evaluation, lines, write
from dino_ssl.models.backbone import Backbone
from dino_ssl.training import distributed
from dino_ssl.training.build import untrained_backbone
from dino_ssl.training.curves import curve
from dino_ssl.training.online_knn import OnlineKnn
from dino_ssl.training.plan import DinoRates
from dino_ssl.training.run import Run

NUM_PICTURES = 6
# Attention is shown at twice the training size (the original: 480 pixels for 224), for a grid fine enough to look at.
PICTURE_SCALE = 2


@dataclass(frozen=True)
class Report:
    """Where the results lie and what they are.

    Attributes:
        knn: accuracies in [0, 1] by name; empty without labels.
        text: the table and the files, for a terminal; empty on all ranks but the first.
    """

    folder: Path
    knn: dict[str, float]
    text: str


def final_report(config: PretrainConfig, run: Run[DinoRates], teacher: nn.Module, online: OnlineKnn | None) -> Report:
    """Measure the teacher and what it has to beat on all ranks; rank 0 draws the pictures, the others wait."""
    found = _knn(config, online, teacher) if online is not None else []
    rows = [(str(one.encoder["name"]), one.measurements[0].value, None) for one in found]
    with naming(run.folder):
        files = _draw(config, run, teacher, online) if distributed.is_main() else []
    distributed.barrier()
    parts = []
    if online is not None:
        parts.append(lines(online.title(), rows))
        if distributed.is_main():
            with naming(run.folder):
                write(run.folder / "eval" / "results.json", found)
    parts.append("\n".join(f"{name:<18}{path}" for name, path in files))
    knn = {name: value for name, value, _ in rows}
    return Report(run.folder, knn, "\n\n".join(parts) if distributed.is_main() else "")


def _knn(config: PretrainConfig, knn: OnlineKnn, teacher: nn.Module) -> list[Evaluation]:
    found = []
    for name, backbone in (
        ("teacher, last checkpoint", teacher),
        ("same network, untrained", untrained_backbone(config).to(knn.device)),
    ):
        begin = time.perf_counter()
        measured = knn.measure(backbone, name, max_images=None)
        size = config.crops.global_size
        found += knn.evaluations(measured, time.perf_counter() - begin, size=size)
    return found + (_pixels(knn) if distributed.is_main() else [])


def _pixels(knn: OnlineKnn) -> list[Evaluation]:
    begin = time.perf_counter()
    measured = knn.pixels()
    return knn.evaluations(measured, time.perf_counter() - begin, size=knn.pixel_side)


def _draw(
    config: PretrainConfig, run: Run[DinoRates], teacher: nn.Module, knn: OnlineKnn | None
) -> list[tuple[str, Path]]:
    files = [("curve", curve(run.folder, prototypes=config.head.prototypes))]
    attention = run.folder / "attention" / "attention.png"
    try:
        _draw_attention(config, run, teacher, knn, attention)
    except UsageError:  # an architecture without attention
        pass
    else:
        files.append(("attention", attention))
    if len(run.broken):
        files.append((f"{len(run.broken)} broken images", run.broken.path))
    return [*files, ("checkpoint", run.store.folder / "checkpoint.pth")]


def _draw_attention(
    config: PretrainConfig, run: Run[DinoRates], backbone: nn.Module, knn: OnlineKnn | None, path: Path
) -> None:
    """The teacher's last block on a few images that it was not trained on, if there are any."""
    crops = config.crops
    assert isinstance(backbone, Backbone)
    source = knn.queries or run.source if knn else run.source
    size = PICTURE_SCALE * crops.global_size
    pixels = torch.stack(
        [center_pixels(image, size, config.knn.center_crop) for image in examples(source, crops.channels, NUM_PICTURES)]
    )
    with evaluating(backbone), torch.no_grad():
        attention = backbone.attention(normalize(pixels.to(run.device), crops.mean, crops.std))
    attention_figure(pixels, cls_attention(attention), path)
