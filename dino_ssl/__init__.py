"""dino-ssl: self-supervised pretraining of vision backbones with DINO."""

__version__ = "0.1.0"
