"""The suite runs in its quick form, and its deep control has IGCV3-D's MACs."""

import pytest
import timm

import convsmith  # noqa: F401  (registers our models)
from convsmith.compression import cost
from convsmith.models.igcv3 import igcv3_net
from experiments import benchmarks
from experiments.benchmarks.folded import DEEP_WIDTH


def test_the_control_has_equal_macs_and_nearly_equal_parameters():
    ours = cost(timm.create_model("igcv3_d_100"), (3, 224, 224))
    control = cost(igcv3_net(width=DEEP_WIDTH, groups=(1, 1)), (3, 224, 224))
    assert abs(control.macs / ours.macs - 1) < 0.01
    assert abs(control.params / ours.params - 1) < 0.03


@pytest.mark.slow
def test_the_suite_holds_every_network_in_every_runtime():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    value = benchmarks.run_suite("folded", quick=True, threads=1)
    assert [case["name"].rsplit(", ", 2)[0] for case in value["cases"]] == 2 * [
        "eager, as created",
        "eager, folded",
        "ONNX Runtime, folded",
    ]
    assert set(value["cases"][2]["arms"]) == {"MobileNetV2 1.0", "IGCV3-D 1.0", "one group, as deep, equal MACs"}
    assert set(value["cases"][5]["arms"]) == {"ResNet-20", "IGCV1", "IGCV2", "IGCV3"}
