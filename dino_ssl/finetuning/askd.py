"""`dino-ssl finetune askd`: a network that sees fewer pixels, taught by one that sees all of them.

Source: Shin et al., Teaching Where to Look, ECCV 2022, arXiv:2209.14498; with its baselines KD and F-SKD.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dino_ssl.config_faces import AskdConfig
from dino_ssl.data.degradation import degraded, randomly_degraded
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.features import evaluating
from dino_ssl.finetuning.arcface import IdentityNetwork
from dino_ssl.finetuning.distillation import feature_cosine_loss, soft_target_loss
from dino_ssl.finetuning.looking import Looks, features_and_looks, look_distance, look_similarity, shapes_of
from dino_ssl.finetuning.margins import class_cosines
from dino_ssl.finetuning.report import Report, final_report
from dino_ssl.finetuning.start import started
from dino_ssl.finetuning.task import FinetuneRates, Finetuning, one_rank_at_random
from dino_ssl.finetuning.verifying import open_verifying
from dino_ssl.models.necks import EmbeddingNetwork
from dino_ssl.models.weights import load
from dino_ssl.training import distributed
from dino_ssl.training.loop import train_to_the_end
from dino_ssl.training.prepare import Input, open_run
from dino_ssl.training.run import Run

CENTRES = "classes.centres"


def askd(config: AskdConfig) -> Report:
    """Train to the end, from the newest checkpoint in `config.output_dir` if there is one.

    Raises:
        UsageError: something in the configuration or the input is wrong; nothing was started.
        RunError: the run cannot go on; earlier checkpoints are untouched.
        DivergedError: the loss or the weights are no longer finite.
        Stopped: a signal came, and everything is saved.
    """
    return train_to_the_end(config, prepare, final_report)


def prepare(config: AskdConfig, device: torch.device) -> Run[FinetuneRates]:
    """Open data and teacher and build the student; the folder is left as it is.

    Raises:
        UsageError: the data, the batch, the folder or the weights do not fit the configuration.
    """
    full, backbone = started(config)
    return open_run(full, device, lambda opened: _task(full, backbone, opened), given=config)


def _task(config: AskdConfig, backbone: nn.Module, opened: Input) -> Finetuning:
    teacher = _teacher(config, opened)
    student = StudentNetwork(config, backbone, opened)
    is_comparable = _is_comparable(config, student, teacher)
    teacher.network.to(opened.device)
    low = config.low_resolution
    validator = open_verifying(config, opened.device, partial(degraded, side=low.sides[0], mode=low.mode))
    if validator is not None and is_comparable:
        validator.more = partial(_similarity, config, teacher.network)
    task = Finetuning(config, opened, WhereToLook(config, student, teacher), validator)
    one_rank_at_random(config.seed)
    return task


class FrozenTeacher:
    """In evaluation mode, never trained; not a module, so that no checkpoint holds it.

    Attributes:
        centres: of its identities; None where they are not compared.
    """

    def __init__(self, network: EmbeddingNetwork, centres: Float[Tensor, "k s d"] | None) -> None:
        self.network = network
        self.centres = centres

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b c x y"], num_blocks: int) -> tuple[Float[Tensor, "b d"], Looks]:
        """Embedding, and where it looks."""
        if not num_blocks:
            return self.network(images), []
        features, looks = features_and_looks(self.network.inner, images, num_blocks)
        return self.network.head(features), looks


def _teacher(config: AskdConfig, opened: Input) -> FrozenTeacher:
    path, crops = config.look.teacher, config.crops
    loaded = load(Path(path))
    encoder, network = loaded.encoder, loaded.encoder.backbone
    if not isinstance(network, EmbeddingNetwork):
        raise UsageError(f"look.teacher={path} is no embedding network; write a RUN of `dino-ssl finetune arcface`")
    if encoder.size != crops.size:
        raise UsageError(
            f"crops.size={crops.size} is not that of look.teacher={path}; write --crops.size {encoder.size}"
        )
    if (encoder.mean, encoder.std) != (crops.mean, crops.std):
        mean, std = (" ".join(map(str, values)) for values in (encoder.mean, encoder.std))
        raise UsageError(
            f"crops.mean and crops.std are not look.teacher={path}'s; write --crops.mean {mean} --crops.std {std}"
        )
    centres = None
    if config.look.logit_weight:
        _check_identities(config, loaded.file.content["data"]["fingerprint"], opened)
        centres = loaded.file.content["model"][CENTRES].to(opened.device)
    return FrozenTeacher(network, centres)


def _check_identities(config: AskdConfig, fingerprint: str, opened: Input) -> None:
    if distributed.world_size() > 1:
        raise UsageError("look.logit_weight compares with all identities, which ranks share out; run one process")
    if fingerprint != opened.source.fingerprint():
        raise UsageError(
            f"look.logit_weight needs a teacher of the same identities: look.teacher={config.look.teacher} was trained "
            f"on other data than data={config.data}; write --look.logit_weight 0"
        )


def _is_comparable(config: AskdConfig, student: "StudentNetwork", teacher: FrozenTeacher) -> bool:
    """Whether both look at images alike; baselines may do otherwise."""
    try:
        _check_looks(config, student, teacher)
    except UsageError:
        if config.look.weight:
            raise
        return False
    return True


def _check_looks(config: AskdConfig, student: "StudentNetwork", teacher: FrozenTeacher) -> None:
    """Both have as many looks, of the same shapes."""
    crops, number = config.crops, config.look.blocks
    images = torch.zeros(1, crops.channels, crops.size, crops.size)
    with evaluating(student), torch.no_grad():
        ours, theirs = features_and_looks(student.inner, images, number)[1], teacher(images, number)[1]
    if [shapes_of(look) for look in ours] != [shapes_of(look) for look in theirs]:
        raise UsageError(
            f"model.name={config.model.name} does not look at images as look.teacher={config.look.teacher} does: other "
            "blocks, heads or grids; take the teacher's network, or write --look.weight 0"
        )


class StudentNetwork(IdentityNetwork):
    """An embedding network that also tells where it looks, from one call, as ranks that share it need."""

    def forward(  # type: ignore[override]
        self, images: Float[Tensor, "b c x y"], num_blocks: int | None = None
    ) -> Float[Tensor, "b e"] | tuple[Float[Tensor, "b e"], Looks]:
        if num_blocks is None:
            return super().forward(images)
        if not num_blocks:
            return super().forward(images), []
        features, looks = features_and_looks(self.inner, images, num_blocks)
        return self.head(features), looks


class WhereToLook:
    """Margin over identities, and how far the student's looks, embeddings and logits are from the teacher's."""

    def __init__(self, config: AskdConfig, student: StudentNetwork, teacher: FrozenTeacher) -> None:
        self.network: nn.Module = student
        self.teacher = teacher
        self.config = config
        self.num_blocks = config.look.blocks if config.look.weight else 0

    def loss(
        self,
        network: nn.Module,
        images: Float[Tensor, "b c s s"],
        labels: Int64[Tensor, " b"] | None,
        now: FinetuneRates,
    ) -> Float[Tensor, ""]:
        assert labels is not None, "checked when the network was built"
        low, look = self.config.low_resolution, self.config.look
        classes = cast(StudentNetwork, self.network).classes
        ours, our_looks = network(randomly_degraded(images, low.sides, low.mode), self.num_blocks)
        loss: Tensor = classes(ours, labels)
        if not (look.weight or look.feature_weight or look.logit_weight):
            return loss
        theirs, their_looks = self.teacher(images, self.num_blocks)
        if look.weight:
            loss = loss + look.weight * look_distance(our_looks, their_looks, look)
        if look.feature_weight:
            loss = loss + look.feature_weight * feature_cosine_loss(ours.float(), theirs.float())
        if self.teacher.centres is not None:
            logits = classes.scale * class_cosines(ours, classes.centres)
            targets = classes.scale * class_cosines(theirs, self.teacher.centres)
            loss = loss + look.logit_weight * soft_target_loss(logits, targets, look.logit_temperature)
        return loss


def _similarity(
    config: AskdConfig, teacher: EmbeddingNetwork, network: nn.Module, batches: Iterable[Tensor]
) -> dict[str, float]:
    """`look_similarity` of the student, which sees few pixels, and the teacher, which sees all."""
    low, number = config.low_resolution, config.look.blocks
    student, found = cast(StudentNetwork, network), []
    with evaluating(student), torch.no_grad():
        for images in batches:
            ours = features_and_looks(student.inner, degraded(images, low.sides[0], low.mode), number)[1]
            theirs = features_and_looks(teacher.inner, images, number)[1]
            found.append(look_similarity(ours, theirs))
    return {"look_similarity": torch.stack(found).mean().item()}
