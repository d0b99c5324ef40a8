"""Partial FC against PyTorch's cross-entropy of the whole table, on one process and on two and three over gloo."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dino_ssl.config import Parallel
from dino_ssl.finetuning.margins import ARCFACE, COSFACE, Margin
from dino_ssl.finetuning.partial_fc import PartialFC, cross_entropy_of_parts, sampled
from dino_ssl.training import distributed, sharding
from tests.training.small_runs import on_ranks

CPU, CLASSES, DIM, IMAGES = torch.device("cpu"), 11, 6, 12
SATURATION = 69.0776  # -log 1e-30, more than which the released code never shows


def batch():
    """Images and classes of all ranks."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(IMAGES, 5, generator=generator), torch.randint(CLASSES, (IMAGES,), generator=generator)


def a_head(margin=ARCFACE, **options):
    torch.manual_seed(0)
    return PartialFC(DIM, CLASSES, margin, scale=16.0, device=CPU, **options)


def plain_loss(embeddings, centres, labels, margin=ARCFACE):
    cosines = F.normalize(embeddings, dim=1) @ F.normalize(centres, dim=1).T
    own = margin(cosines.gather(1, labels[:, None]).squeeze(1))
    return F.cross_entropy(16.0 * cosines.scatter(1, labels[:, None], own[:, None]), labels)


@pytest.mark.parametrize("margin", [ARCFACE, COSFACE, Margin(0.9, 0.4, 0.15)])
def test_on_one_process_at_rate_one_it_is_cross_entropy_with_its_gradients(margin):
    head, labels = a_head(margin), batch()[1]
    embeddings = torch.randn(IMAGES, DIM, requires_grad=True)
    found = head(embeddings, labels)
    ours = torch.autograd.grad(found, (embeddings, head.centres))
    plain = head.centres.detach()[:, 0].requires_grad_()
    expected = plain_loss(embeddings, plain, labels, margin)
    theirs = torch.autograd.grad(expected, (embeddings, plain))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours, (theirs[0], theirs[1][:, None]))


def trained(steps, state=None, **options):
    """A linear network and its classes on this rank's images; loss by step, then everything that a run would save."""
    torch.manual_seed(1)
    network = nn.ModuleDict({"backbone": nn.Linear(5, DIM), "head": a_head(**options)})
    wrapped = distributed.data_parallel(Whole(network), CPU, Parallel())
    groups = [list(network["backbone"].parameters()), list(network["head"].parameters())]
    optimizer = torch.optim.SGD([{"params": group} for group in groups], lr=0.5, momentum=0.9, weight_decay=0.01)
    if state is not None:
        state = as_tensors(state)
        sharding.load_module(network, state["model"])
        sharding.load_optimizer(optimizer, state["optimizer"])
    images, labels = (part.chunk(distributed.world_size())[distributed.rank()] for part in batch())
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = network["head"](wrapped(images), labels)
        loss.backward()
        gradients = sharding.norms([p.grad for p in network.parameters()])
        optimizer.step()
        losses.append(loss.item())
    whole = sharding.whole({"model": network.state_dict(), "optimizer": optimizer.state_dict()})
    return losses, gradients.tolist(), as_lists(whole) if distributed.is_main() else None


