"""`dino-ssl finetune classify`: a backbone and a linear classifier, trained with cross-entropy."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dino_ssl.config_finetune import ClassifyConfig
from dino_ssl.errors import UsageError
from dino_ssl.finetuning.accuracy import open_accuracy
from dino_ssl.finetuning.report import Report, final_report
from dino_ssl.finetuning.start import started
from dino_ssl.finetuning.task import FinetuneRates, Finetuning, one_rank_at_random
from dino_ssl.finetuning.views import Mixing
from dino_ssl.models.backbone import Backbone
from dino_ssl.training.loop import train_to_the_end
from dino_ssl.training.prepare import Input, open_run
from dino_ssl.training.run import Run


def classify(config: ClassifyConfig) -> Report:
    """Train to the end, from the newest checkpoint in `config.output_dir` if there is one.

    Raises:
        UsageError: something in the configuration or the input is wrong; nothing was started.
        RunError: the run cannot go on; earlier checkpoints are untouched.
        DivergedError: the loss or the weights are no longer finite.
        Stopped: a signal came, and everything is saved.
    """
    return train_to_the_end(config, prepare, final_report)


def prepare(config: ClassifyConfig, device: torch.device) -> Run[FinetuneRates]:
    """Open the data and build the network; the folder is left as it is.

    Raises:
        UsageError: the data, the batch, the folder or the weights do not fit the configuration.
    """
    full, backbone = started(config)
    return open_run(full, device, lambda opened: _task(full, backbone, opened), given=config)


def _task(config: ClassifyConfig, backbone: nn.Module, opened: Input) -> Finetuning:
    num_classes = len(opened.source.classes)
    if opened.source.labels is None or num_classes < 2:
        raise UsageError(f"data={config.data} has no labels to learn; they come from two class folders or more")
    network = Classifier(backbone, num_classes, dropout=config.loss.dropout)
    objective = CrossEntropy(network, config, num_classes, opened.device)
    validator = open_accuracy(config, opened.source, opened.device)
    task = Finetuning(config, opened, objective, validator, opened.source.classes)
    one_rank_at_random(config.seed)
    return task


class Classifier(nn.Module):
    """A backbone with a linear classifier on its pooled features; logits [b, k].

    The classifier starts with normal weights of deviation 0.01 (or `std`) and no bias: at first all classes are about
    equally likely.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, *, dropout: float = 0.0, std: float = 0.01) -> None:
        super().__init__()
        assert isinstance(backbone, Backbone)
        linear = nn.Linear(backbone.embed_dim, num_classes)
        nn.init.normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)
        self.backbone = backbone
        self.head = nn.Sequential(nn.Dropout(dropout), linear)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        logits: Tensor = self.head(self.backbone(images))
        return logits


class CrossEntropy:
    """Cross-entropy with soft targets: label smoothing, mixup, CutMix, random erasing."""

    def __init__(self, network: nn.Module, config: ClassifyConfig, num_classes: int, device: torch.device) -> None:
        self.network = network
        knobs = config.loss
        self.mixing = Mixing(
            num_classes,
            mixup=knobs.mixup,
            cutmix=knobs.cutmix,
            erase=config.crops.erase,
            label_smoothing=knobs.label_smoothing,
            device=device.type,
        )

    def loss(
        self,
        network: nn.Module,
        images: Float[Tensor, "b c s s"],
        labels: Int64[Tensor, " b"] | None,
        now: FinetuneRates,
    ) -> Float[Tensor, ""]:
        assert labels is not None, "checked when the run was opened"
        mixed, targets = self.mixing(images, labels)
        return soft_cross_entropy(network(mixed), targets)


def soft_cross_entropy(logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Mean of -sum_k targets_k log softmax(logits)_k, in float32."""
    return -(targets * logits.float().log_softmax(-1)).sum(-1).mean()
