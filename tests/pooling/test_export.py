"""torch.compile, torch.export and ONNX for every pooling: the same numbers, or an honest error."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from convsmith.pooling import POOLINGS, available

#: needs eigenvalues, Cholesky or substitution, for which neither Dynamo's graph of ours nor ONNX has an operator
SPECTRAL = {"mpn-cov", "g2denet", "raid-g", "l2emg", "deep-o2p"}
MATMUL = sorted(set(available()) - SPECTRAL)


def layer(name, **kwargs):
    torch.manual_seed(0)
    return POOLINGS[name](6, **kwargs).eval()


CASES = [(name, {}) for name in MATMUL] + [("g2denet", {"method": "newton-schulz"}), ("isqrt-cov", {"dim": None})]


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_torch_export_gives_the_same(name, kwargs):
    module, x = layer(name, **kwargs), torch.randn(2, 6, 4, 4)
    exported = torch.export.export(module, (x,)).module()
    assert_close(exported(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_onnx_gives_the_same_in_onnxruntime(name, kwargs, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module, x = layer(name, **kwargs), torch.randn(2, 6, 4, 4)
    path = str(tmp_path / "pooling.onnx")
    torch.onnx.export(module, (x,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(out, module(x).detach().numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", sorted(SPECTRAL))
def test_the_rest_say_so(name):
    with pytest.raises(Exception, match="eigenvalue"):
        torch.export.export(layer(name), (torch.randn(2, 6, 4, 4),))
