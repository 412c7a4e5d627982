"""A latency budget: the plan found is the largest that was measured to be fast enough."""

import pytest
import torch

from convsmith.compression import plan_compression
from convsmith.compression.planning import latency
from convsmith.errors import InvalidArgument

IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network(Plain, settled):
    return settled(Plain(), IMAGES)


def test_bisection_finds_the_largest_fast_plan(network, monkeypatch):
    """With time proportional to MACs the plan must come out at the asked share."""
    monkeypatch.setattr(latency, "_share", lambda base, subject, method, plan, images, runtime: plan.kept("macs"))
    plan = plan_compression(network, "low-rank", example=IMAGES, keep_latency=0.5)
    assert 0.4 <= plan.kept("macs") <= 0.5
    assert plan.budget.kind == "latency"
    assert "measured latency" in plan.choices[0].note


def test_unreachable_speed_names_the_best(network, monkeypatch):
    monkeypatch.setattr(latency, "_share", lambda *_: 0.9)
    with pytest.raises(InvalidArgument, match=r"fastest plan tried takes 0\.90"):
        plan_compression(network, "low-rank", example=IMAGES, keep_latency=0.5)


def test_real_times_are_taken_in_turns(network):
    a, b = latency.time_side_by_side([network, lambda x: [network(x) for _ in range(4)]], IMAGES, seconds=0.05)
    assert len(a) == len(b) >= 5
    assert min(b) > 2 * min(a)


def test_keeping_all_the_time_keeps_all(network):
    plan = plan_compression(network, "low-rank", example=IMAGES, keep_latency=1.0)
    assert plan.settings() == {}


def test_a_budget_of_time_leaves_the_interpolative_form_out(monkeypatch):
    """Fewer numbers, but outputs put back in order: that costs the time they save."""
    torch.manual_seed(0)
    pointwise = torch.nn.Sequential(torch.nn.Conv2d(1, 12, 3), torch.nn.Conv2d(12, 48, 1), torch.nn.Conv2d(48, 12, 1))
    monkeypatch.setattr(latency, "_share", lambda base, subject, method, plan, images, runtime: plan.kept("macs"))

    def forms(**budget):
        plan = plan_compression(pointwise, "low-rank", example=IMAGES, **budget)
        return {setting["decomposition"] for setting in plan.settings().values()}

    assert "interpolative" in forms(keep_macs=0.7)
    assert forms(keep_latency=0.7) == {"svd"}
