import pytest
import torch
from torch import nn

from convsmith.errors import InvalidArgument
from convsmith.training import ClassificationTask, TrainConfig
from convsmith.training.optimizers import create_optimizer, set_rates


def task():
    return ClassificationTask(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)), 2)


def decays(optimizer, module):
    names = {id(p): n for n, p in module.named_parameters()}
    return {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}


def test_biases_and_norms_do_not_decay_unless_asked():
    t = task()
    found = decays(create_optimizer(t, TrainConfig(weight_decay=0.01)), t)
    assert {n for n, d in found.items() if d} == {"model.0.weight", "model.3.weight"}
    found = decays(create_optimizer(t, TrainConfig(weight_decay=0.01, decay_all=True)), t)
    assert set(found.values()) == {0.01}


def test_a_group_with_its_own_decay_keeps_it():
    class Own(ClassificationTask):
        def parameter_groups(self, lr):
            return [
                {"params": self.model[0].parameters(), "lr": lr, "weight_decay": 0.5},
                {"params": self.model[3].parameters(), "lr": 2 * lr},
            ]

    t = Own(task().model, 2)
    found = decays(create_optimizer(t, TrainConfig(weight_decay=0.01)), t)
    assert found == {"model.0.weight": 0.5, "model.0.bias": 0.5, "model.3.weight": 0.01, "model.3.bias": 0.0}


def test_kinds_and_their_constants():
    sgd = create_optimizer(task(), TrainConfig(momentum=0.8, nesterov=True))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)
    assert not create_optimizer(task(), TrainConfig(momentum=0.0)).defaults["nesterov"]
    adam = create_optimizer(task(), TrainConfig(optimizer="adamw", beta1=0.8, beta2=0.95, eps=1e-6))
    assert isinstance(adam, torch.optim.AdamW)
    assert (adam.defaults["betas"], adam.defaults["eps"]) == ((0.8, 0.95), 1e-6)


def test_rates_are_multiples_of_each_groups_own():
    class Two(ClassificationTask):
        def parameter_groups(self, lr):
            return [
                {"params": self.model[0].parameters(), "lr": lr},
                {"params": self.model[3].parameters(), "lr": 10 * lr},
            ]

    optimizer = create_optimizer(Two(task().model, 2), TrainConfig(lr=0.1))
    set_rates(optimizer, 0.5)
    assert sorted({g["lr"] for g in optimizer.param_groups}) == [0.05, 0.5]


def test_nothing_to_train_and_a_parameter_twice():
    frozen = task()
    frozen.requires_grad_(False)
    with pytest.raises(InvalidArgument, match="no parameter to train"):
        create_optimizer(frozen, TrainConfig())

    class Twice(ClassificationTask):
        def parameter_groups(self, lr):
            return [{"params": list(self.model.parameters()), "lr": lr}] * 2

    with pytest.raises(InvalidArgument, match="two groups"):
        create_optimizer(Twice(task().model, 2), TrainConfig())
