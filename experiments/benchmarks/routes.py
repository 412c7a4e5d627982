"""Routes of a batch beside the one-image loop every public implementation uses, memory, and photographs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from convsmith.interpretation import Routes, find_routes, score_units
from experiments.benchmarks.contract import Bench, suite
from experiments.datasets.backbone import pretrained
from experiments.datasets.photographs import photographs

#: sample photographs of things that the network knows
PHOTOGRAPHS = ("chelsea", "china", "coffee", "flower")
#: forward and backward passes that a search on a photograph may take
PASSES = 60


@suite("routes")
def run(bench: Bench) -> None:
    """Time per image of batched routes against one image at a time, same network and steps, and peak memory."""
    steps = 5 if bench.quick else 30
    small = small_network().to(bench.device).eval()
    images = torch.rand(8 if bench.quick else 64, 1, 28, 28, device=bench.device)
    _compare(bench, "small VGG, 28x28", small, images, steps, "conv")
    import timm

    torch.manual_seed(0)
    residual = timm.create_model("resnet18", num_classes=10).to(bench.device).eval()
    larger = torch.rand(4 if bench.quick else 16, 3, 64, 64, device=bench.device)
    _compare(bench, "resnet18, 64x64", residual, larger, min(steps, 10), "block")
    _memory(bench, small, steps)
    _photographs(bench)
    bench.notes.append(
        "The one-image loop is the published search written plainly: gates as parameters in hooks, torch.optim.SGD, "
        "weights that ask for gradients, everything before the first gate computed again at every step."
    )


def small_network() -> nn.Module:
    """Return a VGG-style network of six convolutions, 448 gates."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    before = 1
    for place, width in enumerate((32, 32, 64, 64, 128, 128)):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if place % 2 else []
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def _compare(bench: Bench, name: str, model: nn.Module, images: Tensor, steps: int, sites: str) -> None:
    loop_images = images[: 2 if bench.quick else 4]
    layers = find_routes(model, images[:2], mode="paper", steps=1, sites=sites).layers

    def loop() -> None:
        for row in range(len(loop_images)):
            one_image(model, loop_images[row : row + 1], layers, steps)

    def batched(size: int) -> Callable[[], object]:
        part = images[:size]
        return lambda: find_routes(model, part, mode="paper", steps=steps, sites=sites, batch_size=size)

    def ours_one_by_one() -> None:
        find_routes(model, loop_images, mode="paper", steps=steps, sites=sites, batch_size=1)

    def contribution() -> None:
        score_units(model, images, "gradient-times-activation", sites=sites, batch_size=len(images))

    bench.compare(
        f"{name}, {steps} steps: {len(loop_images)} images one by one, {len(images)} images at once",
        {
            "one-image loop": loop,
            "ours, batch of 1": ours_one_by_one,
            "ours, one batch": batched(len(images)),
            "gradient x activation (no search)": contribution,
        },
        baseline="one-image loop",
        rounds=5,
        warmup=1,
        seconds=15,
        memory=False,
        settings={
            "steps": steps,
            "images of the loop": len(loop_images),
            "images of the batch": len(images),
            "per-image factor": len(images) / len(loop_images),
            "sites": sites,
        },
        aim="time per image (time of a call / its images) at least 4 times below the loop's",
    )


def _photographs(bench: Bench) -> None:
    """Time a pretrained network's converged routes beside as many plain passes as a search may take."""
    model = pretrained().to(bench.device).requires_grad_(False)
    passes, names = (3, PHOTOGRAPHS[:1]) if bench.quick else (PASSES, PHOTOGRAPHS)
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    pictures = photographs()
    images = torch.stack([transform(pictures[name]) for name in names]).to(bench.device)
    search: dict[str, Any] = {"steps": passes} if bench.quick else {}

    def bare() -> None:
        for image in images.split(1):
            for _ in range(passes):
                given = image.clone().requires_grad_()
                torch.autograd.grad(model(given).logsumexp(1).sum(), given)

    def alone() -> list[Routes]:
        return [find_routes(model, image, **search) for image in images.split(1)]

    found = alone()
    bench.compare(
        f"EfficientNet-Lite0 (ImageNet) at 224, {len(images)} photographs",
        {
            f"{passes} bare passes each": bare,
            "converged routes, one by one": alone,
            "converged routes, one batch": lambda: find_routes(model, images, **search),
        },
        baseline=f"{passes} bare passes each",
        rounds=3,
        warmup=1,
        memory=False,
        settings={
            "passes of each alone": [int(routes.passes) for routes in found],
            "at rest": [bool(routes.converged) for routes in found],
        },
        aim="at most 1.2 times the bare passes",
    )


def _memory(bench: Bench, model: nn.Module, steps: int) -> None:
    images = torch.rand(16 if bench.quick else 32, 1, 28, 28, device=bench.device)

    def at(size: int, count: int) -> Callable[[], object]:
        part = images[:count]
        return lambda: find_routes(model, part, mode="paper", steps=min(steps, 5), sites="conv", batch_size=size)

    most = len(images)
    bench.compare(
        "peak memory by batch size and number of images, small VGG, 28x28, 5 steps",
        {
            f"batch {most // 8}, {most // 2} images": at(most // 8, most // 2),
            f"batch {most // 8}, {most} images": at(most // 8, most),
            f"batch {most // 4}, {most} images": at(most // 4, most),
            f"batch {most // 2}, {most} images": at(most // 2, most),
        },
        baseline=f"batch {most // 8}, {most} images",
        rounds=3,
        warmup=1,
        seconds=20,
        settings={"steps": min(steps, 5)},
        aim="memory grows with the batch, not with the number of images",
    )


def one_image(
    model: nn.Module, image: Tensor, layers: tuple[str, ...], steps: int, gamma: float = 0.05
) -> list[Tensor]:
    """Search the gates of one image [1, C, H, W] as the published description says, without any saving."""
    modules = dict(model.named_modules())
    gates: dict[str, Tensor] = {}
    handles: list[RemovableHandle] = []

    def gate(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            if name not in gates:
                gates[name] = torch.ones(output.shape[1], device=output.device, requires_grad=True)
            return output * gates[name].view(1, -1, 1, 1)

        return hook

    try:
        handles += [modules[name].register_forward_hook(gate(name)) for name in layers]
        target = model(image).softmax(1).detach()
        optimizer = torch.optim.SGD(list(gates.values()), lr=0.1, momentum=0.9)
        best, lowest = [g.detach().clone() for g in gates.values()], float("inf")
        for _ in range(steps):
            q = model(image).softmax(1)
            loss = -(target * torch.log(q + 1e-20)).sum() + gamma * sum(g.abs().sum() for g in gates.values())
            if bool(q.argmax() == target.argmax()) and loss.item() < lowest:
                best, lowest = [g.detach().clone() for g in gates.values()], loss.item()
            model.zero_grad()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for g in gates.values():
                    g.clamp_(0, 5)
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad()
    return best