class Whole(nn.Module):
    """What a run wraps: the classes are in it, and are called outside."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network["backbone"](images)


def as_lists(value):
    """Tensors would lie in memory that these processes share."""
    match value:
        case torch.Tensor():
            return ("tensor", value.tolist())
        case dict():
            return {key: as_lists(item) for key, item in value.items()}
        case list():
            return [as_lists(item) for item in value]
    return value


def as_tensors(value):
    match value:
        case ("tensor", numbers):
            return torch.tensor(numbers)
        case dict():
            return {key: as_tensors(item) for key, item in value.items()}
        case list():
            return [as_tensors(item) for item in value]
    return value


@pytest.fixture(scope="module")
def one_process():
    return trained(4)


@pytest.mark.parametrize("ranks", [2, 3])  # of six and five classes, of four, four and three
def test_on_ranks_at_rate_one_it_trains_as_on_one_process(one_process, ranks):
    losses, gradients, state = one_process
    found = on_ranks(ranks, partial(trained, 4))
    for its_losses, its_gradients, _ in found:
        assert its_losses == pytest.approx(losses, abs=1e-5) and its_gradients == pytest.approx(gradients, rel=1e-4)
    torch.testing.assert_close(as_tensors(found[0][2]), as_tensors(state), atol=1e-5, rtol=1e-5)


def test_centres_and_the_optimizers_memory_survive_other_numbers_of_ranks(one_process):
    """Two steps on one process, one on three, one on two."""
    state = trained(2)[2]
    state = on_ranks(3, partial(trained, 1, state))[0][2]
    losses, _, last = on_ranks(2, partial(trained, 1, state))[0]
    assert losses == pytest.approx(one_process[0][3:], abs=1e-5)
    torch.testing.assert_close(as_tensors(last), as_tensors(one_process[2]), atol=1e-5, rtol=1e-5)


def sampled_on_a_rank():
    """In each of some steps: whether the loss is what the sampled centres alone give, and which got a gradient."""
    head, (_, labels) = a_head(rate=0.1, num_centres=1), batch()
    mine = labels.chunk(distributed.world_size())[distributed.rank()]
    (centres,) = sharding.local([head.centres])
    touched = []
    for step in range(5):
        torch.manual_seed(10 * step + distributed.rank())
        embeddings = torch.randn(len(mine), DIM)
        head.zero_grad()
        head(embeddings, mine).backward()
        (gradient,) = sharding.local([head.centres.grad])
        touched.append([head.own.start + row for row in gradient.abs().sum((1, 2)).nonzero().flatten().tolist()])
    return touched, list(head.own), len(centres)


@pytest.mark.parametrize("ranks", [1, 2])
def test_at_rate_a_tenth_every_class_of_the_batch_is_kept_and_little_else(ranks):
    found = [sampled_on_a_rank()] if ranks == 1 else on_ranks(ranks, sampled_on_a_rank)
    positives = set(batch()[1].tolist())
    assert len(positives) < CLASSES and sorted(k for _, own, _ in found for k in own) == list(range(CLASSES))
    for touched, own, held in found:
        assert held == len(own)
        assert all(set(step) == positives & set(own) for step in touched)  # int(0.1 * k) is 1 or 0, fewer than these


def test_a_sample_has_the_positives_and_fills_up_at_random():
    torch.manual_seed(0)
    labels = torch.tensor([7, -1, 93, 7])
    seen = torch.zeros(100)
    for _ in range(200):
        chosen = sampled(labels, 100, 0.3)
        assert len(chosen) == 30 and torch.equal(chosen, chosen.unique()) and {7, 93} <= set(chosen.tolist())
        seen[chosen] += 1
    others = seen[[k for k in range(100) if k not in (7, 93)]] / 200
    assert others.mean().item() == pytest.approx(28 / 98) and (others - 28 / 98).abs().max() < 0.13  # four deviations
    many = torch.arange(47)
    assert torch.equal(sampled(many, 100, 0.05), many)  # five were asked for


def test_a_sampled_loss_is_that_of_its_classes_alone():
    head, (_, labels) = a_head(rate=0.9), batch()
    embeddings = torch.randn(IMAGES, DIM)
    torch.manual_seed(5)
    chosen = sampled(labels, CLASSES, 0.9)
    torch.manual_seed(5)
    expected = plain_loss(embeddings, head.centres.detach()[chosen, 0], torch.searchsorted(chosen, labels))
    assert len(chosen) == 9
    torch.testing.assert_close(head(embeddings, labels), expected)
    torch.testing.assert_close(head.eval()(embeddings, labels), plain_loss(embeddings, head.centres[:, 0], labels))


def test_a_loss_beyond_what_the_released_code_shows_is_the_cross_entropy_still():
    logits, labels = torch.tensor([[64.0, -64.0], [3.0, 1.0]], requires_grad=True), torch.tensor([1, 0])
    found = torch.stack([cross_entropy_of_parts(logits[i : i + 1], labels[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, reduction="none"))
    released = -logits.softmax(1)[torch.arange(2), labels].clamp_min(1e-30).log()
    assert released[0].item() == pytest.approx(SATURATION, abs=1e-4) and found[0] == 128
    torch.testing.assert_close(found.clamp_max(SATURATION), released, atol=1e-4, rtol=0)
    ours, theirs = (torch.autograd.grad(loss.sum(), logits)[0] for loss in
                    (found, F.cross_entropy(logits, labels, reduction="none")))  # fmt: skip
    torch.testing.assert_close(ours, theirs)


def test_the_first_centres_do_not_depend_on_the_number_of_ranks(monkeypatch):
    monkeypatch.setattr("dino_ssl.finetuning.partial_fc.DRAWN_AT_ONCE", 4)
    whole = a_head().centres.detach()
    assert whole.shape == (CLASSES, 1, DIM) and 0.005 < whole.std().item() < 0.015
    for ranks in (2, 3, 4):
        parts = []
        for rank in range(ranks):
            most = -(-CLASSES // ranks)
            own = range(min(CLASSES, rank * most), min(CLASSES, rank * most + most))
            monkeypatch.setattr(sharding, "own_rows", lambda count, own=own: own)
            parts.append(a_head().centres.detach())
        assert torch.equal(torch.cat(parts), whole)


def no_class_here():
    """One class on two ranks."""
    torch.manual_seed(0)
    head = PartialFC(DIM, 1, COSFACE, scale=4.0, device=CPU)
    loss = head(torch.randn(2, DIM), torch.zeros(2, dtype=torch.int64))
    loss.backward()
    return loss.item(), len(head.own)


def test_a_rank_may_have_no_class():
    assert on_ranks(2, no_class_here) == [(0.0, 1), (0.0, 0)]
