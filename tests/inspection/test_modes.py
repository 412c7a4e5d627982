"""A network comes back from evaluation as it was, and wrappers are looked through or refused by name."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from convsmith.errors import InvalidArgument
from convsmith.inspection.modes import check_evaluation, copied, eager, evaluating, unwrap


class Switching(nn.Module):
    """Its mode is more than a flag."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Dropout()
        self.switch = True

    def train(self, mode=True):
        self.switch = mode
        return super().train(mode)


def test_every_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.Dropout(), Switching()), Switching())
    model[0].eval()
    model[2].eval()
    model[1][1].inner.eval()
    before = [m.training for m in model.modules()]
    with evaluating(model):
        assert not any(m.training for m in model.modules())
        assert not model[1][1].switch
    assert [m.training for m in model.modules()] == before
    assert (model[1][1].switch, model[2].switch) == (True, False)


def test_modes_come_back_after_an_exception():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert [m.training for m in model.modules()] == [True, True, False]


def test_wrappers_are_looked_through():
    model = nn.Linear(2, 2)
    for wrapped in (
        nn.DataParallel(model),
        torch.compile(model, backend="eager"),
        nn.DataParallel(torch.compile(model)),
    ):
        assert unwrap(wrapped) is model
    average = AveragedModel(model)
    assert unwrap(average) is average.module


def test_scripted_and_sharded_models_are_refused():
    with pytest.raises(InvalidArgument, match="scripted"):
        unwrap(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)))
    sharded = type("FullyShardedDataParallel", (nn.Module,), {})()
    with pytest.raises(InvalidArgument, match="sharded"):
        unwrap(sharded)


def test_modules_compiled_in_place_run_eagerly_and_call_hooks():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].compile(backend="eager")
    assert "torch._dynamo" in sys.modules
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    with eager():
        model(torch.zeros(1, 2))
    assert seen == [1]


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.Dropout2d(), nn.ReLU()])
def test_training_mode_is_refused_by_name(layer):
    model = nn.Sequential(layer).eval()
    check_evaluation(model)
    layer.train()
    with pytest.raises(InvalidArgument, match=f"0 \\({type(layer).__name__}\\) is in training mode"):
        check_evaluation(model)


def test_batch_statistics_in_evaluation_are_refused():
    with pytest.raises(InvalidArgument, match="running statistics"):
        check_evaluation(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)).eval())


def test_a_copy_of_a_network_that_keeps_what_its_forward_made_with_gradients_on():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias, self.kept = nn.Parameter(torch.ones(3)), {}

        def forward(self, x):
            if not self.kept:
                self.kept["cpu"] = 2 * self.bias
            return x + self.kept["cpu"]

    model, x = nn.Sequential(Keeping()).eval(), torch.zeros(1, 3)
    wanted = model(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    own = copied(model)
    assert torch.equal(own(x), wanted)
    assert own[0].bias is not model[0].bias
    assert own[0].kept["cpu"] is not model[0].kept["cpu"]
    assert copied(model, shared=model.parameters())[0].bias is model[0].bias
