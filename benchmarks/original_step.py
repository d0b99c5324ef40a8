"""One training step of DINO in plain PyTorch, arranged as in the original: what `benchmarks.step` compares with.

Attention is written out, every block computes all tokens, the loss takes one log-softmax per pair of views, and
clipping, AdamW and the teacher's update go parameter by parameter. Parameters have the names of `dino_ssl`.

Sizes: b images, n tokens, d dimensions, k prototypes, v views. Source: arXiv:2104.14294; facebookresearch/dino.
"""

import math
from dataclasses import dataclass, field
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

STUDENT_TEMPERATURE = 0.1


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        b, n, d = x.shape
        query, key, value = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) * (d // self.heads) ** -0.5).softmax(dim=-1)
        mixed: Tensor = self.proj((weights @ value).transpose(1, 2).reshape(b, n, d))
        return mixed


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.keep = 1 - drop_path
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def drop_path(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        if self.keep == 1 or not self.training:
            return x
        kept = (self.keep + torch.rand(len(x), 1, 1, dtype=x.dtype, device=x.device)).floor_()
        return x.div(self.keep) * kept

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))


class Backbone(nn.Module):
    def __init__(self, size: int, patch: int, *, dim: int, depth: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.patch, self.side = patch, size // patch
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, drop_path * i / (depth - 1)) for i in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def positions(self, rows: int, columns: int) -> Float[Tensor, "1 n d"]:
        if rows == columns == self.side:
            return self.pos_embed
        table = self.pos_embed[:, 1:].reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / self.side, (columns + 0.1) / self.side)
        table = F.interpolate(table, scale_factor=scale, mode="bicubic")
        return torch.cat((self.pos_embed[:, :1], table.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)

    def forward(self, images: Float[Tensor, "b 3 x y"]) -> Float[Tensor, "b d"]:
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.cls_token.expand(len(images), -1, -1), patches), dim=1)
        tokens = tokens + self.positions(images.shape[2] // self.patch, images.shape[3] // self.patch)
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed[:, 0]


class LastLayer(nn.Module):
    def __init__(self, dim: int, prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=False)
        self.weight_v = nn.Parameter(torch.empty(prototypes, dim))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        # What the hook of torch.nn.utils.weight_norm calls.
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class Head(nn.Module):
    def __init__(self, dim: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        first, second = nn.Linear(dim, hidden), nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(first, nn.GELU(), second, nn.GELU(), nn.Linear(hidden, bottleneck))
        self.last_layer = LastLayer(bottleneck, prototypes)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        logits: Tensor = self.last_layer(F.normalize(self.mlp(x), dim=-1))
        return logits


class Network(nn.Module):
    """Backbone and head of a list of crops, one pass for each run of equal widths."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, crops: list[Tensor]) -> Float[Tensor, "vb k"]:
        features = torch.empty(0, device=crops[0].device)
        for _, run in groupby(crops, key=lambda crop: crop.shape[-1]):
            features = torch.cat((features, self.backbone(torch.cat(list(run)))))
        logits: Tensor = self.head(features)
        return logits


def original_loss(
    student_logits: Float[Tensor, "vb k"], targets: Float[Tensor, "2b k"], num_crops: int
) -> Float[Tensor, ""]:
    """The mean of every pair's cross-entropy, one pair after the other."""
    student, terms = (student_logits / STUDENT_TEMPERATURE).chunk(num_crops), []
    for index, target in enumerate(targets.chunk(2)):
        for view, logits in enumerate(student):
            if view != index:
                terms.append(torch.sum(-target * F.log_softmax(logits, dim=-1), dim=-1).mean())
    return sum(terms[1:], terms[0]) / len(terms)


@dataclass
class OriginalStep:
    """Student, teacher and their optimizer: AdamW with PyTorch's defaults, fp16 with a scaler if asked."""

    student: Network
    teacher: Network
    fp16: bool = False
    teacher_temperature: float = 0.04
    clip: float = 3.0
    momentum: float = 0.996
    optimizer: torch.optim.Optimizer = field(init=False)
    center: Float[Tensor, "1 k"] = field(init=False)

    def __post_init__(self) -> None:
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        named = [(name, p) for name, p in self.student.named_parameters() if p.requires_grad]
        plain = [p for name, p in named if name.endswith(".bias") or p.ndim == 1]
        decayed = [p for name, p in named if not (name.endswith(".bias") or p.ndim == 1)]
        groups = [{"params": decayed, "weight_decay": 0.04}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4)
        self.center = torch.zeros(1, len(self.student.head.last_layer.weight_v), device=decayed[0].device)
        self.scaler = torch.amp.GradScaler(decayed[0].device.type, enabled=self.fp16)

    def targets(self, logits: Float[Tensor, "2b k"]) -> Float[Tensor, "2b k"]:
        return F.softmax((logits - self.center) / self.teacher_temperature, dim=-1).detach()

    def loss(self, crops: list[Tensor]) -> Float[Tensor, ""]:
        with torch.autocast(crops[0].device.type, torch.float16, enabled=self.fp16):
            with torch.no_grad():
                teacher_logits = self.teacher(crops[:2])
            loss = original_loss(self.student(crops), self.targets(teacher_logits), len(crops))
            mean = teacher_logits.detach().sum(dim=0, keepdim=True) / len(teacher_logits)
            self.center = self.center * 0.9 + mean * 0.1
        return loss

    def step(self, crops: list[Tensor]) -> None:
        loss = self.loss(crops)
        assert math.isfinite(loss.item())
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self.clip_gradients()
        self.update()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def clip_gradients(self) -> None:
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                norm = parameter.grad.norm(2).item()
                if norm + 1e-6 > self.clip:
                    parameter.grad.mul_(self.clip / (norm + 1e-6))

    def update(self) -> None:
        """AdamW, then the teacher."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for student, teacher in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                teacher.mul_(self.momentum).add_((1 - self.momentum) * student.detach())
