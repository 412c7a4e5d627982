"""The routing studies on a network trained for two epochs: cells hold what verdicts need, which follow their rule."""

from types import SimpleNamespace

import pytest

from convsmith.interpretation import find_routes
from experiments.studies import (
    digit_routes,
    routing_adversarial,
    routing_detector,
    routing_layers,
    routing_removal,
    routing_sparsity,
)

MODULES = (routing_adversarial, routing_detector, routing_layers, routing_removal, routing_sparsity)


@pytest.fixture
def quick_network(monkeypatch):
    model = digit_routes.network("normalised", 0, epochs=2)
    for module in MODULES:
        monkeypatch.setattr(module, "network", lambda kind, seed, device: model)


def test_the_network_is_repeatable_and_takes_no_global_random_state():
    import torch

    state = torch.get_rng_state()
    first = digit_routes.network("normalised", 1, epochs=1)
    digit_routes.network.cache_clear()
    second = digit_routes.network("normalised", 1, epochs=1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert sum(digit_routes.WIDTHS) == 800


def test_cells_hold_what_the_verdicts_need(quick_network, monkeypatch):
    # the search with open layers has tests of its own; here its routes only have to be routes
    def brief(model, images, labels, open_layers):
        return find_routes(model, images, mode="paper", steps=5)

    monkeypatch.setattr(routing_adversarial, "find_routes", brief)
    sparse = routing_sparsity.measure("plain", "paper", 0, 8, "cpu")
    assert sparse["kept"] == 100.0
    assert 0 <= sparse["critical"] <= 100
    curve = routing_removal.measure("plain", "random", 0, 8, "cpu")
    assert len(curve) == len(routing_removal.FRACTIONS)
    by_layer = routing_layers.measure("plain", 0, 40, "cpu")
    assert len(by_layer) == 7
    overlap = routing_adversarial.measure("plain", 0, 40, "cpu")
    assert set(overlap["overlap"]) == set(routing_adversarial.PAIRS)
    assert all(len(v) == 7 for v in overlap["overlap"].values())


class Told(SimpleNamespace):
    """A study whose cells are given instead of computed."""

    def cell(self, key, work, total=0):
        return self.answer(key)


def removal_cells(critical, random):
    def answer(key):
        arm = key.split("|")[1]
        at = random if arm in ("random", "least critical") else critical
        return [95.0, at, at, at, at]

    return Told(seeds=[0, 1, 2], quick=True, device="cpu", answer=answer)


@pytest.mark.parametrize(
    ("critical", "random", "verdict"),
    [(40.0, 94.0, "reproduced"), (60.0, 94.0, "partly"), (85.0, 94.0, "not reproduced"), (40.0, 85.0, "partly")],
)
def test_the_removal_verdict_follows_its_rule(critical, random, verdict):
    assert routing_removal.removal(removal_cells(critical, random)).verdict == verdict


@pytest.mark.parametrize(("share", "kept", "verdict"), [(5.0, 100.0, "reproduced"), (30.0, 100.0, "not reproduced")])
def test_the_sparsity_verdict_follows_its_rule(share, kept, verdict):
    cell = dict.fromkeys(("accuracy", "divergence", "closed", "dead", "overlap"), 1.0) | {
        "critical": share,
        "kept": kept,
    }
    told = Told(seeds=[0, 1, 2], quick=True, device="cpu", answer=lambda key: cell)
    assert routing_sparsity.sparsity(told).verdict == verdict


@pytest.mark.slow
def test_one_percent_of_the_most_critical_nodes_carries_at_least_half_of_the_accuracy():
    """At 1 % of 800 nodes: critical ones at least halve the accuracy, random ones cost less than five points."""
    full, _, critical, *_ = routing_removal.measure("plain", "routes, light penalty", 0, 150, "cpu")
    random = routing_removal.measure("plain", "random", 0, 150, "cpu")[2]
    assert full >= 90
    assert critical <= full / 2
    assert full - random < 5
