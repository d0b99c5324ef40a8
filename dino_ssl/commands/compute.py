"""How a command computes, and the features it computes with: device, precision, workers, cache, ranks."""

import hashlib
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from dino_ssl.commands.options import device_of
from dino_ssl.commands.progress import progress
from dino_ssl.data.cache_folder import cache_folder
from dino_ssl.data.sources import Source, labels_in
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.feature_store import Extraction, Share, features_of
from dino_ssl.evaluation.features import Extractor, Features, Labelled, labelled
from dino_ssl.evaluation.readouts import POOLED, Readout
from dino_ssl.models.backbone import Backbone
from dino_ssl.models.batch_norm import has_batch_norm, with_statistics_of
from dino_ssl.models.encoder import Encoder
from dino_ssl.training import distributed
from dino_ssl.training.ranks import cores_of_this_rank

MOST_WORKERS = 16
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Compute:
    """How features are computed.

    Attributes:
        precision: autocast to this type; None computes as the weights are.
        batch_size: images at once.
        num_workers: processes that read images.
        cache: folder of features that are kept; None keeps none.
    """

    device: torch.device
    precision: torch.dtype | None = None
    batch_size: int = 64
    num_workers: int = 0
    cache: Path | None = None

    @classmethod
    def of(cls, words: Namespace) -> "Compute":
        """What the options of `add_weights`, `add_device` and `add_cache` ask for.

        Raises:
            UsageError: CUDA is asked for and not there.
        """
        workers = words.num_workers
        return cls(
            device=device_of(words),
            precision=PRECISIONS[words.precision],
            batch_size=words.batch_size,
            num_workers=min(MOST_WORKERS, cores_of_this_rank() - 1) if workers is None else workers,
            cache=None if words.no_cache else words.cache or _beside(words.weights),
        )

    @contextmanager
    def ranks(self) -> Iterator[None]:
        """Join the processes that torchrun or Slurm started, if there are several."""
        with distributed.process_group(self.device, Path.cwd()):
            yield

    def share(self) -> Share:
        """This process among those of `ranks`."""
        return Share(distributed.rank(), distributed.world_size(), distributed.gather)

    def with_precise_batch_norm(self, encoder: Encoder, source: Source, num_images: int) -> Encoder:
        """The encoder with the batch norm statistics of so many images; every rank looks at all of them.

        Raises:
            UsageError: it has no batch norm.
        """
        network = cast(nn.Module, encoder.backbone)
        if not has_batch_norm(network):
            raise UsageError(f"precise_bn={num_images}, but {encoder.name} has no batch norm; leave --precise-bn out")
        prepared = (encoder.size, encoder.center_crop, encoder.mean, encoder.std)
        extractor = Extractor(
            network.to(self.device), *prepared, self.device, batch_size=self.batch_size, num_workers=self.num_workers
        )
        exact = with_statistics_of(network, extractor.some_images(source, num_images))
        # Another encoder, whose features are kept apart from those of the first.
        told = f"{encoder.digest} precise_bn {source.fingerprint()} {num_images} {self.batch_size}"
        return replace(
            encoder,
            backbone=cast(Backbone, exact),
            digest=hashlib.sha256(told.encode()).hexdigest(),
            origin=f"{encoder.origin}, batch norm of {num_images:,} images of {source.name}",
        )

    def labelled(
        self, encoder: Encoder, source: Source, classes: tuple[str, ...], readout: Readout = POOLED
    ) -> Labelled:
        """`features` with the source's labels as indices into `classes`.

        Raises:
            UsageError: the source has no labels, or one that is not among `classes`.
        """
        labels_in(source, classes)  # before anything long
        return labelled(self.features(encoder, source, readout), source, classes)

    def features(self, encoder: Encoder, source: Source, readout: Readout = POOLED) -> Features:
        """Features of every image of the source that can be read; rank 0 shows progress and names those that cannot.

        Raises:
            RunError: no image can be read, or the cache cannot be written.
            DivergedError: a feature is not finite.
        """
        extraction = Extraction(
            encoder, source, self.device, readout, self.precision, self.batch_size, self.num_workers
        )
        share = self.share()
        if not distributed.is_main():
            return features_of(extraction, self.cache, share)
        # Of several ranks' images, this one counts its own.
        with progress(-(-len(source) // share.world_size), f"images of {source.name}") as advance:
            found = features_of(extraction, self.cache, share, advance)
        if found.broken:
            name, reason = found.broken[0]
            left_out = f"{found.num_broken:,} of {len(source):,} images of {source.name} are left out"
            print(f"{left_out}: they cannot be read; the first is {name} ({reason})", file=sys.stderr)
        return found


def _beside(weights: Path) -> Path | None:
    """In the run that the weights belong to, or among what this user's machine keeps."""
    if (weights / "config.yaml").is_file():
        return weights / "eval" / "features"
    return cache_folder("features")
