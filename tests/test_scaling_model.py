"""The formulas of docs/scaling.md against closed forms and counts."""

import pytest

from benchmarks.scaling_model import BFLOAT16, FLOAT32, PROTOTYPES, Machine, Model, Network, efficiency, ring_bytes

FREE = {"within": float("inf"), "latency_within": 0.0, "latency_between": 0.0}


def test_a_ring_sends_each_byte_twice_less_the_own_share():
    assert [ring_bytes(100, ranks) for ranks in (1, 2, 4)] == [0, 100, 150]


def test_between_nodes_an_all_reduce_takes_bytes_over_bandwidth():
    network = Network("", between=10.0, **FREE)
    assert network.all_reduce(100, 8) == 0
    assert network.all_reduce(100, 16) == pytest.approx(10)
    assert network.all_reduce(100, 8 * 1000) == pytest.approx(20, rel=2e-3)


def test_parameters_and_flop_are_those_of_the_network():
    model = Model.of("vit_small")
    head = 384 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 256 + 256 + 256 * PROTOTYPES
    assert model.parameters == 21_665_664 + head  # the paper's ViT-S/16
    assert model.forward(224) == pytest.approx(9.2e9, rel=0.01)  # twice the 4.6 G multiplications of DeiT-S
    assert model.ddp_bytes(FLOAT32) - model.ddp_bytes(BFLOAT16) == 2 * model.parameters


@pytest.mark.parametrize("name", ["vit_small", "vit_large"])
def test_efficiency_falls_with_ranks_and_rises_with_bandwidth_and_bf16(name):
    model, slow, fast = Model.of(name), Network("", between=12.5e9), Network("", between=50e9)
    settings = {"batch": 64, "machine": Machine()}
    row = [efficiency(model, slow, n, gradient=FLOAT32, **settings) for n in (1, 8, 64, 1024)]
    assert row == sorted(row, reverse=True) and row[0] == 1.0
    at_64 = [efficiency(model, net, 64, gradient=g, **settings) for net, g in ((slow, 4), (slow, 2), (fast, 2))]
    assert at_64 == sorted(at_64) and len(set(at_64)) == 3


def test_without_a_network_to_wait_for_ranks_only_wait_for_each_other():
    ideal, even = Network("", between=float("inf"), **FREE), Machine(jitter=0.0)
    assert efficiency(Model.of("vit_base"), ideal, 1024, batch=8, gradient=4, machine=even) == 1.0
