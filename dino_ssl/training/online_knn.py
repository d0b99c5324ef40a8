"""Weighted k-NN of the teacher while it trains, and of everything it is compared to at the end."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from dino_ssl.config import PretrainConfig
from dino_ssl.data.sources import Source, labels_in, open_source, test_source_of
from dino_ssl.data.streams import Purpose, stream
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.feature_store import Share
from dino_ssl.evaluation.features import Extractor, Labelled, joined, labelled
from dino_ssl.evaluation.knn import pixel_baselines
from dino_ssl.evaluation.knn_protocol import Neighbours, shared_ranks
from dino_ssl.evaluation.protocols import KNN
from dino_ssl.evaluation.results import Evaluation, Measurement, about_data
from dino_ssl.models.batch_norm import has_batch_norm, with_statistics_of
from dino_ssl.training import distributed
from dino_ssl.training.ranks import cores_of_this_rank

# Pixels of larger images say little and fill the memory; the baseline looks at this side, in pixels, at most.
PIXEL_SIDE = 32
logger = logging.getLogger("dino_ssl")


@dataclass(frozen=True)
class Measured:
    """Accuracies in [0, 1], by what was compared, over the images that could be read."""

    top1: dict[str, float]
    num_bank: int
    num_queries: int


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

    def measure(self, backbone: nn.Module, name: str = "teacher", *, max_images: int | None) -> Measured:
        """Top-1 accuracy of the backbone that is called `name`; all ranks share the work and know the result.

        Args:
            max_images: bound on bank and queries, drawn once for the whole run; None takes every image.
        Raises:
            RunError: no image can be read.
            DivergedError: a feature is not finite.
        """
        crops, knobs = self.config.crops, self.config.knn
        share = Share(distributed.rank(), distributed.world_size(), distributed.gather)
        distributed.share_buffers(backbone)
        extractor = self._extractor(backbone, size=crops.global_size, mean=crops.mean, std=crops.std)
        if knobs.precise_bn and has_batch_norm(backbone):
            images = extractor.some_images(self.bank, knobs.precise_bn)
            extractor = replace(extractor, encoder=with_statistics_of(backbone, images))
        bank, queries = self._sets(extractor, max_images, share)
        settings = Neighbours((knobs.k,), knobs.temperature, self.device)
        ranks = shared_ranks(bank, queries, (knobs.k,), settings, share)
        top1 = (ranks[knobs.k] == 0).double().mean().item()
        return Measured({name: top1}, len(bank.labels), len(queries.labels))

    @property
    def pixel_side(self) -> int:
        """Side at which raw pixels are compared."""
        return min(PIXEL_SIDE, self.config.crops.global_size)

    def pixels(self) -> Measured:
        """What the pixels themselves reach, every image; on rank 0."""
        channels = self.config.crops.channels
        flat = self._extractor(nn.Flatten(), size=self.pixel_side, mean=(0.0,) * channels, std=(1.0,) * channels)
        bank, queries = self._sets(flat, None, Share())
        found = pixel_baselines(
            bank.values, bank.labels, queries.values, queries.labels,
            k=self.config.knn.k, temperature=self.config.knn.temperature, leave_one_out=self.queries is None,
        )  # fmt: skip
        top1 = {"raw pixels, cosine, mean image subtracted": found.cosine, "raw pixels, L2": found.l2}
        return Measured(top1, len(bank.labels), len(queries.labels))

    def evaluations(self, measured: Measured, seconds: float, *, size: int) -> list[Evaluation]:
        """Accuracies over every image, with all they were measured on, at `size` pixels."""
        knobs = self.config.knn
        precise = knobs.precise_bn > 0
        sets = (("bank", self.bank, measured.num_bank), ("queries", self.queries or self.bank, measured.num_queries))
        return [
            Evaluation(
                protocol=KNN,
                encoder={"name": name, "size": size, "center_crop": knobs.center_crop},
                data={role: about_data(source, number) for role, source, number in sets},
                measurements=[Measurement("knn/top1", top1, settings={"k": knobs.k})],
                seconds=seconds,
                settings={"temperature": knobs.temperature} | ({"precise_bn": knobs.precise_bn} if precise else {}),
            )
            for name, top1 in measured.top1.items()
        ]

    def title(self) -> str:
        """One line for the head of a table."""
        queries, knobs = self.queries or self.bank, self.config.knn
        left_out = "" if self.queries else ", each left out in turn"
        return (
            f"k-NN accuracy, k = {knobs.k}, T = {knobs.temperature:g}: "
            f"{len(queries):,} images of {queries.name}{left_out}"
        )

    def _extractor(
        self, encoder: nn.Module, *, size: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Extractor:
        center_crop, threads = self.config.knn.center_crop, cores_of_this_rank()
        return Extractor(encoder, size, center_crop, mean, std, self.device, num_threads=threads)

    def _sets(self, extractor: Extractor, max_images: int | None, share: Share) -> tuple[Labelled, Labelled]:
        """Bank and queries; the same object twice when there are no queries."""
        classes = self.bank.classes

        def features(source: Source) -> Labelled:
            indices = self._subset(source, max_images)
            # In whole batches, so that each has the shape, and the last bit, that it has on one rank.
            mine = indices[share.of(len(indices), unit=extractor.batch_size)]
            parts = share.each(lambda: next(extractor.parts(source, [mine])))
            named = labelled(joined(parts, source), source, classes)
            return Labelled(named.values.to(self.device), named.labels.to(self.device))

        bank = features(self.bank)
        return bank, bank if self.queries is None else features(self.queries)

    def _subset(self, source: Source, max_images: int | None) -> Sequence[int]:
        if max_images is None or len(source) <= max_images:
            return range(len(source))
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
