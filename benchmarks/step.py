"""The training step against a plain one arranged as the original's: `python -m benchmarks.step`.

Same weights, same inputs, one process. It prints first how far loss and gradients agree, then medians of interleaved
rounds (CPU time; on a GPU, the time until it is done), ratios to the original, and what the backward pass keeps.
On a GPU the original runs in fp16 with a scaler, as it does there.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import original_step
from benchmarks.original_step import OriginalStep, original_loss
from benchmarks.timing import interleaved
from dino_ssl.config import Parallel
from dino_ssl.dino.centering import Center
from dino_ssl.dino.losses import dino_loss, teacher_probabilities
from dino_ssl.dino.method import MultiCropNetwork, SelfDistillation
from dino_ssl.models.backbone import VIT_SIZES, build_backbone
from dino_ssl.models.heads import DINOHead
from dino_ssl.training.optim import build_optimizer, clip_gradients, parameter_groups, set_rates

Views = list[Float[Tensor, "_v b 3 _s _s"]]


@dataclass(frozen=True)
class Setting:
    model: str = "vit_small"
    batch: int = 4
    prototypes: int = 8192
    drop_path: float = 0.1
    global_size: int = 224  # pixels, as is the next
    local_size: int = 96
    local_crops: int = 8
    patch: int = 16
    device: str = "cpu"

    def views(self) -> Views:
        sizes = [(2, self.global_size), (self.local_crops, self.local_size)]
        return [torch.randn(v, self.batch, 3, size, size, device=self.device) for v, size in sizes]

    def ours(self, drop_path: float) -> MultiCropNetwork:
        backbone = build_backbone(self.model, image_size=self.global_size, patch_size=self.patch, drop_path=drop_path)
        return MultiCropNetwork(backbone, DINOHead(backbone.embed_dim, self.prototypes)).to(self.device)

    def original(self, drop_path: float) -> original_step.Network:
        dim, depth, heads = VIT_SIZES[self.model]
        backbone = original_step.Backbone(
            self.global_size, self.patch, dim=dim, depth=depth, heads=heads, drop_path=drop_path
        )
        return original_step.Network(backbone, original_step.Head(dim, self.prototypes)).to(self.device)


@dataclass
class OurStep:
    """One step as `dino_ssl.training.loop` takes it."""

    method: SelfDistillation
    dtype: torch.dtype | None = None  # what autocast computes in
    compile: bool = False
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = build_optimizer("adamw", parameter_groups(self.method.student))
        set_rates(self.optimizer, lr=1e-4, weight_decay=0.04)
        if self.compile:
            self.method.student.backbone.compile()
            self.method.teacher.backbone.compile()

    def loss(self, views: Views) -> Float[Tensor, ""]:
        with torch.autocast(views[0].device.type, self.dtype, enabled=self.dtype is not None):
            return self.method.loss(views, 0.04)

    def step(self, views: Views) -> None:
        self.loss(views).backward()
        clip_gradients(self.method.student.parameters(), 3.0, per_tensor=False)
        self.method.update_center()
        self.update()
        self.optimizer.zero_grad()

    def update(self) -> None:
        """AdamW, then the teacher."""
        self.optimizer.step()
        self.method.update_teacher(0.996)


def make_steps(setting: Setting, *, compile: bool) -> tuple[OriginalStep, dict[str, OurStep]]:
    """The original's step and ours by name, all with the same weights."""
    torch.manual_seed(0)
    weights = setting.ours(0.0).state_dict()
    original = setting.original(setting.drop_path)
    original.load_state_dict(weights)
    kinds: dict[str, tuple[torch.dtype | None, bool]] = {"fp32": (None, False), "bf16": (torch.bfloat16, False)}
    if compile:
        kinds["bf16, compiled"] = (torch.bfloat16, True)
    ours = {}
    for name, (dtype, compiled) in kinds.items():
        student = setting.ours(setting.drop_path)
        student.load_state_dict(weights)
        center = Center(setting.prototypes)
        method = SelfDistillation(
            student, setting.ours(0.0), center, student_temperature=0.1, device=torch.device(setting.device),
            parallel=Parallel(),
        )  # fmt: skip
        ours[name] = OurStep(method, dtype, compiled)
    fp16 = setting.device == "cuda"
    return OriginalStep(original, setting.original(0.0), fp16=fp16), ours


