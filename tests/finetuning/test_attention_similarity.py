"""A-SKD's losses against loops over blocks, images and rows, and the figures that argue for them."""

import pytest
import torch
from torch.nn import functional as F

from dino_ssl.finetuning.attention_similarity import attention_distance, gate_distances, log_rows
from dino_ssl.models.attention_map import AttentionMap
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.cbam import Gates


def some_gates(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(8, 6), (16, 3)]
    return [
        Gates(torch.randn(3, c, generator=generator), torch.randn(3, side, side, generator=generator))
        for c, side in sizes
    ]


def cosine(x, y):
    return (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt())


@pytest.mark.parametrize("after_sigmoid", [False, True])
def test_gate_distances_are_a_loop_over_blocks_and_images(after_sigmoid):
    ours, theirs = some_gates(0), some_gates(1)
    change = torch.sigmoid if after_sigmoid else (lambda x: x)
    expected = torch.tensor(
        [
            [1 - sum(cosine(change(getattr(s, kind)[i]), change(getattr(t, kind)[i])) for i in range(3)) / 3
             for kind in ("channel", "spatial")]
            for s, t in zip(ours, theirs, strict=True)
        ]
    )  # fmt: skip
    found = gate_distances(ours, theirs, after_sigmoid=after_sigmoid)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gate_distances(ours, ours), torch.zeros(2, 2), atol=1e-6, rtol=0)


def test_nothing_flows_to_the_teacher():
    ours, theirs = some_gates(0), some_gates(1)
    for gate in (ours[0].channel, theirs[0].channel):
        gate.requires_grad_()
    gate_distances(ours, theirs).sum().backward()
    assert ours[0].channel.grad.abs().sum() > 0 and theirs[0].channel.grad is None


def test_as_many_blocks_as_the_teachers_are_compared():
    with pytest.raises(ValueError, match="shorter"):
        gate_distances(some_gates(0), some_gates(1)[:1])


@pytest.mark.parametrize(("deviation", "after"), [(0.5, 0.95), (1.0, 0.85), (2.0, 0.72), (4.0, 0.61)])
def test_independent_gates_are_alike_after_the_sigmoid_only(deviation, after):
    torch.manual_seed(0)
    pair = [[Gates(deviation * torch.randn(64, 512), torch.zeros(64, 1, 1))] for _ in range(2)]
    assert 1 - gate_distances(*pair)[0, 0].item() == pytest.approx(0, abs=0.01)
    assert 1 - gate_distances(*pair, after_sigmoid=True)[0, 0].item() == pytest.approx(after, abs=0.015)


def test_independent_rows_have_a_kl_of_one_and_a_cosine_that_is_far_from_zero():
    torch.manual_seed(0)
    ones = torch.ones(64, 1, 1, 1)
    maps = [AttentionMap(ones, torch.randn(64, 1, 196, 1), (14, 14), 0) for _ in range(2)]
    assert attention_distance(*maps).item() == pytest.approx(0.99, abs=0.05)
    assert F.cosine_similarity(maps[0].weights, maps[1].weights, dim=-1).mean().item() == pytest.approx(0.40, abs=0.03)
    assert attention_distance(*maps, measure="centred").item() == pytest.approx(1, abs=0.03)


def some_attention(seed, *, prefix, queries_per_patch=1, bias=False):
    generator = torch.Generator().manual_seed(seed)
    keys, queries = prefix + 6, prefix + 6 * queries_per_patch**2
    query, key = (torch.randn(2, 3, n, 4, generator=generator) for n in (queries, keys))
    table = torch.randn(3, queries, keys, generator=generator) if bias else None
    return AttentionMap(query, key, (2, 3), prefix, bias=table)


def log_probabilities(logits):
    return logits - logits.exp().sum().log()


def naive_rows(attention, rows, temperature):
    """One image's and head's rows after another."""
    prefix, result = attention.num_prefix_tokens, []
    for image in range(2):
        for head in range(3):
            logits = attention.query[image, head] @ attention.key[image, head].T
            logits = (logits if attention.bias is None else logits + attention.bias[head]) / temperature
            if rows == "all":
                result += [[log_probabilities(row) for row in logits]]
            elif prefix:
                result += [[log_probabilities(logits[0, prefix:])]]
            else:
                result += [[torch.stack([log_probabilities(row).exp() for row in logits]).mean(0).log()]]
    return result


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("rows", ["saliency", "all"])
@pytest.mark.parametrize("shape", [{"prefix": 2}, {"prefix": 0, "queries_per_patch": 2, "bias": True}])
def test_distances_of_attention_are_loops_over_rows(shape, rows, temperature):
    ours, theirs = some_attention(0, **shape), some_attention(1, **shape)
    divergences, angles = [], []
    for mine, other in zip(naive_rows(ours, rows, temperature), naive_rows(theirs, rows, temperature), strict=True):
        divergences += [(t.exp() * (t - s)).sum() for s, t in zip(mine, other, strict=True)]
        angles += [1 - cosine(s - s.mean(), t - t.mean()) for s, t in zip(mine, other, strict=True)]
    options = {"rows": rows, "temperature": temperature}
    found = attention_distance(ours, theirs, measure="kl", **options)
    torch.testing.assert_close(found, temperature**2 * torch.stack(divergences).mean())
    found = attention_distance(ours, theirs, measure="centred", **options)
    torch.testing.assert_close(found, torch.stack(angles).mean())


@pytest.mark.parametrize(("name", "heads"), [("vit_micro", 4), ("cmt_micro", 8)])
def test_rows_of_real_networks_are_distributions_over_patches(name, heads):
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=64).eval()
    found = log_rows(backbone.attention(torch.randn(2, 3, 64, 64)), "saliency")
    assert found.shape[:3] == (2, heads, 1)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, heads, 1))
