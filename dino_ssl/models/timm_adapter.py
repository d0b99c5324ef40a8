"""Any timm model as a backbone."""

import difflib
import inspect

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dino_ssl.errors import UsageError
from dino_ssl.models.attention_map import AttentionMap


class TimmBackbone(nn.Module):
    """A timm model without its classifier; pooled as its authors pool it.

    Args:
        name: timm's name, without prefix.
        image_size: side for which size-bound models are built, pixels.
    Raises:
        UsageError: timm has no model of that name, or it does not take images of that size.
    """

    def __init__(self, name: str, *, image_size: int, drop_path: float = 0.0, in_chans: int = 3) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            hint = f"did you mean {', '.join(f'timm/{n}' for n in near)}?" if near else "see timm.list_models()"
            raise UsageError(f"model.name=timm/{name} is unknown to timm {timm.__version__}; {hint}")
        self.name = name
        wished = {"img_size": image_size, "dynamic_img_size": True, "drop_path_rate": drop_path}
        accepted = _constructor_arguments(name)
        options = {key: value for key, value in wished.items() if key in accepted}
        try:
            self.model = timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_chans, **options)
            self.embed_dim = _output_dim(self.model, image_size, in_chans)
        except (RuntimeError, AssertionError, ValueError) as reason:
            raise UsageError(
                f"crops.global_size={image_size} does not go through model.name=timm/{name} ({reason}); write a size "
                "that does, or choose a backbone that takes any size, such as resnet18"
            ) from reason

    def forward(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d"]:
        return self.model(images)  # type: ignore[no-any-return]

    def patch_features(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d h w"]:
        """The last feature map; only for models whose features lie on a grid."""
        features = self.model.forward_features(images)
        if features.ndim != 4 or features.shape[1] != self.model.num_features:
            raise UsageError(f"timm/{self.name} gives features of shape {tuple(features.shape)}, not [B, D, h, w]")
        return features  # type: ignore[no-any-return]

    def attention(self, images: Float[Tensor, "b c x y"], block: int = -1) -> AttentionMap:
        raise UsageError(f"timm/{self.name} does not show its attention here; vit_tiny, vit_small and vit_base do")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)


def _constructor_arguments(name: str) -> set[str]:
    """Parameter names that the class of a timm model takes: not every architecture has a size or drop path."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    return set(inspect.signature(type(model).__init__).parameters)


def _output_dim(model: nn.Module, image_size: int, in_chans: int) -> int:
    """What the model returns: some have more dimensions after their pooling head than before."""
    model.eval()
    with torch.no_grad():
        dim: int = model(torch.zeros(1, in_chans, image_size, image_size)).shape[1]
    model.train()
    return dim
