"""The surgeon's order and weights are those of least squares, one channel after the other."""

import pytest
import torch
from torch import nn

from convsmith.compression import compress, compression_history, plan_compression
from convsmith.compression.methods.channels import Group, Part
from convsmith.compression.methods.ranking import hide_made_good, input_moments, least_missed
from convsmith.errors import InvalidArgument

GENERATOR = torch.Generator().manual_seed(0)


def readers(kind):
    """Return a network of one producer and two readers of its six channels, and the group they form."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 5, 3 if kind == "wide" else 1)})
    parts = [Part("b", torch.arange(6), torch.arange(6))]
    if kind == "two":
        model["c"] = nn.Conv2d(6, 4, 1)
        parts.append(Part("c", torch.arange(6).flip(0), torch.arange(6)))
    return model, Group("a", 6, (), tuple(parts), ())


def naive(weights, moments, owns, size):
    """Take out the channel without which the readers' best other weights lose least, again and again."""
    order, costs, left, before = [], [], list(range(size)), 0.0

    def loss(channels):
        total = 0.0
        for weight, moment, own in zip(weights, moments, owns, strict=True):
            keep = [int(own[c]) for c in channels]
            best = torch.linalg.solve(moment[keep][:, keep], moment[keep] @ weight)
            whole = (weight * (moment @ weight)).sum()
            total += float((whole - (best * (moment[keep] @ weight)).sum()) / whole)
        return total

    while left:
        worth = {c: loss([k for k in left if k != c]) for c in left}
        going = min(worth, key=worth.get)
        order.append(going)
        costs.append(worth[going] - before)
        before = worth[going]
        left.remove(going)
    return order, costs


@pytest.mark.parametrize("kind", ["one", "two", "wide"])
def test_channels_go_as_naive_least_squares_says(kind):
    model, group = readers(kind)
    base = (
        torch.randn(40, 6, generator=GENERATOR, dtype=torch.float64) @ torch.randn(6, 6, generator=GENERATOR).double()
    )
    moments = {part.name: base.mT @ base / 40 + (i + 1) * torch.eye(6) for i, part in enumerate(group.consumers)}
    weights = [model[p.name].weight.detach().double().transpose(0, 1).flatten(1) for p in group.consumers]
    order, costs = naive(weights, list(moments.values()), [p.own for p in group.consumers], 6)
    found = least_missed(model, group, moments)
    assert found.order.tolist() == order
    torch.testing.assert_close(found.worth, torch.tensor(costs, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_the_other_weights_make_good_for_what_goes():
    model, group = readers("two")
    base = torch.randn(40, 6, generator=GENERATOR, dtype=torch.float64)
    moments = {part.name: base.mT @ base / 40 for part in group.consumers}
    before = {name: module.weight.detach().clone() for name, module in model.items()}
    undo = hide_made_good(model, group, torch.tensor([1, 4]), moments)
    for part in group.consumers:
        gone = part.own[[1, 4]]
        keep = [c for c in range(6) if c not in gone.tolist()]
        wanted = torch.linalg.lstsq(base[:, keep], base @ before[part.name][:, :, 0, 0].double().mT).solution
        got = model[part.name].weight.detach()[:, :, 0, 0]
        assert bool((got[:, gone] == 0).all())
        torch.testing.assert_close(got[:, keep].double(), wanted.mT, rtol=1e-4, atol=1e-5)
    for module, weight in undo:
        assert torch.equal(weight, before["b" if module is model["b"] else "c"])


def test_moments_are_those_of_what_enters():
    model, images = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)), torch.randn(40, 3, 4, 4)
    group = Group("0", 6, (), (Part("1", torch.arange(6), torch.arange(6)),), ())
    with torch.no_grad():
        x = model[0](images).transpose(0, 1).flatten(1).double()
        found = input_moments(model, images, [group])["1"]
    torch.testing.assert_close(
        found - torch.diag(found.diagonal() - (x @ x.mT / x.shape[1]).diagonal()), x @ x.mT / x.shape[1]
    )


def test_with_images_the_surgeon_decides_and_without_them_it_is_refused(Plain, settled):
    images = torch.randn(64, 1, 8, 8, generator=GENERATOR)
    network = settled(Plain(), images)
    with torch.no_grad():  # a channel with large filters that another doubles: by their norm it would stay
        network.conv1.weight[3] = 2 * network.conv1.weight[5]
    kept = {}
    for criterion in ("auto", "surgeon", "l1"):
        made = compress(network, "prune-filters", example=images, criterion=criterion, keep=0.5, reconstruct=False)
        kept[criterion] = {n: v["kept"] for n, v in compression_history(made)[0]["layers"].items() if "kept" in v}
    assert kept["auto"] == kept["surgeon"] != kept["l1"]
    with pytest.raises(InvalidArgument, match="64 real ones"):
        compress(network, "prune-filters", example=images[:8], criterion="surgeon", keep=0.5)


def test_a_scan_judges_on_images_that_the_basis_did_not_see():
    """The first images excite other channels than the rest: what suits these loses those."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model.requires_grad_(False)
    images = torch.randn(96, 8, 4, 4)
    images[:32, 4:], images[32:, :4] = 0, 0
    other = images[torch.randperm(96)]
    harm = {}
    for name, given in (("apart", images), ("mixed", other)):
        plan = plan_compression(model, "low-rank", example=given, keep_macs=0.8)
        harm[name] = sum(c.sensitivity for c in plan.choices if c.sensitivity is not None)
    assert harm["apart"] > 2 * harm["mixed"]
