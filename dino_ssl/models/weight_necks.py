"""Files of embedding networks: a fine-tuning's backbone together with the neck that it was trained with."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from dino_ssl.errors import UsageError
from dino_ssl.models.necks import EmbeddingNetwork
from dino_ssl.models.weight_files import WeightFile
from dino_ssl.models.weight_keys import Network
from dino_ssl.models.weight_plans import Plan, is_ours

BACKBONE, HEAD = "backbone.", "head."


def with_neck(plan: Plan, network: Network, file: WeightFile) -> tuple[Plan, Network]:
    """Both with the neck, of a file that has one; as they are of all others.

    Raises:
        UsageError: its configuration does not say which neck it is.
    """
    knobs = file.content.get("config", {}).get("embedding") if is_ours(file) else None
    if knobs is None:
        return plan, network
    tensors = file.content["model"]
    head = {name: value for name, value in tensors.items() if name.startswith(HEAD)}
    inside = {BACKBONE + name: value for name, value in network.tensors.items()}
    outside = [name for name in network.outside if not name.startswith(HEAD)]
    try:
        build = partial(_built, plan.build, knobs["neck"], int(knobs["dim"]), plan.images.size)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file.path} holds an embedding network, but its configuration lacks {error}") from None
    return replace(plan, build=build), replace(network, tensors={**inside, **head}, outside=outside)


def _built(build: Callable[..., nn.Module], neck: Any, dim: int, size: int, *, drop_path: float) -> nn.Module:
    return EmbeddingNetwork(build(drop_path=drop_path), neck, embed_dim=dim, image_size=size)
