"""Pretraining a CMT: no class token, batch norm inside, crops of two sizes on one table of biases."""

from dataclasses import replace

import pytest
import torch
from small_runs import a_config, as_killed_after, assert_bitwise_equal, run_here, state_after
from torch import nn

from dino_ssl.config_checks import check
from dino_ssl.dino.method import MultiCropNetwork
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.features import Extractor
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.batch_norm import with_statistics_of
from dino_ssl.models.cmt import CMT_SIZES, CMTSize
from dino_ssl.models.heads import DINOHead
from dino_ssl.models.weights import load_encoder
from dino_ssl.training.pretraining import prepare

KNOBS = {
    "steps": 2,
    "model": {"name": "cmt_odd"},
    "crops": {"global_size": 64, "local_size": 32},
    "log": {"every_steps": 1},
}


@pytest.fixture(autouse=True)
def odd(monkeypatch):
    """A CMT that takes no time."""
    monkeypatch.setitem(CMT_SIZES, "cmt_odd", CMTSize(5, (3, 6, 12, 24), (1, 1, 2, 2), 3.3))


def drop_paths(network):
    return [block.drop_path for stage in network.backbone.stages for block in stage.blocks]


def test_two_steps_move_every_weight_with_drop_path_on_the_student_only(tmp_path):
    config = a_config(tmp_path, **KNOBS)
    method = prepare(config, torch.device("cpu")).task.method
    before = {name: value.clone() for name, value in method.student.named_parameters()}
    buffers = {name: value.clone() for name, value in method.teacher.named_buffers()}
    run = run_here(config)
    student = dict(run.task.method.student.named_parameters())
    unmoved = {name for name, value in student.items() if torch.equal(value, before[name])}
    assert unmoved == {"head.last_layer.weight_g", "head.last_layer.weight_v"}  # frozen for the first two steps
    means = [name for name, _ in run.task.method.teacher.named_buffers() if name.endswith("running_mean")]
    teacher = dict(run.task.method.teacher.named_buffers())
    assert len(means) == 3 + 4 + 6 * 3 and not any(torch.equal(teacher[name], buffers[name]) for name in means)
    assert [type(layer) for layer in drop_paths(run.task.method.teacher)] == [nn.Identity] * 6
    assert drop_paths(run.task.method.student)[-1].drop_prob == config.model.drop_path == 0.2


def test_a_run_resumes_exactly_with_activation_checkpointing_and_accumulation(tmp_path):
    knobs = {**KNOBS, "micro_batch_size": 8, "model": {**KNOBS["model"], "activation_checkpointing": True}}
    undisturbed = a_config(tmp_path, **knobs)
    run_here(undisturbed)
    resumed = as_killed_after(undisturbed, {1}, tmp_path / "stopped", **knobs)
    run_here(resumed)
    assert_bitwise_equal(state_after(undisturbed, 2), state_after(resumed, 2))


@pytest.mark.parametrize("kind", ["free", "relative"])
def test_the_encoder_of_a_run_is_its_teachers_backbone(tmp_path, kind):
    config = a_config(tmp_path, **{**KNOBS, "model": {**KNOBS["model"], "position_bias": kind}})
    teacher = run_here(config).task.method.teacher.backbone.eval()
    encoder, images = load_encoder(config.output_dir), torch.randn(2, 3, 96, 64)[:, : config.crops.channels]
    assert encoder.name == "cmt_odd" and encoder.size == 64
    with torch.no_grad():
        torch.testing.assert_close(encoder.backbone(images), teacher(images), rtol=0, atol=0)


def test_a_batch_of_one_and_crops_of_other_sizes_are_refused_before_any_work(tmp_path):
    assert any("cmt_odd has batch norm" in line for line in check(a_config(tmp_path, **KNOBS, batch_size=1)))
    config = a_config(tmp_path, **{**KNOBS, "crops": {"global_size": 64, "local_size": 40}})
    with pytest.raises(UsageError, match=r"crops.local_size=40 .* multiples of 32"):
        prepare(config, torch.device("cpu"))


def test_knn_with_precise_statistics_is_that_of_a_network_with_them_and_changes_nothing_of_the_run(tmp_path):
    config = a_config(tmp_path, **KNOBS, knn={"every_epochs": 1, "k": 3, "precise_bn": 40})
    run = run_here(config)
    before = {name: value.clone() for name, value in run.task.method.teacher.state_dict().items()}
    backbone = run.task.teacher_backbone()
    found = run.task.knn.measure(backbone, max_images=None)
    images = Extractor(
        backbone, 64, config.knn.center_crop, config.crops.mean, config.crops.std, torch.device("cpu")
    ).some_images(run.source, 40)
    plain = replace(run.task.knn, config=replace(config, knn=replace(config.knn, precise_bn=0)))
    assert found == plain.measure(with_statistics_of(backbone, images), max_images=None)
    assert_bitwise_equal(dict(run.task.method.teacher.state_dict()), before)
    assert run.task.method.teacher.training
    settings = [one.settings for knn in (run.task.knn, plain) for one in knn.evaluations(found, 1.0, size=64)]
    assert settings == [{"temperature": 0.07, "precise_bn": 40}, {"temperature": 0.07}]


def test_a_teacher_in_evaluation_mode_keeps_the_statistics_of_the_student(tmp_path):
    run = run_here(a_config(tmp_path, **KNOBS, dino={"teacher_mode": "eval"}))
    assert not any(module.training for module in run.task.method.teacher.modules())
    torch.testing.assert_close(
        dict(run.task.method.teacher.named_buffers()), dict(run.task.method.student.named_buffers()), rtol=0, atol=0
    )
    assert any(
        "precise_bn=1 must be 0 or at least 2" in line for line in check(a_config(tmp_path, knn={"precise_bn": 1}))
    )


@pytest.mark.parametrize(
    ("kind", "sizes", "small_stem"),
    [("free", (224, 96), False), ("relative", (224, 96), False), ("free", (64, 32), True)],
)
def test_crops_of_two_sizes_go_through_one_network_and_train_the_same_biases(kind, sizes, small_stem):
    torch.manual_seed(0)
    cmt = build_backbone("cmt_odd", image_size=sizes[0], small_stem=small_stem, position_bias=kind)
    network = MultiCropNetwork(cmt, DINOHead(cmt.embed_dim, 4, hidden_dim=8, bottleneck_dim=4)).eval()
    views = [torch.randn(2, 1, 3, sizes[0], sizes[0]), torch.randn(3, 1, 3, sizes[1], sizes[1])]
    biases = [p for name, p in network.named_parameters() if "position_bias" in name]
    alone = [network.head(cmt(crop)) for size in views for crop in size]
    torch.testing.assert_close(network(views), torch.stack(alone), atol=1e-5, rtol=1e-4)
    expected = [torch.autograd.grad(logits.square().sum(), biases) for logits in alone]
    together = torch.autograd.grad(network(views).square().sum(), biases)
    # Neither size leaves the tables to the other.
    assert biases and all(gradients[0].any() for gradients in (expected[0], expected[-1]))
    for each, parts in zip(together, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(each, sum(parts), atol=1e-6, rtol=1e-3)
