"""The method against the paper written down naively, and against itself in smaller pieces."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from dino_ssl.config import Parallel
from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.config_yaml import from_dict
from dino_ssl.data.loader import Workers
from dino_ssl.dino.centering import Center
from dino_ssl.dino.method import MultiCropNetwork, SelfDistillation
from dino_ssl.models.heads import DINOHead
from dino_ssl.models.vit import VisionTransformer
from dino_ssl.training.journal import read_metrics
from dino_ssl.training.loop import accumulate_gradients, train
from dino_ssl.training.optim import build_optimizer, clip_gradients, parameter_groups, set_rates
from dino_ssl.training.pretraining import prepare

CPU = torch.device("cpu")
ALONE = Workers(0, 0)
torch.set_num_threads(1)  # more wait for each other longer than they work
BATCH, STEPS_PER_EPOCH, EPOCHS = 8, 5, 4
STEPS = EPOCHS * STEPS_PER_EPOCH
PEAK_LR, MIN_LR, CLIP = 1e-3, 1e-6, 0.3


def a_run(folder, compat="none", **changes):
    """A prepared run of `STEPS` steps of `BATCH` real digits, 16-pixel global and 8-pixel local crops."""
    (folder / "images").mkdir(parents=True)
    digits = load_digits().images[: BATCH * STEPS_PER_EPOCH] * 255 / 16
    np.save(folder / "images" / "x_train.npy", digits.round().astype(np.uint8))
    tree = {
        "data": str(folder / "images"),
        "output_dir": str(folder / "run"),
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "device": "cpu",
        "precision": "fp32",
        "compat": compat,
        "crops": {"global_size": 16, "local_size": 8, "num_local_crops": 2, "blur": [0.0, 0.0, 0.0]},
        "model": {"name": "vit_micro", "patch_size": 8, "drop_path": 0.0},
        "head": {"prototypes": 16, "hidden_dim": 32, "bottleneck_dim": 8, "norm_last_layer": False},
        "dino": {"teacher_temperature": 0.07, "warmup_teacher_temperature_epochs": 3, "momentum": 0.9},
        "optim": {"lr": PEAK_LR * 256 / BATCH, "min_lr": MIN_LR, "warmup_epochs": 1, "clip_grad": CLIP},
        "loader": {"num_workers": 0},
        "knn": {"every_epochs": 0},
        "log": {"every_steps": 1},
    }
    for name, value in changes.items():
        tree[name] = {**tree[name], **value} if isinstance(value, dict) else value
    return prepare(from_dict(tree, PRETRAIN), CPU)


def half_cosine(start, end, step, steps):
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / steps))


def learning_rate(step):
    """A warm-up of one epoch that ends on the peak, then a cosine that begins on it."""
    if step < STEPS_PER_EPOCH:
        return PEAK_LR * step / (STEPS_PER_EPOCH - 1)
    return half_cosine(PEAK_LR, MIN_LR, step - STEPS_PER_EPOCH, STEPS - STEPS_PER_EPOCH)


def temperature(step, compat):
    """0.04 to 0.07 in three epochs: by epoch in the original, by step here."""
    position, end = (step // STEPS_PER_EPOCH, 2) if compat == "dino" else (step, 3 * STEPS_PER_EPOCH - 1)
    return 0.04 + 0.03 * min(1, position / end)


def paper_loss(student, teacher, center, teacher_temperature):
    terms = []
    for t in range(2):
        p = ((teacher[t] - center) / teacher_temperature).softmax(-1)
        for s in range(len(student)):
            if s != t:
                terms.append(-(p * (student[s] / 0.1).log_softmax(-1)).sum(-1).mean())
    return sum(terms) / len(terms)


def clip(parameters, compat):
    """Each tensor by itself in the original, all together here; True if something was shrunk."""
    norms = [p.grad.norm().item() for p in parameters]
    if compat != "dino":
        norms = [math.sqrt(sum(norm**2 for norm in norms))] * len(parameters)
    for parameter, norm in zip(parameters, norms, strict=True):
        parameter.grad *= min(1.0, CLIP / (norm + 1e-6))
    return max(norms) > CLIP


def train_naively(student, teacher, batches, compat):
    """Algorithm 1 of the paper in the step order of the original's `train_one_epoch`; losses and centre."""
    named = dict(student.named_parameters())
    plain = [p for name, p in named.items() if name.endswith(".bias") or p.ndim == 1]
    decayed = [p for p in named.values() if not any(p is other for other in plain)]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
    center, losses, clipped = torch.zeros(1, 16), [], 0
    for step, views in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.param_groups[0]["weight_decay"] = half_cosine(0.04, 0.4, step, STEPS)
        crops = [crop for size in views for crop in size]
        with torch.no_grad():
            teacher_logits = [teacher.head(teacher.backbone(crop)) for crop in crops[:2]]
        student_logits = [student.head(student.backbone(crop)) for crop in crops]
        loss = paper_loss(student_logits, teacher_logits, center, temperature(step, compat))
        center = 0.9 * center + 0.1 * torch.cat(teacher_logits).mean(0, keepdim=True)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        clipped += clip(list(named.values()), compat)
        if step < STEPS_PER_EPOCH:
            for name, parameter in named.items():
                if "last_layer" in name:
                    parameter.grad = None
        optimizer.step()
        m = half_cosine(0.9, 1.0, step, STEPS)
        for q, k in zip(student.parameters(), teacher.parameters(), strict=True):
            k.data = m * k.data + (1 - m) * q.data
    assert clipped > STEPS // 2, "the gradients were too small for a test of clipping"
    return losses, center


