from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from dino_ssl.data.order import BatchOrder, Permutation, ShardOrder, Shares, share_out


def keys(num_images=23, *, shares=Shares(1, 1, 6), rank=0, start=0, total=8, seed=0, **more):  # noqa: B008
    order = BatchOrder(num_images, seed=seed, shares=shares, rank=rank, start_step=start, total_steps=total, **more)
    return list(order)


def permuted(length, seed=0):
    return Permutation(length, np.random.default_rng(seed))(np.arange(length))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 17, 255, 1000, 65537])
def test_a_permutation_visits_everything_once(length):
    assert sorted(permuted(length).tolist()) == list(range(length))


def test_a_permutation_is_computed_where_it_is_asked_for():
    order = Permutation(1000, np.random.default_rng(0))
    whole, places = order(np.arange(1000)), np.array([999, 3, 500])
    assert order(places).tolist() == whole[places].tolist()


def test_all_orders_of_four_are_equally_frequent():
    """4,800 permutations: 200 of each of the 24 orders, standard deviation 14."""
    counts = Counter(tuple(permuted(4, seed).tolist()) for seed in range(4800))
    assert set(counts) == set(permutations(range(4)))
    assert min(counts.values()) > 130 and max(counts.values()) < 270


def test_a_permutation_looks_random_to_a_rank_correlation_and_to_its_fixed_points():
    """Correlation with the identity has standard deviation 1/sqrt(n); fixed points are Poisson with mean 1."""
    orders = [permuted(2000, seed) for seed in range(200)]
    correlations = [np.corrcoef(order, np.arange(2000))[0, 1] for order in orders]
    neighbours = [np.corrcoef(order[1:], order[:-1])[0, 1] for order in orders]
    for values in (correlations, neighbours):
        assert abs(np.mean(values)) < 4 / np.sqrt(2000 * 200)
        assert np.std(values) == pytest.approx(1 / np.sqrt(2000), rel=0.25)
    assert np.mean([(order == np.arange(2000)).sum() for order in orders]) == pytest.approx(1, abs=0.3)


def test_a_hundred_million_images_need_no_table():
    order = keys(10**8, shares=Shares(1, 1, 4), start=10**7, total=10**7 + 2)
    indices = [index for batch in order for _, index in batch]
    assert len(set(indices)) == 8 and all(0 <= index < 10**8 for index in indices)


def test_an_epoch_visits_images_once_and_drops_the_incomplete_batch():
    epoch = [index for batch in keys()[:3] for _, index in batch]
    assert len(epoch) == len(set(epoch)) == 18
    assert [{epoch for epoch, _ in batch} for batch in keys()] == [{0}] * 3 + [{1}] * 3 + [{2}] * 2


def test_one_image_is_an_epoch_of_its_own():
    assert keys(1, shares=Shares(1, 1, 1), total=3) == [[(0, 0)], [(1, 0)], [(2, 0)]]


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = keys()[:3], keys()[3:6]
    assert [i for b in first for _, i in b] != [i for b in second for _, i in b]
    assert keys(seed=1)[:3] != first


SHARDS = {"shard_sizes": np.array([5, 9, 1, 8]), "buffer": 7}


@pytest.mark.parametrize("more", [{}, SHARDS])
@pytest.mark.parametrize("start", [1, 3, 4, 7])
def test_starting_at_a_step_gives_the_rest_of_the_whole_run(start, more):
    assert keys(start=start, **more) == keys(**more)[start:]


@pytest.mark.parametrize("more", [{}, {"shard_sizes": np.array([15, 20, 5]), "buffer": 12}])
@pytest.mark.parametrize(("ranks", "accumulation"), [(2, 1), (1, 2), (2, 2), (4, 1), (1, 4)])
def test_ranks_and_micro_batches_share_the_same_global_batch(ranks, accumulation, more):
    shares = Shares(ranks, accumulation, 8 // (ranks * accumulation))
    whole = keys(num_images=40, shares=Shares(1, 1, 8), **more)
    parts = [keys(num_images=40, shares=shares, rank=rank, **more) for rank in range(ranks)]
    for step, batch in enumerate(whole):
        micro = slice(step * accumulation, (step + 1) * accumulation)
        # Micro-batch by micro-batch, the ranks in turn: exactly the order of the global batch.
        together = [key for group in zip(*(part[micro] for part in parts), strict=True) for p in group for key in p]
        assert together == batch


def test_shards_come_in_random_order_and_every_image_once():
    sizes = np.array([50, 80, 0, 30, 40])
    orders = [ShardOrder(sizes, 16, 0, epoch)(np.arange(200)) for epoch in range(8)]
    assert all(sorted(order.tolist()) == list(range(200)) for order in orders)
    shard = np.repeat(np.arange(5), sizes)
    first_shards = {int(shard[order[0]]) for order in orders}
    assert len(first_shards) > 1


def test_images_of_a_buffer_come_from_neighbouring_shards_only():
    """A block of 16 images spans at most two of the shards of 50, so that few need to be open."""
    order = ShardOrder(np.full(20, 50), 16, 0, 0)(np.arange(1000))
    blocks = [{int(index) // 50 for index in order[start : start + 16]} for start in range(0, 1000, 16)]
    assert max(map(len, blocks)) <= 2
    # Within a block the order is random: in order, each step would be 1.
    assert np.mean(np.diff(order[:16]) == 1) < 0.5


@pytest.mark.parametrize(
    ("batch", "ranks", "limit", "expected"),
    [
        (64, 1, None, (1, 64)),
        (64, 2, None, (1, 32)),
        (64, 2, 16, (2, 16)),
        (60, 1, 16, (4, 15)),
        (7, 1, 3, (7, 1)),
    ],
)
def test_a_batch_is_shared_out_in_the_fewest_equal_parts(batch, ranks, limit, expected):
    shares = share_out(batch, ranks, limit)
    assert (shares.accumulation, shares.micro_batch) == expected
    assert shares.batch_size == batch


def test_a_batch_that_does_not_divide_among_ranks_is_refused():
    with pytest.raises(ValueError, match=r"batch_size=10 does not divide among 4 ranks; write --batch-size 8"):
        share_out(10, 4, None)
