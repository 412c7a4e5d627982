"""Poolings inside the wrappers of several processes or devices: the same numbers and gradients as alone."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from convsmith.pooling import ISQRTCOV


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def outcome(module, layer, x):
    out = module(x)
    out.square().sum().backward()
    return [out.detach(), *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("wrap", [DistributedDataParallel, nn.DataParallel])
def test_wrapped_equals_alone(process_group, wrap):
    layer = ISQRTCOV(12, dim=6)
    x = torch.randn(4, 12, 5, 5)
    other = copy.deepcopy(layer)
    torch.testing.assert_close(outcome(wrap(other), other, x), outcome(layer, layer, x), rtol=1e-6, atol=1e-6)
