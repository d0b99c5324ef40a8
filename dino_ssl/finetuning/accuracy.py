"""Accuracy of a network's logits on labelled images."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from dino_ssl.config_finetune import FinetuneConfig
from dino_ssl.data.sources import Source, labels_in, open_source, test_source_of
from dino_ssl.evaluation.feature_store import Share
from dino_ssl.evaluation.features import Extractor, joined, labelled
from dino_ssl.evaluation.protocols import FINETUNED
from dino_ssl.evaluation.results import Evaluation, Measurement, about_data
from dino_ssl.training import distributed
from dino_ssl.training.ranks import cores_of_this_rank


@dataclass
class Accuracy:
    """Top-1 accuracy on the test images.

    Attributes:
        classes: of the training images, in the order of the logits.
        num_images: test images that could be read when it last measured.
    """

    config: FinetuneConfig
    source: Source
    classes: tuple[str, ...]
    device: torch.device
    score: str = "top1"
    num_images: int = 0

    def measure(self, network: nn.Module) -> dict[str, float]:
        """`top1` in [0, 1].

        Raises:
            RunError: no image can be read.
            DivergedError: a logit is not finite.
        """
        share = Share(distributed.rank(), distributed.world_size(), distributed.gather)
        distributed.share_buffers(network)
        crops = self.config.crops
        extractor = Extractor(
            network, crops.size, self.config.validation.center_crop, crops.mean, crops.std, self.device,
            num_threads=cores_of_this_rank(),
        )  # fmt: skip
        mine = range(len(self.source))[share.of(len(self.source), unit=extractor.batch_size)]
        parts = share.each(lambda: next(extractor.parts(self.source, [mine])))
        found = labelled(joined(parts, self.source), self.source, self.classes)
        self.num_images = len(found.labels)
        return {self.score: (found.values.argmax(1) == found.labels).double().mean().item()}

    def evaluation(self, name: str, top1: float, *, began: float) -> Evaluation:
        """For the results' file; `began` by `time.perf_counter`."""
        return Evaluation(
            protocol=FINETUNED,
            encoder={"name": name, "size": self.config.crops.size, "center_crop": self.config.validation.center_crop},
            data={"test": about_data(self.source, self.num_images)},
            measurements=[Measurement("finetune/top1", top1)],
            seconds=time.perf_counter() - began,
        )


def open_accuracy(config: FinetuneConfig, training: Source, device: torch.device) -> Accuracy | None:
    """On the test images that the configuration names; None where it names none and the data set has none.

    Raises:
        UsageError: they have no labels, or classes that the training images lack.
    """
    knobs = config.validation
    test = knobs.test or test_source_of(config.data)
    if not test or not knobs.every_epochs:
        return None
    source = open_source(test, config.data_root)
    labels_in(source, training.classes)
    return Accuracy(config, source, training.classes, device)
