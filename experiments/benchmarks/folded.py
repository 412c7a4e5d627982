"""Folded IGCV networks beside MobileNetV2 and controls of equal MACs and equal parameters, in three runtimes.

``mobilenetv2_100`` has nearly the MACs and parameters of IGCV3-D (300.8 and 313.0 million, 3.50 and 3.49 million).
IGCV3-D's own table with one group, narrowed to equal MACs (313.2 million) and nearly equal parameters (3.41 million),
shows what the depth alone costs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from convsmith.compression import cost, fold_for_inference
from convsmith.compression.planning.measure import compiled_networks
from convsmith.models.igcv3 import igcv3_net
from experiments.benchmarks.contract import Bench, suite

#: width at which IGCV3-D's table with one group has its MACs (and with it the depth, at dense 1x1 convolutions)
DEEP_WIDTH = 0.72


@suite("folded")
def run(bench: Bench) -> None:
    """IGCV1/2/3 and their controls in ONNX Runtime, eager and compiled, 224x224 and 32x32, batch 1."""
    torch.manual_seed(0)
    side = 64 if bench.quick else 224
    networks = {
        "MobileNetV2 1.0": timm.create_model("mobilenetv2_100"),
        "IGCV3-D 1.0": timm.create_model("igcv3_d_100"),
        "one group, as deep, equal MACs": igcv3_net(width=DEEP_WIDTH, groups=(1, 1)),
    }
    small = {
        "ResNet-20": timm.create_model("cs_resnet20"),
        "IGCV1": timm.create_model("igcv1_small"),
        "IGCV2": timm.create_model("igcv2_small"),
        "IGCV3": timm.create_model("igcv3_cifar_small"),
    }
    with torch.no_grad():
        for found, size, first in ((networks, side, "MobileNetV2 1.0"), (small, 32, "ResNet-20")):
            x = torch.randn(1, 3, size, size, device=bench.device)
            _networks(bench, {name: net.to(bench.device).eval() for name, net in found.items()}, x, first)


def _networks(bench: Bench, networks: dict[str, nn.Module], x: Tensor, first: str) -> None:
    folded = {name: fold_for_inference(net) for name, net in networks.items()}
    settings = {
        f"{name}, million MACs and parameters": f"{found.macs / 1e6:.1f}, {found.params / 1e6:.3f}"
        for name, net in networks.items()
        for found in [cost(net, tuple(x.shape[1:]))]
    }
    runtimes: dict[str, dict[str, Callable[[], Any]]] = {
        "eager, as created": {name: _calling(net, x) for name, net in networks.items()},
        "eager, folded": {name: _calling(net, x) for name, net in folded.items()},
        "ONNX Runtime, folded": {name: in_onnxruntime(net, x) for name, net in folded.items()},
    }
    if not bench.quick:
        compiled = compiled_networks(folded, x)
        runtimes["torch.compile and freezing, folded"] = {
            name: _calling(net, x) for name, net in compiled.items() if not isinstance(net, str)
        }
    for runtime, arms in runtimes.items():
        if first not in arms:
            bench.notes.append(f"{runtime}: {first} did not compile here")
            continue
        aim = {"ONNX Runtime, folded": "IGCV3-D at most 1.15", "eager, as created": "IGCV3-D at most 1.5"}
        bench.compare(
            f"{runtime}, {x.shape[-1]}x{x.shape[-1]}, batch {len(x)}",
            arms,
            baseline=first,
            rounds=41,
            seconds=6,
            memory=False,
            settings=settings,
            aim=aim.get(runtime, "") if first == "MobileNetV2 1.0" else "",
        )


def _calling(net: Callable[[Tensor], Any], x: Tensor) -> Callable[[], Any]:
    return lambda: net(x)


def in_onnxruntime(net: nn.Module, x: Tensor) -> Callable[[], Any]:
    """Return a call of the network in ONNX Runtime with torch's number of threads, checked against torch."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "net.onnx")
        program = torch.onnx.export(net, (x,), dynamo=True, verbose=False)
        assert program is not None
        program.save(file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.cpu().numpy()}
    expected = net(x).cpu()
    torch.testing.assert_close(
        torch.from_numpy(session.run(None, feed)[0]), expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())
    )
    return lambda: session.run(None, feed)
