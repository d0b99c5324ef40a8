"""What is reported of faces: verification at several resolutions by both protocols, and TinyFace."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dino_ssl.data.degradation import Degradation, degraded
from dino_ssl.data.face_pairs import FacePairs
from dino_ssl.data.sources import Source
from dino_ssl.data.tinyface import TinyFace
from dino_ssl.errors import UsageError
from dino_ssl.evaluation import verification
from dino_ssl.evaluation.features import Features
from dino_ssl.evaluation.identification import RANKS, first_hits
from dino_ssl.evaluation.metrics import estimate
from dino_ssl.evaluation.protocols import TINYFACE, VERIFICATION_ASKD, VERIFICATION_INSIGHTFACE
from dino_ssl.evaluation.readouts import Readout
from dino_ssl.evaluation.results import Evaluation, Measurement, Plain, about, about_data, between, percent
from dino_ssl.evaluation.verification import Folds, Pairs
from dino_ssl.models.encoder import Encoder

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
Read = Callable[[Source, Readout], Features]
"""Features of every image of a source that can be read."""


@dataclass(frozen=True)
class Views:
    """At which resolutions faces are compared.

    Attributes:
        factors: by which both sides are smaller before they are brought back; 1 leaves the images as they are.
        degradation: how; nothing random.
    """

    factors: tuple[int, ...] = (1,)
    degradation: Degradation = "bicubic"

    def check(self, size: int) -> None:
        """Whether images of `size` pixels can be that much smaller.

        Raises:
            UsageError: they cannot, or what is done to them is drawn at random.
        """
        if wrong := [factor for factor in self.factors if not 1 <= factor <= size]:
            raise UsageError(f"resolution {wrong[0]}x of images of {size} pixels: write 1 to {size}")
        if self.degradation == "random_kernel":
            raise UsageError("degradation random_kernel is for training; write bicubic or askd_release")

    def readout(self, factor: int, size: int) -> Readout:
        """[b, 2, d]: of each image, and of its mirror image."""
        side = size // factor

        def read(backbone: Any, images: Float[Tensor, "b c s s"]) -> Float[Tensor, "b 2 d"]:
            seen = degraded(images, side, self.degradation)
            return torch.stack([backbone(seen), backbone(seen.flip(-1))], 1)

        return Readout("mirrored" + (f"_{self.degradation}_{side}" if factor > 1 else ""), read)


def verify(
    read: Read, encoder: Encoder, pairs: FacePairs, views: Views, fars: Sequence[float] = FARS
) -> list[Evaluation]:
    """Both protocols at every resolution, an evaluation each: their numbers are not comparable.

    Pairs of which an image cannot be read are left out, and counted.

    Raises:
        UsageError: see `Views.check` and `verification.Pairs.check`.
    """
    views.check(encoder.size)
    begin = time.perf_counter()
    found: dict[str, list[Measurement]] = {VERIFICATION_INSIGHTFACE: [], VERIFICATION_ASKD: []}
    details: dict[str, dict[str, Plain]] = {protocol: {} for protocol in found}
    for factor in views.factors:
        features = read(pairs.images, views.readout(factor, encoder.size))
        kept, values = readable(features, pairs), features.values.double().numpy()
        kept.check()
        folds = {VERIFICATION_INSIGHTFACE: verification.insightface(values, kept)}
        folds[VERIFICATION_ASKD] = verification.askd(values, kept)
        for protocol, one in folds.items():
            found[protocol].append(_accuracy(protocol, one, factor))
            details[protocol][f"{factor}x"] = _folds(one)
        found[VERIFICATION_INSIGHTFACE] += _rates(values, kept, factor, fars)
    seconds = time.perf_counter() - begin
    data = {"pairs": about_data(pairs.images, len(features.indices))}
    return [
        Evaluation(
            protocol, about(encoder), data, found[protocol], seconds,
            {"pairs": len(kept), "resolution": f"{encoder.size} px", **_how(views, pairs)},
            {"folds": details[protocol], "note": _note(kept, pairs, fars)},
        )
        for protocol in found
    ]  # fmt: skip


def _how(views: Views, pairs: FacePairs) -> dict[str, Plain]:
    degradation: dict[str, Plain] = {"degradation": views.degradation} if max(views.factors) > 1 else {}
    return degradation if pairs.seed is None else {**degradation, "drawn_with_seed": pairs.seed}


def readable(features: Features, pairs: FacePairs) -> Pairs:
    """The pairs of which both images could be read, as places among the features."""
    place = np.full(len(pairs.images), -1, np.int64)
    place[features.indices] = np.arange(len(features.indices))
    left, right = place[pairs.left], place[pairs.right]
    kept = (left >= 0) & (right >= 0)
    return Pairs(left[kept], right[kept], pairs.is_same[kept])


def _accuracy(protocol: str, folds: Folds, factor: int) -> Measurement:
    name = protocol.partition("/")[0].removeprefix("verification_")
    interval = estimate(torch.from_numpy(folds.hits)).interval
    return Measurement(f"{name}/accuracy", folds.mean, interval, {"resolution": f"{factor}x"})


def _folds(folds: Folds) -> Mapping[str, Plain]:
    return {"std": folds.std, "accuracies": folds.accuracies.tolist(), "thresholds": folds.thresholds.tolist()}


def _rates(values: np.ndarray, pairs: Pairs, factor: int, fars: Sequence[float]) -> Iterator[Measurement]:
    """True accepts at the rates that so many pairs can show."""
    distances = verification.squared_distances(values, pairs)
    for far in fars:
        if far >= verification.resolution(pairs):
            hits = verification.rate_at(distances, pairs.is_same, far).hits
            rate = estimate(torch.from_numpy(hits))
            yield Measurement(
                "insightface/tar", rate.value, rate.interval, {"resolution": f"{factor}x", "far": f"{far:g}"}
            )


def _note(kept: Pairs, pairs: FacePairs, fars: Sequence[float]) -> str:
    finest = verification.resolution(kept)
    notes = [f"false accept rates are resolved to {finest:.2g}"]
    if coarse := [f"{far:g}" for far in fars if far < finest]:
        notes.append(f"{', '.join(coarse)} left out")
    if len(kept) < len(pairs):
        notes.append(f"{len(pairs) - len(kept):,} pairs left out, as an image of them cannot be read")
    return "; ".join([*notes, "people that the network was trained on make every number too good"])


def identify(read: Read, encoder: Encoder, data: TinyFace, device: torch.device) -> Evaluation:
    """Rank-1, 5, 10 and 20 of TinyFace.

    Raises:
        UsageError: no probe can be read.
    """
    begin = time.perf_counter()
    readout = Views().readout(1, encoder.size)
    probes, gallery = read(data.probes, readout), read(data.gallery, readout)
    ranks = first_hits(
        probes.values.sum(1).to(device), torch.from_numpy(data.probe_labels[probes.indices]),
        gallery.values.sum(1), torch.from_numpy(data.gallery_labels[gallery.indices]),
    ).cpu()  # fmt: skip
    # A probe that cannot be read is one that is not found.
    missed = torch.full((probes.num_broken,), max(RANKS) + 1)
    hits = {k: estimate(torch.cat([ranks, missed]) <= k) for k in RANKS}
    measurements = [Measurement("tinyface/rank", hit.value, hit.interval, {"k": k}) for k, hit in hits.items()]
    sets = {"probes": about_data(data.probes, len(probes.indices))}
    sets["gallery"] = about_data(data.gallery, len(gallery.indices))
    return Evaluation(TINYFACE, about(encoder), sets, measurements, time.perf_counter() - begin)


def resolution_table(evaluations: Sequence[Evaluation]) -> str:
    """Lines for a plain terminal: a row for each set of pairs and protocol, a column for each resolution."""
    rows: dict[str, dict[str, str]] = {}
    for evaluation in evaluations:
        for one in evaluation.measurements:
            resolution = one.settings.get("resolution")
            if resolution is None:
                continue
            rest = [f"{name}={value}" for name, value in one.settings.items() if name != "resolution"]
            title = " ".join([str(evaluation.data["pairs"]["source"]), one.metric, *rest])  # type: ignore[index,call-overload]
            rows.setdefault(title, {})[str(resolution)] = f"{percent(one.value)} {between(one.interval)}"
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    width = max(map(len, rows), default=0)
    table = {"": {name: name for name in columns}, **rows}
    return "\n".join(
        f"{title:<{width}} " + " ".join(f"{row.get(name, ''):>23}" for name in columns) for title, row in table.items()
    )
