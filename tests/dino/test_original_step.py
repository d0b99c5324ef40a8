"""Our step against one written out plainly, attention and all: the reference of `python -m benchmarks.step`."""

import torch

from benchmarks.step import Setting, agreement, crops_of, make_steps


def test_loss_gradient_and_update_are_those_of_the_plain_step():
    torch.set_num_threads(1)
    setting = Setting("vit_micro", 3, 64, global_size=32, local_size=16, local_crops=3, patch=8, drop_path=0.0)
    original, ours = make_steps(setting, compile=False)
    views = setting.views()
    loss_error, gradient_error = agreement(original, ours["fp32"], views)
    assert loss_error < 1e-6 and gradient_error < 1e-5
    for network in (original.student, ours["fp32"].method.student):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    original.update()
    ours["fp32"].update()
    for theirs, mine in (
        (original.student, ours["fp32"].method.student),
        (original.teacher, ours["fp32"].method.teacher),
    ):
        torch.testing.assert_close(dict(mine.named_parameters()), dict(theirs.named_parameters()))
    torch.testing.assert_close(ours["fp32"].method.center.center, original.center)
    for step, batch in ((original.step, crops_of(views)), (ours["bf16"].step, views)):
        step(batch)
