"""A small model of a step on many GPUs: bytes, seconds, efficiency. What a formula assumes stands beside it."""

import math
from dataclasses import dataclass

import torch

from dino_ssl.config import Parallel
from dino_ssl.models.backbone import VIT_SIZES, build_backbone
from dino_ssl.models.heads import DINOHead

FLOAT32, BFLOAT16 = 4, 2  # bytes
PROTOTYPES = 65536
BUCKET = Parallel().bucket_mb * 2**20 / FLOAT32  # gradients
GLOBAL, LOCAL = (2, 224), (8, 96)  # crops, pixels
PATCH = {"vit_huge": 14, "vit_giant": 14}  # others 16


@dataclass(frozen=True)
class Machine:
    """What is assumed of a GPU: dense bf16 of an H100, of which a step reaches a share (not measured here)."""

    peak: float = 989e12  # FLOP/s
    utilisation: float = 0.4
    jitter: float = 0.01  # standard deviation of a rank's step time, share of it


@dataclass(frozen=True)
class Network:
    """Links, in bytes per second and direction, and seconds for a message to arrive."""

    name: str
    between: float
    """Of a whole node."""
    gpus_per_node: int = 8
    within: float = 300e9
    """Of each GPU (NVLink 4 has 450e9; what collectives reach of it is assumed)."""
    latency_within: float = 3e-6
    latency_between: float = 15e-6

    def all_reduce(self, size: float, ranks: int, *, messages: int = 1) -> float:
        """Seconds: reduce-scatter in the node, all-reduce between nodes, all-gather in the node.

        Each of the three moves (n-1)/n of `size` bytes, the middle one twice, over links that the node shares; its
        messages pass a tree (Sanders, Speck and Traeff 2009), log2 of the nodes deep.
        """
        local, nodes = min(ranks, self.gpus_per_node), math.ceil(ranks / self.gpus_per_node)
        depth = math.ceil(math.log2(nodes)) if nodes > 1 else 0
        seconds = ring_bytes(size, local) / self.within + ring_bytes(size, nodes) / self.between
        waits = 2 * (local - 1) * self.latency_within + 2 * depth * self.latency_between
        return seconds + messages * waits


NETWORKS = tuple(Network(f"{gbit} Gb/s", gbit * 1e9 / 8) for gbit in (100, 200, 400, 3200))


def ring_bytes(size: float, ranks: int) -> float:
    """Bytes that each rank sends in an all-reduce of `size` bytes over a ring."""
    return 2 * (ranks - 1) / ranks * size


@dataclass(frozen=True)
class Model:
    """A backbone of `VIT_SIZES` with the head of the paper.

    Attributes:
        blocks, others: trained parameters inside and outside of the transformer's blocks.
    """

    name: str
    blocks: int
    others: int

    @classmethod
    def of(cls, name: str) -> "Model":
        with torch.device("meta"):
            backbone = build_backbone(name, image_size=GLOBAL[1], patch_size=PATCH.get(name, 16))
            head = DINOHead(backbone.embed_dim, PROTOTYPES)
        blocks = sum(p.numel() for p in backbone.blocks.parameters())
        trained = sum(p.numel() for m in (backbone, head) for p in m.parameters() if p.requires_grad)
        return cls(name, blocks, trained - blocks)

    @property
    def parameters(self) -> int:
        return self.blocks + self.others

    def forward(self, pixels: int) -> float:
        """FLOP of the backbone for one crop: matrix products of blocks, attention, and the patch embedding."""
        dim, depth, _ = VIT_SIZES[self.name]
        patch = PATCH.get(self.name, 16)
        patches = (pixels // patch) ** 2
        tokens = patches + 1
        return depth * (24 * dim**2 * tokens + 4 * dim * tokens**2) + 6 * patch**2 * dim * patches

    def compute(self) -> tuple[float, float]:
        """FLOP of an image's step, and of the part in which gradients travel.

        A weight's gradient is whole only when both crop sizes have passed back, and the global crops pass last: what
        hides the network is two thirds of their three passes, not the whole backward pass.
        """
        large, small = (number * self.forward(pixels) for number, pixels in (GLOBAL, LOCAL))
        return 3 * (large + small) + large, 2 * large

    def ddp_bytes(self, gradient: int) -> float:
        """What is reduced in a step: gradients; the centre and the loss; of the teacher nothing."""
        return self.parameters * gradient + (PROTOTYPES + 1) * FLOAT32

    def fsdp_bytes(self, gradient: int, ranks: int) -> float:
        """What each rank sends: weights gathered, gradients reduced, the centre.

        Weights of the student's blocks are gathered for each of two crop sizes, forward and backward; the teacher's,
        and all outside of blocks, once.
        """
        share = (ranks - 1) / ranks
        gathered = (5 * self.blocks + 2 * self.others) * FLOAT32
        return share * (gathered + self.parameters * gradient) + ring_bytes((PROTOTYPES + 1) * FLOAT32, ranks)


def efficiency(model: Model, network: Network, ranks: int, *, batch: int, gradient: int, machine: Machine) -> float:
    """Speed per GPU over that of one GPU alone, with DDP.

    Args:
        batch: images per GPU.
        gradient: bytes of one.
    """
    step, hiding = (batch * part / (machine.peak * machine.utilisation) for part in model.compute())
    if ranks == 1:
        return 1.0
    size, bucket = model.parameters * gradient, BUCKET * gradient
    whole = network.all_reduce(size, ranks, messages=math.ceil(size / bucket))
    # The last bucket has nothing left to hide behind, nor has the centre.
    exposed = max(network.all_reduce(min(size, bucket), ranks), whole - hiding)
    exposed += network.all_reduce((PROTOTYPES + 1) * FLOAT32, ranks, messages=2)
    # The expected slowest of n normal variables, to leading order.
    waiting = step * machine.jitter * math.sqrt(2 * math.log(ranks))
    return step / (step + exposed + waiting)
