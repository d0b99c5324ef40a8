"""dino-ssl: self-supervised pretraining of vision backbones with DINO.

The public names are imported when they are first asked for, since torch takes seconds; `__init__.pyi` tells type
checkers of them.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name lives.
_HOMES = {
    "PretrainConfig": "config",
    "read_config": "config_yaml",
    "pretrain": "training.pretraining",
    "build_backbone": "models.backbone",
    "load_encoder": "models.weights",
    "Encoder": "models.encoder",
    "AttentionMap": "models.attention_map",
    "DINOHead": "models.heads",
    "dino_recipe": "data.crops",
    "MultiCrop": "data.crops",
    "open_source": "data.sources",
    "teacher_probabilities": "dino.losses",
    "dino_loss": "dino.losses",
    "Center": "dino.centering",
    "SelfDistillation": "dino.method",
    "Extraction": "evaluation.feature_store",
    "features_of": "evaluation.feature_store",
    "embed": "evaluation.embedding",
    "knn_accuracy": "evaluation.knn",
    "probe_grid": "evaluation.linear_selection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dino_ssl' has no attribute '{name}'")
    return getattr(import_module(f"dino_ssl.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*_HOMES, "__version__"]
