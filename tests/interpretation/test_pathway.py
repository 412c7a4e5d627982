"""The gradient along a route, beside one taken by hand; a layer whose open gates pass only a constant on is closed."""

import pytest
import torch
from torch import nn

from convsmith.interpretation import find_routes
from convsmith.interpretation.gates import GatedNetwork
from convsmith.interpretation.pathway import pathway_norms
from convsmith.interpretation.sites import plan_sites


class Forked(nn.Module):
    """Two convolutions beside a shortcut: what passes the second layer is only a part of the gradient."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((x + self.branch(x).relu()).mean((2, 3)))


def by_hand(model, x, gates, label, *, blocked=None):
    """Return logits and gradient of the label's logit by the stem's output; ``blocked``: not through the branch."""
    entrance = model.stem(x).detach().requires_grad_(True)
    stem, branch = gates.split(4, dim=1)
    inner = (entrance * stem[:, :, None, None]).relu()
    outer = model.branch(inner) * branch[:, :, None, None]
    if blocked:
        outer = outer.detach()
    logits = model.head((inner + outer.relu()).mean((2, 3)))
    (slope,) = torch.autograd.grad(logits.gather(1, label[:, None]).sum(), entrance)
    return logits, slope


@pytest.mark.parametrize("rows", [1, 5])
def test_norms_are_those_of_the_gradient_along_the_paths_through_each_layer(rows):
    torch.manual_seed(0)
    model, x = Forked().double().eval(), torch.randn(rows, 2, 7, 7, dtype=torch.float64)
    gates, label = torch.rand(rows, 8, dtype=torch.float64), torch.arange(rows) % 3
    plan = plan_sites(model, x, "conv")
    assert list(plan.widths) == [4, 4]
    with torch.enable_grad(), GatedNetwork(model, plan, x) as network:
        logits, norms = pathway_norms(network, gates, label)
        _, whole = pathway_norms(network, gates, label, layers=False)
    expected, slope = by_hand(model, x, gates, label)
    rest = by_hand(model, x, gates, label, blocked=True)[1]
    torch.testing.assert_close(logits, expected.detach())
    columns = [slope, slope, slope - rest]
    torch.testing.assert_close(norms, torch.stack([c.flatten(1).norm(dim=1) for c in columns], dim=1))
    torch.testing.assert_close(whole, norms[:, :1])


def test_a_gate_on_a_constant_channel_leaves_the_layer_closed_to_the_image():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(2, 2),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[0].weight.fill_(0.1)
        model[2].weight.zero_()
        model[2].bias.fill_(1.0)  # both channels of the second layer are 1 whatever the image shows
        model[6].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        model[6].bias.zero_()
    routes = find_routes(model, torch.rand(3, 1, 6, 6), gamma=0.001, mode="paper")
    assert not routes.flags.closed.any()
    assert not routes.flags.open.any()
    assert (routes.flags.image_share == 0).all()
    assert "pass nothing of the image on" in " ".join(routes.messages(0))
