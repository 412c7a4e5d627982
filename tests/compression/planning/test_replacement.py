"""A new module stands wherever the old one stood."""

from torch import nn

from convsmith.compression.planning.replacement import replace


def test_replace_reaches_every_place_of_a_shared_module():
    model = nn.Module()
    model.a = nn.Linear(2, 2)
    model.list = nn.ModuleList([model.a, nn.Linear(2, 2)])
    new = nn.Linear(2, 2)
    replace(model, "a", new)
    assert model.a is new
    assert model.list[0] is new
