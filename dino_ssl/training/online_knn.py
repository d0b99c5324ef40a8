"""Weighted k-NN of the teacher while it trains, and of everything it is compared to at the end."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dino_ssl.config import PretrainConfig
from dino_ssl.data.sources import Source, labels_in, open_source, test_source_of
from dino_ssl.data.streams import Purpose, stream
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.features import Extractor, Labelled, labelled
from dino_ssl.evaluation.knn import PixelBaselines, knn_accuracy, pixel_baselines
from dino_ssl.evaluation.protocols import KNN
from dino_ssl.evaluation.results import Evaluation, Measurement, about_data
from dino_ssl.training import distributed

# Pixels of larger images say little and fill the memory; the baseline looks at this side, in pixels, at most.
PIXEL_SIDE = 32
logger = logging.getLogger("dino_ssl")


@dataclass(frozen=True)
class OnlineKnn:
    """A labelled bank and queries; without queries each image of the bank is left out in turn."""

    config: PretrainConfig
    bank: Source
    queries: Source | None
    device: torch.device

    def is_due(self, epoch: int) -> bool:
        """Whether to measure after `epoch` finished epochs."""
        return epoch % self.config.knn.every_epochs == 0

    def measure(self, backbone: nn.Module, *, max_images: int | None) -> float:
        """Top-1 accuracy in [0, 1]; measured on rank 0, known to all.

        Args:
            max_images: bound on bank and queries, drawn once for the whole run; None takes every image.
        """
        top1 = self._measure(backbone, max_images) if distributed.is_main() else 0.0
        return distributed.broadcast(top1)

    @property
    def pixel_side(self) -> int:
        """Side at which raw pixels are compared."""
        return min(PIXEL_SIDE, self.config.crops.global_size)

    def pixels(self) -> PixelBaselines:
        """What the pixels themselves reach, every image; on rank 0."""
        channels = self.config.crops.channels
        bank, queries = self._sets(
            nn.Flatten(), None, size=self.pixel_side, mean=(0.0,) * channels, std=(1.0,) * channels
        )
        return pixel_baselines(
            bank.values, bank.labels, queries.values, queries.labels,
            k=self.config.knn.k, temperature=self.config.knn.temperature, leave_one_out=self.queries is None,
        )  # fmt: skip

    def evaluation(self, name: str, top1: float, seconds: float, *, size: int) -> Evaluation:
        """An accuracy over every image, with all it was measured on; `name` says of what, at `size` pixels."""
        queries, knobs = self.queries or self.bank, self.config.knn
        return Evaluation(
            protocol=KNN,
            encoder={"name": name, "size": size, "center_crop": knobs.center_crop},
            data={role: about_data(of, len(of)) for role, of in (("bank", self.bank), ("queries", queries))},
            measurements=[Measurement("knn/top1", top1, settings={"k": knobs.k})],
            seconds=seconds,
            settings={"temperature": knobs.temperature},
        )

    def title(self) -> str:
        """One line for the head of a table."""
        queries, knobs = self.queries or self.bank, self.config.knn
        left_out = "" if self.queries else ", each left out in turn"
        return (
            f"k-NN accuracy, k = {knobs.k}, T = {knobs.temperature:g}: "
            f"{len(queries):,} images of {queries.name}{left_out}"
        )

    def _measure(self, backbone: nn.Module, max_images: int | None) -> float:
        crops, knobs = self.config.crops, self.config.knn
        bank, queries = self._sets(backbone, max_images, size=crops.global_size, mean=crops.mean, std=crops.std)
        result = knn_accuracy(
            bank.values, bank.labels, queries.values, queries.labels,
            ks=(knobs.k,), temperature=knobs.temperature, leave_one_out=self.queries is None,
        )  # fmt: skip
        return result.top1[knobs.k]

    def _sets(
        self,
        encoder: nn.Module,
        max_images: int | None,
        *,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> tuple[Labelled, Labelled]:
        """Bank and queries; the same object twice when there are no queries."""
        classes = self.bank.classes
        extractor = Extractor(encoder, size, self.config.knn.center_crop, mean, std, self.device)

        def features(source: Source) -> Labelled:
            named = labelled(extractor.features(source, self._subset(source, max_images)), source, classes)
            return Labelled(named.values.to(self.device), named.labels.to(self.device))

        bank = features(self.bank)
        return bank, bank if self.queries is None else features(self.queries)

    def _subset(self, source: Source, max_images: int | None) -> Sequence[int] | None:
        if max_images is None or len(source) <= max_images:
            return None
        chosen = stream(self.config.seed, Purpose.KNN, 0).permutation(len(source))[:max_images]
        return [int(index) for index in np.sort(chosen)]


def open_knn(config: PretrainConfig, training: Source, device: torch.device) -> OnlineKnn | None:
    """The k-NN that the configuration asks for; None where it is off or the images have no labels.

    Raises:
        UsageError: a SOURCE given for it has no labels, classes that the bank lacks, or fewer images than k.
    """
    knobs = config.knn
    if knobs.every_epochs == 0:
        return None
    bank = open_source(knobs.train, config.data_root) if knobs.train else training
    if bank.labels is None and not (knobs.train or knobs.test):
        logger.info("no labels in %s: no k-NN; name labelled images with --knn.train to measure it", config.data)
        return None
    test = knobs.test or test_source_of(knobs.train or config.data)
    queries = open_source(test, config.data_root) if test else None
    for source in (bank, queries or bank):
        labels_in(source, bank.classes)
    if not knobs.k < min(len(bank), knobs.max_images):
        raise UsageError(
            f"knn.k={knobs.k} needs a bank of more than {min(len(bank), knobs.max_images)} images; "
            f"write --knn.k {max(1, len(bank) // 10)}, or --knn.every-epochs 0 for no k-NN"
        )
    return OnlineKnn(config, bank, queries, device)