def parts_that_matter(network):
    """Weights by name, less the bias of attention's keys.

    It shifts all scores of a query alike, so its gradient is 0 but for rounding, and Adam makes steps of that.
    """
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    for name, weight in weights.items():
        if name.endswith("attn.qkv.bias"):
            weight.view(3, -1)[1] = 0
    return weights


@pytest.mark.parametrize("compat", ["none", "dino"])
def test_twenty_steps_are_those_of_the_paper_written_naively(tmp_path, compat):
    run = a_run(tmp_path, compat)
    batches = [run.task.normalized(batch) for batch in run.micro_batches(ALONE)]
    student, teacher = copy.deepcopy((run.task.method.student, run.task.method.teacher))
    before = parts_that_matter(student)
    with run.journal:
        train(run)
    losses, center = train_naively(student, teacher, batches, compat)
    ours = [line["train/loss"] for line in read_metrics(run.folder)]
    # Seen: at most 5e-6 in the loss, 2e-6 in the centre and 6e-7 in weights that moved by 9e-3.
    assert ours == pytest.approx(losses, abs=2e-5)
    torch.testing.assert_close(run.task.method.center.center, center, atol=1e-5, rtol=0)
    for trained, naive in ((run.task.method.student, student), (run.task.method.teacher, teacher)):
        torch.testing.assert_close(parts_that_matter(trained), parts_that_matter(naive), atol=3e-6, rtol=0)
    after = parts_that_matter(student)
    assert all((after[name] - before[name]).abs().max() > 3e-3 for name in before), "too little to compare"