def crops_of(views: Views) -> list[Tensor]:
    return [crop for size in views for crop in size]


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """By name; taken away from the network."""
    taken = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return taken


def agreement(original: OriginalStep, ours: OurStep, views: Views) -> tuple[float, float]:
    """Relative difference of the losses, and of the worst tensor's gradient, to the original in fp32; no drop path."""
    half, original.fp16 = original.fp16, False
    ours.method.center.center.copy_(original.center)
    networks = (original.student.eval(), ours.method.student.eval())
    losses = (original.loss(crops_of(views)), ours.loss(views))
    torch.stack(losses).sum().backward()
    ours.method.update_center()
    theirs, mine = (gradients(network.train()) for network in networks)
    assert theirs.keys() == mine.keys()
    errors = [((mine[name] - gradient).norm() / gradient.norm()).item() for name, gradient in theirs.items()]
    original.fp16 = half
    return abs(losses[1].item() / losses[0].item() - 1), max(errors)


def saved_bytes(loss: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Size of what `loss` keeps for its backward pass, parameters apart, each storage once."""
    sizes, known = {}, {p.untyped_storage().data_ptr() for p in parameters}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = loss()
    del graph
    return sum(size for address, size in sizes.items() if address not in known)


def medians(actions: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each action: of the CPU in all threads, or until the GPU is done."""
    if device != "cuda":
        return {name: timing.cpu for name, timing in interleaved(actions, rounds=rounds).items()}
    waited = {name: partial(and_wait, action) for name, action in actions.items()}
    return {name: timing.wall for name, timing in interleaved(waited, rounds=rounds).items()}


def and_wait(action: Callable[[], object]) -> None:
    action()
    torch.cuda.synchronize()


def show(title: str, times: dict[str, float], notes: dict[str, str] | None = None) -> None:
    """A row for each; the first is what the others are compared with."""
    print(f"\n{title}")
    reference = next(iter(times.values()))
    for name, each in times.items():
        print(f"  {name:16}{each * 1000:10.1f} ms{reference / each:8.2f}x   {(notes or {}).get(name, '')}")


def flops_per_image(setting: Setting) -> int:
    """Of the plain network: student forward and backward, teacher forward."""
    crops = [torch.empty(1, 3, setting.global_size, setting.global_size, device="meta") for _ in range(2)]
    local = torch.empty(1, 3, setting.local_size, setting.local_size, device="meta")
    network = setting.original(0.0).to("meta")
    with FlopCounterMode(display=False) as counter:
        network(crops + [local] * setting.local_crops).sum().backward()
        with torch.no_grad():
            network(crops)
    return int(counter.get_total_flops())


def peak_bytes(action: Callable[[], object]) -> int:
    """The most GPU memory that a step needs beyond weights, optimizer and batch."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    action()
    return torch.cuda.max_memory_allocated() - before


def compare_steps(setting: Setting, rounds: int, *, compile: bool, peak_tflops: float) -> None:
    original, ours = make_steps(setting, compile=compile)
    views = setting.views()
    crops = crops_of(views)
    for name, each in ours.items():
        loss_error, gradient_error = agreement(original, each, views)
        print(f"agreement, {name}: loss {loss_error:.1e}, worst tensor's gradient {gradient_error:.1e} (relative)")
    torch._dynamo.reset()  # PyTorch keeps eight graphs, and those of the agreement are not needed again
    reference = f"original, {'fp16' if original.fp16 else 'fp32'}"
    steps: dict[str, Callable[[], object]] = {reference: partial(original.step, crops)}
    losses: dict[str, tuple[Callable[[], Tensor], nn.Module]]
    losses = {reference: (partial(original.loss, crops), original.student)}
    for name, each in ours.items():
        steps[name] = partial(each.step, views)
        losses[name] = (partial(each.loss, views), each.method.student)
    times = medians(steps, rounds, setting.device)
    saved = {name: saved_bytes(loss, network.parameters()) for name, (loss, network) in losses.items()}
    flops = flops_per_image(setting) * setting.batch
    notes = {}
    for name, size in saved.items():
        notes[name] = f"{setting.batch / times[name]:8.2f} images/s   saved {size / 1e6:6.0f} MB"
        notes[name] += f" ({size / saved[reference]:.0%})"
        if setting.device == "cuda":
            notes[name] += f"   MFU {flops / times[name] / peak_tflops / 1e12:.0%}"
            notes[name] += f"   peak {peak_bytes(steps[name]) / 1e9:.1f} GB"
    show(f"{setting.model}, batch {setting.batch}, K {setting.prototypes}: a step", times, notes)


def compare_updates(setting: Setting, rounds: int) -> None:
    """What follows the backward pass, with gradients drawn at random."""
    original, steps = make_steps(setting, compile=False)
    ours = steps.pop("fp32")
    del steps
    for parameter in (*original.student.parameters(), *ours.method.student.parameters()):
        if parameter.requires_grad:
            parameter.grad = 1e-3 * torch.randn_like(parameter)
    # Without the scaler, which steps only once for each time that it unscaled the gradients.
    original.scaler = torch.amp.GradScaler(setting.device, enabled=False)
    updates: dict[str, Callable[[], object]] = {"original": original.update, "ours": ours.update}
    title = f"{setting.model}, K {setting.prototypes}: AdamW and the teacher's update"
    show(title, medians(updates, 3 * rounds, setting.device))
    student = list(ours.method.student.parameters())
    clips: dict[str, Callable[[], object]] = {
        "original": original.clip_gradients,
        "ours": partial(clip_gradients, student, 3.0, per_tensor=False),
    }
    show("clipping (ours by the global norm)", medians(clips, 3 * rounds, setting.device))


def compare_losses(rounds: int, device: str, *, batch: int = 8, prototypes: int = 65_536) -> None:
    """From the logits of 2 + 8 views to their gradient, targets included."""
    torch.manual_seed(0)
    logits, teacher = (0.3 * torch.randn(views, batch, prototypes, device=device) for views in (10, 2))
    center = torch.zeros(1, prototypes, device=device)

    def original(student: Tensor) -> Tensor:
        targets = torch.softmax((teacher.flatten(0, 1) - center) / 0.04, dim=-1)
        return original_loss(student.flatten(0, 1), targets, len(student))

    def ours(student: Tensor) -> Tensor:
        return dino_loss(student, teacher_probabilities(teacher, center, 0.04), 0.1)

    forms = {"original, fp32": (original, torch.float32), "fp32": (ours, torch.float32), "bf16": (ours, torch.bfloat16)}
    leaves = {name: logits.to(dtype, copy=True).requires_grad_() for name, (_, dtype) in forms.items()}
    losses = {name: partial(loss, leaves[name]) for name, (loss, _) in forms.items()}

    def gradient(name: str) -> Tensor:
        return torch.autograd.grad(losses[name](), leaves[name])[0]

    times = medians({name: partial(gradient, name) for name in forms}, 3 * rounds, device)
    saved = {name: saved_bytes(loss, [leaves[name]]) / 1e6 for name, loss in losses.items()}
    notes = {name: f"saved besides the logits {size:6.1f} MB" for name, size in saved.items()}
    show(f"the loss, batch {batch}, 2 + 8 views, K {prototypes}", times, notes)
    theirs, mine = (gradient(name) for name in ("original, fp32", "fp32"))
    print(f"agreement, fp32: gradient {((mine - theirs).norm() / theirs.norm()).item():.1e} (relative)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=VIT_SIZES, default="vit_small")
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--prototypes", type=int, default=8192, help="K")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="a row with compiled blocks (a minute more)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak-tflops", type=float, default=790, help="of MFU; 790 was measured on an H200, bf16")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    print(f"torch {torch.__version__}, {flags.device}, {flags.threads} threads, {flags.rounds} rounds")
    setting = Setting(flags.model, flags.batch, flags.prototypes, device=flags.device)
    compare_steps(setting, flags.rounds, compile=flags.compile, peak_tflops=flags.peak_tflops)
    compare_updates(replace(setting, prototypes=65_536), flags.rounds)
    compare_losses(flags.rounds, flags.device)


if __name__ == "__main__":
    main()
