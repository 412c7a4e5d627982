import pytest
import timm
from timm.models import model_entrypoint

import convsmith  # noqa: F401  (registers our models)
from convsmith.models.residual import CifarResNet
from convsmith.testing import Nonconforming, check_model

QUICK = {
    "attached_pooling",
    "cs_lenet",
    "cs_resnet20",
    "igcv1_small",
    "igcv2_small",
    "igcv3_cifar_small",
    "dmrnet_small",
}
NAMES = [name for name in timm.list_models() if model_entrypoint(name).__module__.startswith("convsmith.")]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_every_network_of_ours_conforms(name):
    assert check_model(name).excepted == {}


def test_a_network_that_breaks_rules_is_told_all_of_them(monkeypatch):
    def forward_features(self, x):
        x.add_(1)
        return self.layer3(self.layer2(self.layer1(self.act1(self.conv1(x)))))

    monkeypatch.setattr(CifarResNet, "forward_features", forward_features)
    with pytest.raises(Nonconforming) as caught:
        check_model("cs_resnet20", arguments={"width": 4, "depth": 8})
    for rule in ("every parameter gets a gradient", "arguments are never changed"):
        assert rule in str(caught.value)
