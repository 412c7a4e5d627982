"""The checks at the public boundary: what fits passes unchanged, what does not is refused by name."""

import importlib
import inspect
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from convsmith import arguments
from convsmith.errors import InvalidArgument
from tests.test_docstrings import ROOMS


def test_what_fits_is_returned_itself():
    x, layer = torch.zeros(2, 3), nn.ReLU()
    assert arguments.tensor("x", x, rank=2) is x
    assert arguments.tensor("labels", x.long(), floating=False).dtype == torch.long
    assert arguments.integer("n", 3, least=1, most=3) == 3
    assert arguments.number("gamma", 0, least=0) == 0.0
    assert arguments.module("model", layer) is layer
    arguments.one_of("side", None, (None, "auto"))


@pytest.mark.parametrize(
    ("check", "value", "says"),
    [
        (arguments.tensor, None, "NoneType"),
        (arguments.tensor, np.zeros(2), "as_tensor"),
        (arguments.tensor, torch.zeros(2, dtype=torch.long), r"x\.float"),
        (arguments.tensor, torch.zeros(2, dtype=torch.complex64), "real part"),
        (arguments.tensor, torch.eye(2).to_sparse(), "to_dense"),
        (arguments.tensor, torch.zeros(2, device="meta"), "meta device"),
        (lambda n, v: arguments.tensor(n, v, rank=(3, 4)), torch.zeros(2, 2), r"\(2, 2\)"),
        (arguments.integer, True, "bool True"),
        (arguments.integer, 2.0, "float"),
        (lambda n, v: arguments.integer(n, v, least=1), 0, "at least 1"),
        (arguments.number, float("nan"), "finite"),
        (arguments.number, "1", "str"),
        (arguments.number, 10**400, "finite"),
        (lambda n, v: arguments.of_type(n, v, float), 10**400, "a finite number"),
        (arguments.number, torch.zeros(2, 3, device="meta"), "meta"),
        (lambda n, v: arguments.number(n, v, above=0, below=1), 1, "above 0 and below 1"),
        (lambda n, v: arguments.number(n, v, least=0, most=1), 2, "at least 0 and at most 1"),
        (lambda n, v: arguments.one_of(n, v, ("auto", "channels")), "chanels", "did you mean 'channels'"),
        (lambda n, v: arguments.one_of(n, v, (1, 2)), True, "one of 1, 2"),
        (arguments.module, "resnet18", "create_model"),
    ],
)
def test_what_does_not_is_refused_by_name(check, value, says):
    with pytest.raises(InvalidArgument, match="it_was_this") as refused:
        check("it_was_this", value)
    assert says.replace("\\", "") in str(refused.value)
    assert refused.value.argument == "it_was_this"


def test_double_precision_stays():
    """What the poolings, routes and domain losses are not asked in their own tests."""
    from convsmith.inspection.features import extract_features
    from convsmith.training.classification import distillation_loss

    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    images = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    found = extract_features(model, images)
    assert found.features.equal(images.flatten(1))
    assert found.logits.dtype == torch.float64
    a, b = found.logits.detach(), found.logits.flip(0)
    p, q = (a / 2).softmax(1), (b / 2).softmax(1)
    assert float(distillation_loss(a, b, 2.0) - 4 * (q * (q / p).log()).sum() / 4) == pytest.approx(0, abs=1e-14)
    assert distillation_loss(a.half(), b.half(), 2.0).dtype == torch.float32


@arguments.checked
def _typed(model: nn.Module, n: int = 1, *, shares: Sequence[float] = (), side: Literal["a", "b"] = "a", **more: int):
    return n, more


def test_a_function_that_is_checked_takes_what_its_annotations_say():
    layer = nn.ReLU()
    assert _typed(layer) == (1, {})
    assert _typed(layer, 3, shares=np.linspace(0, 1, 3), side="b", other="any") == (3, {"other": "any"})
    assert _typed(layer, shares=[1, 0.5]) == _typed(layer, shares=range(2)) == (1, {})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": "resnet18"}, ["model must be a torch.nn.Module", "create_model"]),
        ({"n": 1.0}, ["n must be a whole number", "float 1.0"]),
        ({"n": True}, ["n must be a whole number"]),
        ({"shares": 0.5}, ["shares must be Sequence[a finite number]"]),
        ({"shares": [float("nan")]}, ["shares"]),
        ({"side": "c"}, ["side", "known: a, b"]),
    ],
)
def test_a_function_that_is_checked_refuses_by_name(given, says):
    with pytest.raises(InvalidArgument) as refused:
        _typed(**{"model": nn.ReLU(), **given})
    assert all(word in str(refused.value) for word in says)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_function_refuses_what_has_no_type(room):
    """A thing that is nothing in particular, in the place of everything that must be given: no traceback of torch's."""
    module = importlib.import_module(f"convsmith.{room}")
    for name in module.__all__:
        function = getattr(module, name)
        if not inspect.isfunction(function) or name in ("output_tensors", "triu_size"):
            continue
        given = inspect.signature(function).parameters.values()
        needed = [p.name for p in given if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        if needed:
            with pytest.raises(InvalidArgument):
                function(**dict.fromkeys(needed, object()))
