"""timm's optimizers, schedules and average, as a task and a configuration make them."""

import itertools
import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convsmith.errors import InvalidArgument
from convsmith.training import ClassificationTask, TrainConfig
from convsmith.training.recipe import create_optimizer, create_schedule


def task():
    return ClassificationTask(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)), 2)


def by_name(optimizer, module, key):
    names = {id(p): n for n, p in module.named_parameters()}
    return {names[id(p)]: g[key] for g in optimizer.param_groups for p in g["params"]}


def test_biases_and_norms_do_not_decay_unless_asked():
    t = task()
    found = by_name(create_optimizer(t, TrainConfig(weight_decay=0.01)), t, "weight_decay")
    assert {n for n, d in found.items() if d} == {"model.0.weight", "model.3.weight"}
    found = by_name(create_optimizer(t, TrainConfig(weight_decay=0.01, decay_all=True)), t, "weight_decay")
    assert set(found.values()) == {0.01}


def test_a_group_with_its_own_decay_keeps_it():
    class Own(ClassificationTask):
        def parameter_groups(self, lr):
            return [
                {"params": self.model[0].parameters(), "lr": lr, "weight_decay": 0.5},
                {"params": self.model[3].parameters(), "lr": 2 * lr},
            ]

    t = Own(task().model, 2)
    found = by_name(create_optimizer(t, TrainConfig(weight_decay=0.01)), t, "weight_decay")
    assert found == {"model.0.weight": 0.5, "model.0.bias": 0.5, "model.3.weight": 0.01, "model.3.bias": 0.0}


def test_kinds_and_their_constants():
    sgd = create_optimizer(task(), TrainConfig(momentum=0.8, nesterov=True))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)
    assert not create_optimizer(task(), TrainConfig(momentum=0.0)).defaults["nesterov"]
    assert not create_optimizer(task(), TrainConfig(optimizer="sgdw", nesterov=False)).defaults["nesterov"]
    adam = create_optimizer(task(), TrainConfig(optimizer="adamw", beta1=0.8, beta2=0.95, eps=1e-6))
    assert isinstance(adam, torch.optim.AdamW)
    assert (adam.defaults["betas"], adam.defaults["eps"]) == ((0.8, 0.95), 1e-6)


@pytest.mark.parametrize("name", ["lamb", "adan", "lion", "rmsproptf", "adafactor", "nadamw", "lookahead_adamw"])
def test_any_optimizer_of_timm_takes_a_step(name):
    t = task()
    before = t.model[3].weight.detach().clone()
    optimizer = create_optimizer(t, TrainConfig(optimizer=name, lr=0.01))
    t.model(torch.randn(4, 1, 4, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, t.model[3].weight)


def test_an_optimizer_nobody_knows_is_refused():
    with pytest.raises(InvalidArgument, match="did you mean 'adamw'"):
        TrainConfig(optimizer="adamww")


def test_layer_decay_is_timms():
    model = timm.create_model("resnet10t", num_classes=3)
    t = ClassificationTask(model, 3)
    config = TrainConfig(optimizer="adamw", lr=0.1, weight_decay=0.05, layer_decay=0.7)
    ours = create_optimizer(t, config)
    theirs = timm.optim.create_optimizer_v2(model, opt="adamw", lr=0.1, weight_decay=0.05, layer_decay=0.7)
    for key in ("lr_scale", "weight_decay"):
        expected = {f"model.{name}": value for name, value in by_name(theirs, model, key).items()}
        assert by_name(ours, t, key) == expected
    create_schedule(ours, config, 10).step_update(0)
    rates = by_name(ours, t, "lr")
    assert rates["model.fc.weight"] == pytest.approx(0.1)
    assert rates["model.conv1.0.weight"] < 0.05


def test_nothing_to_train_and_a_parameter_twice_are_refused():
    t = task()
    t.requires_grad_(False)
    with pytest.raises(InvalidArgument, match="no parameter to train"):
        create_optimizer(t, TrainConfig())

    class Twice(ClassificationTask):
        def parameter_groups(self, lr):
            return [{"params": self.model.parameters(), "lr": lr}, {"params": self.model[0].parameters(), "lr": lr}]

    with pytest.raises(InvalidArgument, match="two groups"):
        create_optimizer(Twice(task().model, 2), TrainConfig())


def rates(total, *, groups=(1.0,), **settings):
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in groups], lr=1.0)
    schedule = create_schedule(optimizer, TrainConfig(lr=1.0, **settings), total)
    found = []
    for t in range(total):
        schedule.step_update(t)
        found.append([g["lr"] for g in optimizer.param_groups])
    return found if len(groups) > 1 else [row[0] for row in found]


@pytest.mark.parametrize("name", ["cosine", "step"])
def test_schedules_equal_torchs(name):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    kind = torch.optim.lr_scheduler
    theirs = (
        kind.CosineAnnealingLR(optimizer, 40, eta_min=0.1)
        if name == "cosine"
        else kind.MultiStepLR(optimizer, [20, 30], 0.1)
    )
    for rate in rates(40, schedule=name, min_lr=0.1 if name == "cosine" else 0.0):
        assert math.isclose(rate, optimizer.param_groups[0]["lr"], rel_tol=1e-9)
        optimizer.step()
        theirs.step()


def test_inverse_is_ganins_annealing():
    """mu_p = mu_0 / (1 + 10 p)^0.75 with p = t / total: gamma = 10 / total."""
    for t, rate in enumerate(rates(100, schedule="inverse", gamma=0.1, power=0.75)):
        assert math.isclose(rate, 1 / (1 + 10 * t / 100) ** 0.75)


NAMES = ["cosine", "step", "inverse", "constant", "poly", "tanh", "wsd"]


@given(st.sampled_from(NAMES[:5]), st.integers(2, 200), st.integers(0, 50))
def test_rates_stay_between_zero_and_the_base_and_only_fall_after_warm_up(name, total, warmup):
    warmup = min(warmup, total - 1)
    values = rates(total, schedule=name, warmup_steps=warmup)
    assert all(0 <= v <= 1 for v in values)
    assert all(a >= b for a, b in itertools.pairwise(values[warmup:]))
    assert values[:warmup] == sorted(values[:warmup])


@pytest.mark.parametrize("name", NAMES)
def test_warm_up_is_linear_and_ends_at_the_base_rate(name):
    found = rates(20, schedule=name, warmup_steps=4, warmup_lr=0.2)
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    if name != "tanh":  # which begins a little below
        assert found[4] == pytest.approx(1.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_share_is_that_many_steps_and_fits_the_shortest_run(name):
    assert rates(40, schedule=name, warmup_share=0.1) == rates(40, schedule=name, warmup_steps=4)
    assert rates(3, schedule=name, warmup_share=0.3) == rates(3, schedule=name)
    with pytest.raises(InvalidArgument, match=r"ends before its run[\s\S]*warmup_share"):
        rates(20, schedule=name, warmup_steps=20)


def test_every_group_has_its_own_base_rate():
    found = rates(10, groups=(0.1, 1.0), schedule="cosine")
    assert all(b == pytest.approx(10 * a) for a, b in found)
