"""Face verification while training: pairs of people who are not trained on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dino_ssl.config_faces import ArcfaceConfig
from dino_ssl.data.face_pairs import FacePairs, open_pairs
from dino_ssl.errors import UsageError
from dino_ssl.evaluation import verification
from dino_ssl.evaluation.face_protocols import readable
from dino_ssl.evaluation.feature_store import Share
from dino_ssl.evaluation.features import Extractor, joined
from dino_ssl.evaluation.readouts import Readout
from dino_ssl.evaluation.verification import Pairs
from dino_ssl.training import distributed
from dino_ssl.training.ranks import cores_of_this_rank

Change = Callable[[Float[Tensor, "b c s s"]], Float[Tensor, "b c s s"]]
SOME_IMAGES = 256
PROTOCOLS = {"insightface": verification.insightface, "askd": verification.askd}


@dataclass
class Verifying:
    """Accuracy of ten folds.

    Attributes:
        change: what is done to images before the network sees them.
        more: other numbers by name, of the network and batches of some images of the pairs, which nothing changed.
    """

    config: ArcfaceConfig
    pairs: FacePairs
    device: torch.device
    change: Change
    more: Callable[[nn.Module, Iterable[Tensor]], dict[str, float]] = field(default=lambda network, batches: {})
    score: str = "verification"

    def measure(self, network: nn.Module) -> dict[str, float]:
        """`verification` in [0, 1], and what `more` gives.

        Raises:
            RunError: no image can be read.
            UsageError: of too few pairs both images can be read.
            DivergedError: a feature is not finite.
        """
        distributed.share_buffers(network)
        extractor = self._extractor(network)
        share = Share(distributed.rank(), distributed.world_size(), distributed.gather)
        images = self.pairs.images
        mine = range(len(images))[share.of(len(images), unit=extractor.batch_size)]
        parts = share.each(lambda: next(extractor.parts(images, [mine])))
        features = joined(parts, images)
        folds = PROTOCOLS[self.config.validation.protocol](
            features.values.double().numpy(), readable(features, self.pairs)
        )
        return {self.score: folds.mean, **self.more(network, extractor.some_images(images, SOME_IMAGES))}

    def _extractor(self, network: nn.Module) -> Extractor:
        def read(backbone: Any, images: Float[Tensor, "b c s s"]) -> Float[Tensor, "b 2 d"]:
            seen = self.change(images)
            return torch.stack([backbone(seen), backbone(seen.flip(-1))], 1)

        crops = self.config.crops
        return Extractor(
            network, crops.size, self.config.validation.center_crop, crops.mean, crops.std, self.device,
            readout=Readout("mirrored", read), num_threads=cores_of_this_rank(),
        )  # fmt: skip


def open_verifying(
    config: ArcfaceConfig, device: torch.device, change: Change = lambda images: images
) -> Verifying | None:
    """On the pairs that the configuration names; None where it names none.

    Raises:
        UsageError: they cannot be used, or are of the images that are trained on.
    """
    knobs = config.validation
    if not knobs.test or not knobs.every_epochs:
        return None
    if knobs.test == config.data:
        raise UsageError(
            f"validation.test={knobs.test} are the images that are trained on; write --validation.test with pairs, or "
            "a folder of other people"
        )
    pairs = open_pairs(knobs.test, config.data_root, num_pairs=knobs.num_pairs, seed=config.seed)
    Pairs(pairs.left, pairs.right, pairs.is_same).check()
    return Verifying(config, pairs, device, change)