def test_micro_batches_give_the_loss_the_gradient_and_the_centre_of_the_whole_batch(tmp_path):
    results = []
    for name, micro_batch in (("whole", None), ("parts", BATCH // 4)):
        run = a_run(tmp_path / name, micro_batch_size=micro_batch)
        assert run.shares.accumulation == (1 if micro_batch is None else 4)
        loss = accumulate_gradients(run, run.micro_batches(ALONE), run.task.plan.at(0))
        run.task.method.update_center()
        gradients = {name: p.grad for name, p in run.task.method.student.named_parameters()}
        results.append({"loss": loss, "center": run.task.method.center.center, **gradients})
    # The gradient's norm is about 10.
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("compat", ["none", "dino"])
def test_the_teacher_stays_when_the_scaler_skips_a_step_but_not_in_the_original(tmp_path, compat):
    at_once = {"optim": {"warmup_epochs": 0, "freeze_last_layer_epochs": 0}}
    run = a_run(tmp_path, compat, steps=1, **at_once, dino={"warmup_teacher_temperature_epochs": 0})
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1e38)  # the scaled loss is infinite
    for weight in run.task.method.teacher.parameters():
        weight.add_(0.5)
    student, teacher = (list(copy.deepcopy(n).parameters()) for n in (run.task.method.student, run.task.method.teacher))
    with run.journal:
        train(run)
    assert run.step == 1 and run.scaler.get_scale() < 1e38
    torch.testing.assert_close(list(run.task.method.student.parameters()), student, atol=0, rtol=0)
    if compat == "dino":
        teacher = [0.9 * k + 0.1 * q for k, q in zip(teacher, student, strict=True)]
    torch.testing.assert_close(list(run.task.method.teacher.parameters()), teacher)


class CountingBackbone(nn.Module):
    """Mean colour, through BN; notes how many images each pass had."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.passes = []

    def forward(self, images):
        self.passes.append(len(images))
        return self.norm(images.mean((2, 3)))


def a_network(backbone=None):
    torch.manual_seed(0)
    backbone = backbone or VisionTransformer(image_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2)
    return MultiCropNetwork(backbone, DINOHead(backbone.embed_dim, 5, hidden_dim=8, bottleneck_dim=4))


def a_method(make_network=a_network):
    center = Center(5)
    return SelfDistillation(
        make_network(), make_network(), center, student_temperature=0.1, device=CPU, parallel=Parallel()
    )


def a_counting_network():
    backbone = CountingBackbone()
    backbone.embed_dim = 3
    return a_network(backbone)


def views_of(*shapes):
    torch.manual_seed(1)
    return [torch.randn(num_views, 3, 3, size, size) for num_views, size in shapes]


@pytest.mark.parametrize("shapes", [[(2, 16)], [(2, 16), (3, 8)], [(2, 16), (3, 16)], [(2, 16), (1, 8), (1, 24)]])
def test_the_network_is_head_and_backbone_run_on_every_crop_alone(shapes):
    network, views = a_network(), views_of(*shapes)
    alone = [network.head(network.backbone(crop)) for size in views for crop in size]
    torch.testing.assert_close(network(views), torch.stack(alone))


@pytest.mark.parametrize(
    ("shapes", "passes"),
    [
        ([(2, 16), (3, 8)], [6, 9]),
        ([(2, 16), (3, 16)], [15]),
        ([(1, 16), (1, 8), (1, 8), (1, 16)], [3, 6, 3]),  # neighbours only, as in the original
    ],
)
def test_neighbouring_crops_of_one_size_share_a_pass_and_its_batch_statistics(shapes, passes):
    network, views = a_counting_network(), views_of(*shapes)
    network(views)
    assert network.backbone.passes == passes


def test_the_teacher_sees_the_global_crops_only_and_takes_no_gradient():
    method = a_method(a_counting_network)
    method.loss(views_of((2, 16), (3, 8)), 0.04).backward()
    assert method.teacher.backbone.passes == [6] and method.student.backbone.passes == [6, 9]
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.student.parameters() if p.requires_grad)


def test_the_teacher_starts_as_the_student_and_follows_its_weights_but_not_its_buffers():
    method = a_method(a_counting_network)
    torch.testing.assert_close(method.teacher.state_dict(), method.student.state_dict(), atol=0, rtol=0)
    with torch.no_grad():
        for weight in method.student.parameters():
            weight.add_(1)
    before = copy.deepcopy(method.teacher)
    method.student.backbone.norm.running_mean += 7
    method.update_teacher(0.75)
    for k, q, old in zip(*(n.parameters() for n in (method.teacher, method.student, before)), strict=True):
        torch.testing.assert_close(k, 0.75 * old + 0.25 * q)
    torch.testing.assert_close(dict(method.teacher.named_buffers()), dict(before.named_buffers()))


def test_a_teacher_in_evaluation_mode_normalises_by_the_statistics_of_the_student():
    student, teacher = a_counting_network(), a_counting_network()
    method = SelfDistillation(
        student, teacher, Center(5), student_temperature=0.1, device=CPU, parallel=Parallel(), teacher_mode="eval"
    )
    norm, views = method.teacher.backbone.norm, views_of((2, 16), (3, 8))
    method.loss(views, 0.04)
    assert not norm.training and torch.equal(norm.running_mean, torch.zeros(3)) and method.student.training
    method.update_teacher(0.9)
    mean, var = torch.zeros(3), torch.ones(3)
    for size in views:  # the student's passes, global crops first, at PyTorch's momentum of 0.1
        colours = size.flatten(0, 1).mean((2, 3))
        mean, var = 0.9 * mean + 0.1 * colours.mean(0), 0.9 * var + 0.1 * colours.var(0)
    torch.testing.assert_close((norm.running_mean, norm.running_var), (mean, var))
    colours = views[0].flatten(0, 1).mean((2, 3))
    expected = method.teacher.head((colours - mean) / (var + 1e-5).sqrt() * norm.weight + norm.bias)
    torch.testing.assert_close(method.teacher(views[:1]).flatten(0, 1), expected)


def test_without_local_crops_the_loss_is_the_mean_of_the_two_crossed_pairs():
    method, views = a_method(), views_of((2, 16))
    logits = method.student(views).detach()
    p, log_p = (logits / 0.04).softmax(-1), (logits / 0.1).log_softmax(-1)
    expected = -(p[0] * log_p[1] + p[1] * log_p[0]).sum(-1).mean() / 2
    torch.testing.assert_close(method.loss(views, 0.04).detach(), expected)
    method.update_center()
    torch.testing.assert_close(method.center.center, 0.1 * logits.flatten(0, 1).mean(0, keepdim=True))


def test_the_loss_of_a_step_uses_the_centre_of_the_step_before():
    method, views = a_method(), views_of((2, 16), (1, 8))
    first = method.loss(views, 0.04)
    assert torch.equal(method.loss(views, 0.04), first)
    method.update_center()
    assert not torch.equal(method.loss(views, 0.04), first)


@pytest.mark.parametrize("per_tensor", [True, False])
def test_a_step_never_waits_for_the_device(per_tensor):
    """On `meta` there are no values to read: whatever asks for one fails."""
    networks = []
    for drop_path in (0.1, 0.0):
        backbone = VisionTransformer(
            image_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2, drop_path=drop_path
        )
        networks.append(a_network(backbone))
        networks[-1].head.last_layer = nn.Linear(4, 5, bias=False)  # weight norm has no backward on `meta` in torch 2.6
    meta = torch.device("meta")
    method = SelfDistillation(*networks, Center(5), student_temperature=0.1, device=meta, parallel=Parallel())
    # Not AdamW, whose fused form PyTorch has on real devices only.
    optimizer = build_optimizer("lars", parameter_groups(method.student))
    set_rates(optimizer, lr=0.1, weight_decay=0.04)
    loss = method.loss([view.to("meta") for view in views_of((2, 16), (3, 8))], 0.04)
    loss.backward()
    clip_gradients(method.student.parameters(), 3.0, per_tensor=per_tensor)
    optimizer.step()
    method.update_center()
    method.update_teacher(0.9)
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()


def test_half_precision_logits_reach_the_loss_as_they_are():
    method, views = a_method(), views_of((2, 16), (3, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert method.student(views).dtype == torch.bfloat16
        student, teacher = (network(views[:1]).detach().float() for network in (method.student, method.teacher))
        ours = method.loss(views[:1], 0.04)
    expected = paper_loss(student, teacher, torch.zeros(1, 5), 0.04)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.detach(), expected)
    method.update_center()
    torch.testing.assert_close(method.center.center, 0.1 * teacher.flatten(0, 1).mean(0, keepdim=True))
