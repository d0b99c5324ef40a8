"""Every statistic of the sentinel against its definition, and the sums of ranks against those of one."""

import math

import pytest
import torch

from dino_ssl.dino.collapse import Observations, effective_rank, entropy

CPU = torch.device("cpu")
torch.set_num_threads(1)
T, S, B, K, D = 2, 4, 3, 6, 5


def some_views(seed, num_images=B):
    """Targets and student logits of one micro-batch, the loss of them, and the teacher's features."""
    torch.manual_seed(seed)
    targets = torch.randn(T, num_images, K).mul(3).softmax(-1)
    logits = torch.randn(S, num_images, K)
    pairs = [(t, s) for t in range(T) for s in range(S) if t != s]
    loss = torch.stack([-(targets[t] * logits[s].log_softmax(-1)).sum(-1).mean() for t, s in pairs]).mean()
    return targets, logits, loss, torch.randn(T * num_images, D)


def observed(batches, num_features=100):
    observations = Observations(K, CPU, num_features=num_features)
    for targets, logits, loss, features in batches:
        observations.add(targets, logits, loss)
        observations.keep(features)
    return observations


def statistics(batches):
    return {name: float(value) for name, value in observed(batches).totals().statistics().items()}


def test_entropies_and_the_divergence_are_the_sums_of_their_definitions():
    batches = [some_views(0), some_views(1)]
    rows = [row for targets, *_ in batches for view in targets for row in view]
    entropies = [-sum(p * math.log(p) for p in row.tolist()) for row in rows]
    mean = torch.stack(rows).mean(0).tolist()
    divergences = []
    for targets, logits, _, _ in batches:
        student = logits.log_softmax(-1)
        pairs = [(targets[t, b], student[s, b]) for t in range(T) for s in range(S) for b in range(B) if t != s]
        divergences += [(p * (p.log() - q)).sum().item() for p, q in pairs]
    found = statistics(batches)
    assert found["teacher_entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-6)
    assert found["mean_entropy"] == pytest.approx(-sum(p * math.log(p) for p in mean), rel=1e-6)
    assert found["divergence"] == pytest.approx(sum(divergences) / len(divergences), rel=1e-5)


def test_prototypes_in_use_are_those_that_were_some_rows_best():
    targets, logits, loss, features = some_views(2)
    used = {row.argmax().item() for view in targets for row in view}
    assert statistics([(targets, logits, loss, features)])["prototypes_used"] == len(used) / min(K, T * B)
    one_image = (targets[:, :1], logits[:, :1], loss, features)
    assert statistics([one_image])["prototypes_used"] in (0.5, 1.0), "two rows can use two prototypes, not six"


def test_agreement_compares_the_teacher_with_the_student_on_the_other_global_view():
    targets, logits, loss, features = some_views(3)
    logits[:2] = targets.flip(0)  # what the teacher says of the other view
    assert statistics([(targets, logits, loss, features)])["agreement"] == 1.0
    logits[0] = -targets[1]
    assert statistics([(targets, logits, loss, features)])["agreement"] == 0.5


def test_the_effective_rank_is_that_of_the_singular_values():
    batches = [some_views(seed) for seed in range(4)]
    singular = torch.linalg.svdvals(torch.cat([batch[-1] for batch in batches]).double())
    shares = singular / singular.sum()
    expected = math.exp(-sum(p * math.log(p) for p in shares.tolist()))
    assert statistics(batches)["effective_rank"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_effective_rank_of_equal_singular_values_along_n_axes_is_n(rank):
    squares = torch.diag(torch.tensor([4.0] * rank + [0.0] * (5 - rank)).double())
    assert effective_rank(squares).item() == pytest.approx(rank)


def test_edges_equal_features_and_numbers_that_are_not_finite_raise_nothing():
    assert effective_rank(torch.zeros(3, 3)).item() == 1.0
    assert math.isfinite(effective_rank(torch.full((3, 3), math.nan)))
    assert entropy(torch.tensor([0.0, 1.0, 0.0])).item() == 0.0
    assert entropy(torch.full((8,), 1 / 8)).item() == pytest.approx(math.log(8))


def test_the_ring_holds_the_newest_features_and_forgetting_the_sums_leaves_it():
    observations = observed([some_views(seed) for seed in range(4)], num_features=7)
    newest = torch.cat([some_views(seed)[-1] for seed in range(4)])[-7:]
    torch.testing.assert_close(
        observations.features.sort(dim=0).values, newest.sort(dim=0).values, msg="the same rows, in any order"
    )
    observations.forget()
    totals = observations.totals()
    torch.testing.assert_close(totals.squares, newest.double().T @ newest.double())
    assert totals.scalars.sum() == totals.probabilities.sum() == totals.used.sum() == 0
    large = some_views(9, num_images=20)[-1]
    observations.keep(large)
    torch.testing.assert_close(observations.features.sort(dim=0).values, large[-7:].sort(dim=0).values)


def test_the_sums_of_two_ranks_are_those_of_one_that_saw_all():
    batches = [some_views(seed) for seed in range(4)]
    one = observed(batches).totals()
    first, second = observed(batches[:2]).totals(), observed(batches[2:]).totals()
    others = dict(zip(map(id, vars(first).values()), vars(second).values(), strict=True))
    joined = first.over(lambda total: total + others[id(total)])
    torch.testing.assert_close(joined.statistics(), one.statistics())


def test_observations_go_on_from_a_checkpoint_as_if_nothing_had_happened():
    batches = [some_views(seed) for seed in range(4)]
    before, after = observed(batches[:2], num_features=7), Observations(K, CPU, num_features=7)
    after.load_state_dict(before.state_dict())
    for observations in (before, after):
        for targets, logits, loss, features in batches[2:]:
            observations.add(targets, logits, loss)
            observations.keep(features)
    torch.testing.assert_close(vars(after), vars(before), atol=0, rtol=0)
