"""Teach a compressed network by the original on unlabelled images: every block and the answer, in one short training.

What `reconstruct` solves is linear: it cannot see what a layer's error becomes behind the next activation. Here Adam
moves the scales and shifts of normalisations and the biases, some thousands of numbers, so that the output of every
block, a module that holds two layers or more, and the network's own come near to the original's on random crops and
mirror images (Romero et al. 2015, "FitNets", eq. 3, for all blocks at once). Weights stay: trained as well, they learn
two hundred images by heart. Normalisations keep their statistics. The result is kept only if it errs less on images
that were left out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.compression.methods.method import output_error
from convsmith.compression.planning.agreement import is_scores
from convsmith.inspection.layers import LayerInventory
from convsmith.inspection.modes import evaluating, watching
from convsmith.inspection.outputs import joined_output
from convsmith.training import distillation_loss

#: steps at most, images of one step, largest rate of Adam, steps until it is reached
STEPS, BATCH, RATE, WARM_UP = 60, 16, 1e-3, 10
#: multiply-accumulates of all steps, at most: a few minutes on two cores
MACS = 6e12
#: least share of an image that a crop shows
LEAST = 0.35
#: of the divergence from the original's classes
TEMPERATURE = 2.0


def teach(
    original: nn.Module,
    compressed: nn.Module,
    inventory: LayerInventory,
    images: Tensor,
    held: Tensor,
    *,
    macs: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> int:
    """Train scales, shifts and biases of ``compressed``, in place; return the steps, 0 if it did not get nearer.

    Args:
        original: the network before the compression; not changed.
        compressed: what a method made of it; frozen parameters stay as they are.
        inventory: `trace_layers` of the original.
        images: [B, C, H, W] to learn from, unlabelled.
        held: others to judge by.
        macs: multiply-accumulates of the original for one image.
        progress: called with (done, total, note).
    """
    vectors = [p for p in compressed.parameters() if p.requires_grad and p.dim() == 1]
    # three passes an image: forward through both, and backward to what enters the layers
    steps = min(STEPS, int(MACS // (3 * BATCH * max(macs, 1))))
    if not vectors or not steps:
        return 0
    before = copy.deepcopy(compressed.state_dict())
    names = _blocks(original, inventory)
    with evaluating(original), evaluating(compressed):
        error = _error(original, compressed, held)
        optimiser = torch.optim.Adam(vectors, lr=RATE)
        for step in range(steps):
            if progress is not None:
                progress(step, steps, "teach")
            share = min((step + 1) / WARM_UP, 0.5 * (1 + math.cos(math.pi * step / steps)))
            optimiser.param_groups[0]["lr"] = RATE * share
            batch = _crops(images, step)
            with torch.no_grad():
                wanted, targets = outputs(original, names, batch)
            with torch.enable_grad():
                got, made = outputs(compressed, names, batch)
                loss = _distance(got, wanted)
                shared = [(made[n], t) for n, t in targets.items() if n in made and made[n].shape == t.shape]
                loss = loss + sum(_distance(a, b) for a, b in shared) / max(len(shared), 1)
                if is_scores(wanted):
                    loss = loss + distillation_loss(got, wanted, TEMPERATURE) / TEMPERATURE**2
                slopes = torch.autograd.grad(loss, vectors, allow_unused=True)
            for vector, slope in zip(vectors, slopes, strict=True):
                vector.grad = slope
            nn.utils.clip_grad_norm_(vectors, 5.0)
            optimiser.step()
        optimiser.zero_grad()
        if _error(original, compressed, held) < error:
            return steps
    compressed.load_state_dict(before)
    return 0


def _blocks(original: nn.Module, inventory: LayerInventory) -> list[str]:
    """Return the names of the modules that hold two layers or more and run once."""
    layers = [layer.name for layer in inventory.layers]
    found = [name for name, module in original.named_modules() if name and inventory.count(module) == 1]
    return [name for name in found if sum(layer.startswith(f"{name}.") for layer in layers) > 1]


def outputs(model: nn.Module, names: Sequence[str], images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what ``model`` answers in evaluation mode and what its modules of these names do, no tensor twice."""
    found: dict[str, Tensor] = {}
    learns, there = torch.is_grad_enabled(), dict(model.named_modules())

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            value = joined_output(output)
            if all(value is not other for other in found.values()):  # a stage gives what its last block does
                found[name] = value

        return hook

    with watching(model, {name: keep(name) for name in names if name in there}), torch.set_grad_enabled(learns):
        return joined_output(model(images)), found


def _distance(got: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared error in units of the variance of ``wanted`` [B, C, ...] over all but the channels."""
    axes = [axis for axis in range(wanted.dim()) if axis != 1]
    scale = (wanted - wanted.mean(axes, keepdim=True)).square().mean()
    return (got - wanted).square().mean() / scale.clamp_min(1e-12)


def _error(original: nn.Module, compressed: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return output_error(joined_output(original(images)), joined_output(compressed(images)))


def _crops(images: Tensor, step: int) -> Tensor:
    """Return `BATCH` random crops and mirror images of ``images`` [N, C, H, W], in their size; drawn by ``step``."""
    from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop

    change = Compose([RandomResizedCrop(images.shape[2:], (LEAST, 1.0)), RandomHorizontalFlip()])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(step)
        chosen = torch.randint(len(images), (BATCH,))
        return torch.cat([change(image[None]) for image in images[chosen]])
