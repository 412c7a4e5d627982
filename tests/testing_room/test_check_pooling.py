import pytest
import torch

from convsmith.pooling import available, pooling_options
from convsmith.pooling.layers import GlobalAverage
from convsmith.testing import Nonconforming, check_pooling

SCRIPT = {"script": "TorchScript reads no annotations that are text; trace, export or ONNX"}
SPECTRAL = {
    "export": "eigenvalues have no exported form of ours; trace, or a root by products",
    "onnx": "ONNX has no operator for eigenvalues and Cholesky factors; a root by products",
}


def conforms(name, **options):
    by_products = {"newton-schulz", "polar-express"} & {options.get("method"), options.get("root")}
    spectral = name in ("mpn-cov", "g2denet", "raid-g", "l2emg", "deep-o2p") or options.get("root") == "eigh"
    exceptions = SCRIPT | (SPECTRAL if spectral and not by_products else {})
    if options.get("mode") == "de":  # Cholesky factors are exported, but ONNX has none
        del exceptions["export"]
    return check_pooling(name, options=options, exceptions=exceptions).excepted == exceptions


@pytest.mark.parametrize("name", available())
def test_every_pooling_conforms(name):
    assert conforms(name)


OPTIONS = [
    ("isqrt-cov", {"method": "polar-express", "iterations": 7}),
    ("isqrt-cov", {"normalization": "frobenius"}),
    ("isqrt-cov", {"compensate": False}),
    ("isqrt-cov", {"method": "polar-express", "iterations": 8, "normalization": "frobenius", "isometric": True}),
    ("mpn-cov", {"exponent": 0.3}),
    ("mpn-cov", {"normalization": "frobenius"}),
    ("mpn-cov", {"normalization": "spectral"}),
    ("deep-o2p", {"center": True, "ridge": 1e-8}),
    ("g2denet", {"method": "newton-schulz"}),
    ("g2denet", {"method": "polar-express", "iterations": 8}),
    ("raid-g", {"theta": 3.0, "mean_weight": 0.1}),
    ("l2emg", {"ridge": 1e-8}),
    ("l2emg", {"mode": "de"}),
    ("bilinear", {"root": "polar-express"}),
    ("improved-bilinear", {"root": "eigh"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), OPTIONS, ids=[f"{n}-{'-'.join(map(str, o.values()))}" for n, o in OPTIONS]
)
def test_every_option_conforms(name, options):
    assert conforms(name, **options)


def test_options_for_every_pooling_that_has_some():
    missing = {name for name in available() if pooling_options(name)} - {name for name, _ in OPTIONS}
    assert missing == {"compact-bilinear"}, "its options are sizes and a seed"


def test_a_pooling_that_breaks_rules_is_told_all_of_them(monkeypatch):
    def pool(self, x):
        x.mul_(2)
        return (x.mean((2, 3)) + torch.rand(1) + x.mean()).float()

    monkeypatch.setattr(GlobalAverage, "pool", pool)
    with pytest.raises(Nonconforming) as caught:
        check_pooling("average")
    for rule in ("the dtype stays", "samples do not influence each other", "arguments are never changed"):
        assert rule in str(caught.value)
