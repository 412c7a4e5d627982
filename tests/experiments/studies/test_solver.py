"""The reference of ``routing/solver`` beside a search by hand, and the verdict by its rule."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from convsmith.interpretation import find_routes
from experiments.studies import routing_solver
from experiments.studies.routing_solver import reference
from experiments.studies.routing_solver import routing_solver as study


def test_the_reference_ends_where_a_fine_grid_of_two_gates_is_lowest():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        for parameter, values in zip(
            model.parameters(), ([1.0, 0.5], [0, 0], [2.0, 1.0, 0.0, 0.5], [0, 0]), strict=True
        ):
            parameter.copy_(torch.tensor(values).view_as(parameter))
    image, gamma = torch.ones(1, 1, 3, 3), 0.1
    inside = torch.tensor([1.0, 0.5])
    full = (torch.tensor([[2.0, 1.0], [0.0, 0.5]]) @ inside).softmax(0)
    axis = torch.linspace(0, 2, 201)
    gates = torch.cartesian_prod(axis, axis)
    logits = (gates * inside) @ torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    value = -(full * logits.log_softmax(1)).sum(1) + gamma * gates.sum(1)
    lowest = value[logits.argmax(1) == full.argmax()].min()
    found = reference(model, image, gamma, 500, 5.0)[0]
    assert lowest - 2e-4 < found <= lowest + 1e-4
    assert found < find_routes(model, image, gamma=gamma, mode="paper", steps=1).objective[0]


def told(**changed):
    row = {"objective": 1.0, "reference": 1.0, "converged": 1.0, "passes": 50.0, "critical": 0.02, "batch": 0.0,
           "nodes": 1.0, "double": 0.0} | changed  # fmt: skip
    return SimpleNamespace(
        quick=False, cell=lambda key, work, total: changed.get("cat", [4.0] * 3) if key == "cat" else [row] * 10
    )


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "reproduced"),
        ({"objective": 1.03}, "partly"),
        ({"passes": 61.0}, "partly"),
        ({"cat": [4.0, 4.8, 4.0]}, "partly"),
        ({"nodes": 0.98}, "partly"),
        ({"converged": 0.0, "batch": 0.02, "double": 0.03, "objective": 1.2}, "not reproduced"),
    ],
)
def test_the_verdict_follows_its_rule(changed, verdict):
    assert study(told(**changed)).verdict == verdict


def test_a_row_counts_by_its_own_ratio():
    rows = [
        {"objective": objective, "reference": 1.0, "converged": 0, "passes": passes, "critical": 0.1, "batch": batch,
         "nodes": nodes, "double": 0}
        for objective, passes, batch, nodes in ((1.0, 5, 0, 1), (0.5, 9, 0.2, 0.9), (1.2, 7, 0, 1))
    ]  # fmt: skip
    facts = routing_solver.summary(rows)
    assert facts["within"] == pytest.approx(2 / 3)
    assert (facts["worst"], facts["batch"], facts["nodes"], facts["passes"]) == (1.2, 0.2, 0.9, 7)
