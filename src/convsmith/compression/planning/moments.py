"""What a layer must learn from, in second moments: its inputs, the outputs wanted of it, and the best weights for them.

For samples x [d] of what enters a group of a layer and y [o] of what should leave it, the weights that minimise
E |y - A x|^2 + lambda |A - W|^2 are ``A = W + (E[y x^T] - W E[x x^T]) (E[x x^T] + lambda I)^-1``, in closed form.
The x come from the network compressed so far and the y from the original, so the layer also makes good what those
before it lost (He et al. 2017, "Channel pruning", eq. 4; Zhang et al. 2015, section 3.2.3, "asymmetric" there).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.inspection.layers import Weighted
from convsmith.inspection.modes import watching

#: samples per layer, at most, and numbers in them: a depthwise layer's patches hold every input once a tap
SAMPLES, NUMBERS = 8192, 2**26
#: samples in multiples of the inputs of a group below which weights are not re-solved: they would fit these images only
ENOUGH = 4
#: weights of staying near the present weights, in units of the inputs' mean square: the one that does best on rows left
#: out is taken
RIDGES = (3e-3, 3e-2, 0.3, 3.0, 30.0)


@dataclass(frozen=True)
class Moments:
    """Moments of one layer by group: ``inputs`` [g, d, d], ``cross`` [g, o, d] (float64), of ``count`` samples.

    With ``centred`` they are taken about ``input_mean`` [g, d] and ``target_mean`` [g, o] (the layer has a bias).
    """

    count: int
    inputs: Tensor
    cross: Tensor
    input_mean: Tensor
    target_mean: Tensor
    centred: bool

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor, *, centred: bool) -> Moments:
        """Gather the moments of samples ``inputs`` [n, g, d] and ``targets`` [n, g, o]."""
        # products in float32 are not positive definite where one direction outweighs the others by far
        x, y = inputs.transpose(0, 1).double(), targets.transpose(0, 1).double()
        mean_x, mean_y = x.mean(1), y.mean(1)
        if centred:
            x, y = x - mean_x[:, None], y - mean_y[:, None]
        n = x.shape[1]
        return cls(n, x.mT @ x / n, y.mT @ x / n, mean_x, mean_y, centred)

    def best(self, weight: Tensor, ridge: float = RIDGES[0]) -> Tensor:
        """Return the weights A [g, o, d] of the module's formula, W being ``weight``; W without enough samples."""
        if not enough(self.count, self.inputs.shape[-1]):
            return weight
        gain = torch.cholesky_solve((self.cross - weight @ self.inputs).mT, torch.linalg.cholesky(self.damped(ridge)))
        return weight + gain.mT

    def damped(self, ridge: float = RIDGES[0]) -> Tensor:
        """Return E[x x^T] + lambda I [g, d, d]."""
        return damped(self.inputs, ridge)

    def bias(self, weight: Tensor) -> Tensor:
        """Return the bias [g o] that gives outputs of ``weight`` [g, o, d] the targets' mean."""
        return (self.target_mean - torch.einsum("god,gd->go", weight, self.input_mean)).flatten()


def enough(count: int, width: int) -> bool:
    """Return whether ``count`` samples are enough to re-solve weights of ``width`` inputs a group."""
    return count >= ENOUGH * width


def summed(
    model: nn.Module, images: Tensor, names: Iterable[str], measure: Callable[..., tuple[Any, ...]], *, before: bool
) -> dict[str, tuple[Any, ...]]:
    """Return, by layer name, the sums of what ``measure`` returns of every call, ``images`` passing in parts.

    ``measure``: called as a hook of the layer is (``before`` it or after), the number of images of the part behind.
    """
    sums: dict[str, tuple[Any, ...]] = {}
    size = 0

    def watch(name: str) -> Callable[..., None]:
        def hook(*given: Any) -> None:
            found = measure(*given, size)
            known = sums.get(name, (0,) * len(found))
            sums[name] = tuple(total + part for total, part in zip(known, found, strict=True))

        return hook

    with watching(model, {name: watch(name) for name in names}, before=before):
        for batch in images.split(32):
            size = len(batch)
            model(batch)
    return sums


def damped(moments: Tensor, ridge: float) -> Tensor:
    """Return second moments [..., d, d] with ``ridge`` times their mean square added to the diagonal."""
    scale = moments.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)[..., None, None]
    return moments + ridge * scale * torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)


