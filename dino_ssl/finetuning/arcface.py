"""`dino-ssl finetune arcface`: an embedding of faces, trained with an angular margin over identities."""

from dataclasses import replace
from typing import TypeVar, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dino_ssl.config_faces import ArcfaceConfig
from dino_ssl.errors import UsageError
from dino_ssl.finetuning.margins import Margin, default_margin
from dino_ssl.finetuning.partial_fc import PartialFC
from dino_ssl.finetuning.report import Report, final_report
from dino_ssl.finetuning.start import started
from dino_ssl.finetuning.task import FinetuneRates, Finetuning, one_rank_at_random
from dino_ssl.finetuning.verifying import open_verifying
from dino_ssl.models.low_rank import adapt
from dino_ssl.models.necks import EmbeddingNetwork
from dino_ssl.training.loop import train_to_the_end
from dino_ssl.training.prepare import Input, open_run
from dino_ssl.training.run import Run

C = TypeVar("C", bound=ArcfaceConfig)


def arcface(config: ArcfaceConfig) -> Report:
    """Train to the end, from the newest checkpoint in `config.output_dir` if there is one.

    Raises:
        UsageError: something in the configuration or the input is wrong; nothing was started.
        RunError: the run cannot go on; earlier checkpoints are untouched.
        DivergedError: the loss or the weights are no longer finite.
        Stopped: a signal came, and everything is saved.
    """
    return train_to_the_end(config, prepare, final_report)


def prepare(config: ArcfaceConfig, device: torch.device) -> Run[FinetuneRates]:
    """Open the data and build the network; the folder is left as it is.

    Raises:
        UsageError: the data, the batch, the folder or the weights do not fit the configuration.
    """
    full, backbone = started(config)
    return open_run(full, device, lambda opened: _task(full, backbone, opened), given=config)


def _task(config: ArcfaceConfig, backbone: nn.Module, opened: Input) -> Finetuning:
    network = IdentityNetwork(config, backbone, opened)
    validator = open_verifying(config, opened.device)
    task = Finetuning(config, opened, MarginLoss(network), validator)
    one_rank_at_random(config.seed)
    return task


class IdentityNetwork(EmbeddingNetwork):
    """An embedding network with the centres of the identities that it is trained on.

    Raises:
        UsageError: the data has no labels, or of one identity only.
    """

    def __init__(self, config: ArcfaceConfig, backbone: nn.Module, opened: Input) -> None:
        num_classes = len(opened.source.classes)
        if opened.source.labels is None or num_classes < 2:
            raise UsageError(
                f"data={config.data} has no identities to tell apart; they come from two class folders or more, or "
                "from the labels of a .rec"
            )
        embedding, knobs = config.embedding, config.margin
        if embedding.lora_rank:
            adapt(backbone, embedding.lora_rank)
        super().__init__(
            backbone, embedding.neck, embed_dim=embedding.dim, image_size=config.crops.size, dropout=embedding.dropout
        )
        self.classes = PartialFC(
            embedding.dim,
            num_classes,
            margin_of(config, backbone),
            scale=knobs.scale,
            num_centres=knobs.centres,
            rate=knobs.sampling,
            filter_above=knobs.filter_above,
            device=opened.device,
        )


def margin_of(config: ArcfaceConfig, backbone: nn.Module) -> Margin:
    """What the configuration asks for; where it leaves it open, what suits the backbone."""
    knobs = config.margin
    margin = default_margin(backbone)
    if knobs.m:
        m1, m2, m3 = knobs.m
        margin = replace(margin, m1=m1, m2=m2, m3=m3)
    if knobs.gradient != "auto":
        margin = replace(margin, gradient=knobs.gradient)
    return replace(margin, continuation="linear") if knobs.is_hard else margin


class MarginLoss:
    """Cross-entropy over identities with a margin."""

    def __init__(self, network: IdentityNetwork) -> None:
        self.network: nn.Module = network

    def loss(
        self,
        network: nn.Module,
        images: Float[Tensor, "b c s s"],
        labels: Int64[Tensor, " b"] | None,
        now: FinetuneRates,
    ) -> Float[Tensor, ""]:
        assert labels is not None, "checked when the network was built"
        # The centres outside of what ranks share: each has its own part of them.
        loss: Tensor = cast(IdentityNetwork, self.network).classes(network(images), labels)
        return loss
