"""From a config to the parts of a run."""

from typing import TypeVar, cast

import torch
from torch import nn

from dino_ssl.config import PretrainConfig
from dino_ssl.data.crops import MultiCrop, dino_recipe
from dino_ssl.dino.centering import Center
from dino_ssl.dino.method import MultiCropNetwork, SelfDistillation
from dino_ssl.dino.region_method import RegionDistillation, RegionNetwork
from dino_ssl.dino.regions import RegionCenter
from dino_ssl.models.backbone import Backbone, BuiltBackbone, build_backbone, check_crop_sizes
from dino_ssl.models.heads import DINOHead
from dino_ssl.training import distributed, sharding
from dino_ssl.training.synced_batch_norm import synchronized

M = TypeVar("M", bound=nn.Module)


def build_network(config: PretrainConfig, *, drop_path: float) -> MultiCropNetwork:
    """Backbone and head, or heads, with fresh weights from PyTorch's global random state."""
    backbone = fresh_backbone(config, drop_path=drop_path)
    head = _fresh_head(config, backbone.embed_dim)
    if config.dino.region_loss:
        return RegionNetwork(backbone, head, _fresh_head(config, backbone.embed_dim))
    return MultiCropNetwork(backbone, head)


def _fresh_head(config: PretrainConfig, in_dim: int) -> DINOHead:
    head = config.head
    return DINOHead(
        in_dim,
        head.prototypes,
        hidden_dim=head.hidden_dim,
        bottleneck_dim=head.bottleneck_dim,
        batch_norm=head.batch_norm,
        norm_last_layer=head.norm_last_layer,
    )


def fresh_backbone(config: PretrainConfig, *, drop_path: float) -> BuiltBackbone:
    """The backbone alone, likewise."""
    model = config.model
    return build_backbone(
        model.name,
        image_size=config.crops.global_size,
        patch_size=model.patch_size,
        drop_path=drop_path,
        small_stem=model.small_stem,
        position_bias=model.position_bias,
        in_chans=config.crops.channels,
    )


def untrained_backbone(config: PretrainConfig) -> nn.Module:
    """The backbone as it was before the first step; the global random state is left as found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_network(config, drop_path=config.model.drop_path).backbone


def backbone_of(config: PretrainConfig, network: nn.Module) -> nn.Module:
    """The backbone of `network`; of a sharded one a whole copy on each rank, and a collective."""
    backbone = network.backbone
    assert isinstance(backbone, nn.Module)
    state = backbone.state_dict()
    joined = sharding.whole(state, everywhere=True)
    if all(joined[name] is state[name] for name in state):
        return backbone
    copy = untrained_backbone(config)
    copy.load_state_dict(joined)
    return copy.to(next(iter(joined.values())).device)


def build_method(
    config: PretrainConfig, device: torch.device, guide: MultiCropNetwork | None = None
) -> SelfDistillation:
    """Student and teacher with the weights of `config.seed`, on `device`; `guide` as in `SelfDistillation`.

    Raises:
        UsageError: a crop size does not go through the backbone.
    """
    torch.manual_seed(config.seed)
    student = build_network(config, drop_path=config.model.drop_path)
    check_crop_sizes(student.backbone, _crop_sizes(config), config.crops.channels)
    method_of, center_of = (RegionDistillation, RegionCenter) if config.dino.region_loss else (SelfDistillation, Center)
    method = method_of(
        synchronize_batch_norm(student, device),
        synchronize_batch_norm(build_network(config, drop_path=0.0), device),
        center_of(config.head.prototypes, config.dino.center_momentum),
        student_temperature=config.dino.student_temperature,
        device=device,
        parallel=config.parallel,
        teacher_mode=config.dino.teacher_mode,
        guide=guide,
    )
    if config.model.activation_checkpointing:
        assert isinstance(student.backbone, Backbone)
        student.backbone.set_grad_checkpointing()
    if config.model.compile:
        student.backbone.compile()
        method.teacher.backbone.compile()
    return method


def synchronize_batch_norm(network: M, device: torch.device) -> M:
    """BN statistics over all ranks."""
    return network if distributed.world_size() == 1 else cast(M, synchronized(network, device))


def build_crops(config: PretrainConfig) -> MultiCrop:
    """The views of an image, as the configuration wants them."""
    crops = config.crops
    recipe = dino_recipe(
        global_size=crops.global_size,
        global_scale=crops.global_scale,
        num_local_crops=crops.num_local_crops,
        local_size=crops.local_size,
        local_scale=crops.local_scale,
        flip=crops.flip,
        color_jitter=crops.color_jitter,
        grayscale=crops.grayscale,
        blur=crops.blur,
        solarize=crops.solarize,
    )
    return MultiCrop(recipe)


def _crop_sizes(config: PretrainConfig) -> dict[str, int]:
    sizes = {"crops.global_size": config.crops.global_size}
    if config.crops.num_local_crops:
        sizes["crops.local_size"] = config.crops.local_size
    return sizes