def chosen_ridge(inputs: Tensor, targets: Tensor, weight: Tensor, *, centred: bool) -> float:
    """Return the one of `RIDGES` whose weights, solved on the first three quarters of the rows, suit the others best.

    ``inputs`` [n, g, d], ``targets`` [n, g, o], ``weight`` [g, o, d]: see `Moments.of` and `Moments.best`. Rows stand
    image by image, so the images left out are others.
    """
    cut = 3 * len(inputs) // 4
    seen, x, y = Moments.of(inputs[:cut], targets[:cut], centred=centred), inputs[cut:].double(), targets[cut:].double()
    errors = []
    for ridge in RIDGES:
        best = seen.best(weight, ridge)
        shift = seen.bias(best).reshape(seen.target_mean.shape) if centred else 0.0
        errors.append(float((y - torch.einsum("ngd,god->ngo", x, best) - shift).square().sum()))
    return RIDGES[errors.index(min(errors))]


def samples(layer: Weighted) -> int:
    """Return how many samples of a layer's inputs and outputs its weights are solved on."""
    return min(SAMPLES, NUMBERS // (layer.weight[0].numel() * getattr(layer, "groups", 1)))


def by_group(module: Weighted) -> Tensor:
    """Return a Conv2d's or Linear's weight as [groups, outputs of a group, inputs of a group] float64."""
    weight = module.weight.detach().double()
    groups = getattr(module, "groups", 1)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def chosen_positions(module: Weighted, shape: tuple[int, ...], wanted: int, seed: int) -> Tensor:
    """Return which positions of an output [B, C, H, W] or [B, ..., C] (Linear) are sampled, the same in every image."""
    total = math.prod(shape[1:-1] if isinstance(module, nn.Linear) else shape[2:])
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[: max(1, wanted)]


def sampled_outputs(module: Weighted, output: Tensor, positions: Tensor) -> Tensor:
    """Return [images x positions, C'] of an output; `chosen_positions` of its shape."""
    if isinstance(module, nn.Linear):
        return output.reshape(len(output), -1, output.shape[-1])[:, positions].flatten(0, 1)
    return output.flatten(2)[:, :, positions].transpose(1, 2).flatten(0, 1)


def sampled_inputs(module: Weighted, inputs: Tensor, positions: Tensor, width: int) -> Tensor:
    """Return what makes those outputs: patches [images x positions, groups, inputs of a group].

    ``width``: of the output map, by which a position is a row and a column.
    """
    if isinstance(module, nn.Linear):
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])[:, positions].flatten(0, 1)[:, None]
    conv: Any = module
    sides = padding_sides(conv)
    if any(sides):
        inputs = F.pad(inputs, sides, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)
    (sh, sw), (dh, dw), (kh, kw) = conv.stride, conv.dilation, conv.kernel_size
    rows = (positions // width * sh)[:, None, None] + (torch.arange(kh) * dh)[None, :, None]
    columns = (positions % width * sw)[:, None, None] + (torch.arange(kw) * dw)[None, None, :]
    patches = inputs[:, :, rows, columns]  # [B, C, P, kh, kw]
    return patches.transpose(1, 2).reshape(-1, conv.groups, conv.in_channels // conv.groups * kh * kw)


def padding_sides(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return (left, right, top, bottom) padding of a convolution, written in numbers or by name."""
    if conv.padding == "valid":
        return (0, 0, 0, 0)
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in total)
        return (left, right, top, bottom)
    top, left = (int(side) for side in conv.padding)
    return (left, left, top, top)


def reduced_rank(weight: Tensor, moments: Moments, rank: int) -> tuple[Tensor, Tensor]:
    """Return (first [g, rank, d], second [g, o, rank]) of the weights of that rank with the least output error.

    Reduced-rank regression (Izenman 1975): with E[x x^T] = L L^T the truncated decomposition of ``weight L``; by the
    smaller of its two Gram matrices.
    """
    root = torch.linalg.cholesky(moments.damped(1e-6))
    shaped = weight @ root
    if shaped.shape[-2] <= shaped.shape[-1]:
        basis = torch.linalg.eigh(shaped @ shaped.mT)[1].flip(-1)[..., :rank]
        return basis.mT @ weight, basis
    basis = torch.linalg.eigh(shaped.mT @ shaped)[1].flip(-1)[..., :rank]
    return torch.linalg.solve_triangular(root.mT, basis, upper=True).mT, shaped @ basis
