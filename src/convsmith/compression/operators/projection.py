"""Put a trained dense kernel into an interleaved structure: the nearest chain, what it keeps and what it loses.

Every entry of a strict chain's composite is a product of one weight per factor (one path per pair). For two factors the
entries that share a primary row and a secondary column form blocks of rank one, disjoint and covering the kernel, so
the nearest chain in the Frobenius norm is a rank-1 singular value decomposition per block and its error is the root of
the sum of all discarded squared singular values: closed form, any rectangular shape, any kernel size. Longer chains are
peeled factor by factor and then refined by alternating least squares, which here is an elementwise formula.

Differs from Monarch (Dao et al. 2022, arXiv 2204.00595, section 3.3), which covers square matrices and two factors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.arguments import checked, tensor
from convsmith.compression.operators.backends import dense_kernel
from convsmith.compression.operators.chain_spec import ChainSpec, check_partitions, mixed_radix
from convsmith.compression.operators.geometry import ChainGeometry, IntOrPair
from convsmith.compression.operators.interleaved import InterleavedGroupConv2d, InterleavedStructuredConv2d, LinearChain
from convsmith.errors import InvalidArgument


@dataclass(frozen=True)
class Projection:
    """Weights of the chain, one tensor a factor, and how near it comes.

    ``error``: Frobenius norm of kernel minus composite; ``energy``: share of the squared norm that is kept;
    ``output_energy``: the share kept of the layer's output on the given inputs (``None`` without inputs).
    """

    weights: tuple[Tensor, ...]
    error: float
    energy: float
    output_energy: float | None = None


@checked
def project(
    kernel: Tensor,
    partitions: Sequence[int],
    out_partitions: Sequence[int] | None = None,
    *,
    second_moment: Tensor | None = None,
    sweeps: int = 30,
) -> Projection:
    """Return the chain of digits ``partitions`` nearest to a dense kernel.

    Args:
        kernel: [out, in, k, k].
        partitions: sizes K_1 .. K_n of the input's digits, as in `InterleavedStructuredConv2d`; IGCV1 is ``(M, L)``.
        out_partitions: the same of the output.
        second_moment: [in k k, in k k] of the input patches (`patch_second_moment`): minimise the error of the output,
            ``tr(D S D^T)`` with ``D`` the kernel's error, instead of the kernel's own.
        sweeps: rounds of alternating least squares for more than two factors, or of refinement with a second moment.

    Raises:
        InvalidArgument: if the partitions do not multiply to the channels; names both numbers.

    Examples:
        >>> projection = project(torch.randn(16, 16, 3, 3), (4, 4))
    """
    in_sizes = check_partitions(partitions)
    out_sizes = in_sizes if out_partitions is None else check_partitions(out_partitions)
    tensor("kernel", kernel, rank=(2, 3, 4, 5), what="weights [out, in, ...]")
    out, in_channels, *sides = kernel.shape
    for sizes, channels, side in ((in_sizes, in_channels, "in"), (out_sizes, out, "out")):
        if math.prod(sizes) != channels:
            raise InvalidArgument(
                f"the partitions multiply to the kernel's {side} channels",
                argument=f"{' x '.join(map(str, sizes))} = {math.prod(sizes)}",
                given=f"{channels} channels {side}",
                hint="see balanced_partition(channels, layers)",
            )
    spec = mixed_radix(in_sizes, out_sizes)
    work = kernel.detach().double().flatten(2)
    if second_moment is None:
        weights = _shaped(_peeled(work[None], in_sizes, out_sizes), sides)
        if len(in_sizes) > 2:
            weights = _alternated(work, weights, in_sizes, out_sizes, sweeps)
    else:
        moment = _checked_moment(second_moment, work[0].numel())
        weights = _shaped(_whitened(work, in_sizes, out_sizes, moment), sides)
        weights = _refined(work, weights, spec, moment, sweeps)
    difference = kernel.detach().double() - dense_kernel(weights, spec)
    squared = float(difference.square().sum())
    total = float(work.square().sum())
    output_energy = None
    if second_moment is not None:
        whole = float(_quadratic(work.flatten(1), moment))
        output_energy = 1 - float(_quadratic(difference.flatten(1), moment)) / whole if whole else 1.0
    return Projection(
        tuple(weight.to(kernel.dtype) for weight in weights),
        math.sqrt(squared),
        1 - squared / total if total else 1.0,
        output_energy,
    )


@checked
def from_dense(
    layer: nn.Conv2d,
    partitions: Sequence[int],
    out_partitions: Sequence[int] | None = None,
    *,
    inputs: Tensor | None = None,
    sweeps: int = 30,
    backend: str = "auto",
) -> tuple[LinearChain, Projection]:
    """Return the interleaved layer nearest to a dense convolution, with its `Projection`.

    ``partitions`` of two sizes ``(M, L)`` give an `InterleavedGroupConv2d`, others an `InterleavedStructuredConv2d`.
    ``inputs`` [B, in, H, W]: images as they enter the layer, for the data-aware projection. A bias is not part of a
    linear chain: keep it outside.

    Raises:
        InvalidArgument: for a grouped layer, padding that is not with zeros, or partitions that do not multiply to its
            channels.

    Examples:
        >>> chain, projection = from_dense(nn.Conv2d(16, 16, 3, padding=1, bias=False), (4, 4))
    """
    if layer.groups != 1 or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise InvalidArgument(
            "a dense convolution with zero padding given in numbers can be projected", given=repr(layer)
        )
    geometry: Any = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    moment = None if inputs is None else patch_second_moment(inputs, *geometry)
    found = project(layer.weight, partitions, out_partitions, second_moment=moment, sweeps=sweeps)
    out_sizes = partitions if out_partitions is None else out_partitions
    like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype, "backend": backend}
    chain: LinearChain
    if len(partitions) == 2:
        members, primary = partitions
        chain = InterleavedGroupConv2d(
            primary, members, *geometry, out_primary=out_sizes[1], out_members=out_sizes[0], **like
        )
    else:
        chain = InterleavedStructuredConv2d(partitions, *geometry, out_partitions=out_sizes, **like)
    with torch.no_grad():
        for parameter, weight in zip(chain.weights, found.weights, strict=True):
            parameter.copy_(weight)
    return chain.train(layer.training), found


@checked
def patch_second_moment(
    inputs: Tensor, kernel_size: IntOrPair, stride: IntOrPair = 1, padding: IntOrPair = 0, dilation: IntOrPair = 1
) -> Tensor:
    """Return the mean of ``p p^T`` over all patches p of the images, [in k k', in k k'] float64.

    Examples:
        >>> patch_second_moment(torch.randn(2, 3, 8, 8), 3).shape
        torch.Size([27, 27])
    """
    g = ChainGeometry.of(kernel_size, stride, padding, dilation)
    tensor("inputs", inputs, rank=4, what="images [B, C, H, W]")
    with torch.no_grad():
        moment: Tensor | None = None
        count = 0
        for image in inputs.detach().double():
            columns = F.unfold(image[None], g.kernel_size, g.dilation, g.padding, g.stride)[0]
            product = columns @ columns.T
            moment = product if moment is None else moment + product
            count += columns.shape[1]
        if moment is None or not count:
            raise InvalidArgument("a second moment needs at least one image", given=list(inputs.shape))
        return moment / count


# ------------------------------------------------------------------ closed form


def _peeled(kernels: Tensor, in_sizes: tuple[int, ...], out_sizes: tuple[int, ...]) -> list[Tensor]:
    """Split kernels [fast, out, in, taps] into weights [slow * fast * K', K, taps], one digit after the other.

    ``fast`` numbers the output digits that are mixed already, ``slow`` the input digits still to come.
    """
    fast, _, _, taps = kernels.shape
    k_in, k_out = in_sizes[0], out_sizes[0]
    rest_in, rest_out = math.prod(in_sizes[1:]), math.prod(out_sizes[1:])
    blocks = kernels.view(fast, rest_out, k_out, rest_in, k_in, taps).permute(0, 3, 2, 1, 4, 5)
    if len(in_sizes) == 1:
        return [blocks.reshape(fast * k_out, k_in, taps)]
    row, column = _rank_one(blocks.flatten(4))  # [fast, rest_in, k_out, rest_out], [..., k_in * taps]
    first = column.transpose(0, 1).reshape(rest_in * fast * k_out, k_in, taps)
    remainder = row.permute(2, 0, 3, 1).reshape(k_out * fast, rest_out, rest_in, 1)
    return [first, *_peeled(remainder, in_sizes[1:], out_sizes[1:])]


def _rank_one(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return u sqrt(s) and sqrt(s) v of the largest singular value of every matrix, by the smaller Gram matrix."""
    if blocks.shape[-2] > blocks.shape[-1]:
        column, row = _rank_one(blocks.mT)
        return row, column
    u = torch.linalg.eigh(blocks @ blocks.mT)[1][..., -1]
    right = torch.einsum("...mn,...m->...n", blocks, u)  # s v
    root = torch.linalg.vector_norm(right, dim=-1, keepdim=True).sqrt()
    return u * root, right / root.clamp_min(1e-150)


def _shaped(weights: Sequence[Tensor], sides: Sequence[int]) -> list[Tensor]:
    """Give the taps of the first weights a height and a width; the others have one."""
    shaped = weights[0].unflatten(-1, sides), *(weight[..., None] for weight in weights[1:])
    return [weight.contiguous() for weight in shaped]


# ------------------------------------------------------------------ alternating least squares


def _alternated(
    kernel: Tensor, weights: list[Tensor], in_sizes: tuple[int, ...], out_sizes: tuple[int, ...], sweeps: int
) -> list[Tensor]:
    """Refine all factors in turn: with the others fixed, every weight is a ratio of two sums over its paths."""
    target = kernel.view(*reversed(out_sizes), *reversed(in_sizes), -1)  # o_n .. o_1, i_n .. i_1, t
    axes = [_axes(position, len(in_sizes)) for position in range(len(in_sizes))]
    spread = [_spread(weight, own, target.shape) for weight, own in zip(weights, axes, strict=True)]
    one = torch.ones((), dtype=kernel.dtype, device=kernel.device)
    before: float | None = None
    for _ in range(sweeps):
        for position in range(len(axes)):
            others = math.prod(spread[:position] + spread[position + 1 :], start=one)
            sums = [axis for axis, size in enumerate(spread[position].shape) if size == 1]
            above = (target * others).sum(sums, keepdim=True)
            below = others.expand(target.shape).square().sum(sums, keepdim=True)
            spread[position] = torch.where(below > 0, above / below.clamp_min(1e-300), spread[position])
        error = float((target - math.prod(spread, start=one)).square().sum())
        if before is not None and before - error <= 1e-12 * before:
            break
        before = error
    found = []
    for part, own, weight in zip(spread, axes, weights, strict=True):
        unused = [axis for axis in range(part.dim()) if axis not in own]
        found.append(part.permute(*own, *unused).reshape(weight.shape).contiguous())
    return found


def _axes(position: int, count: int) -> list[int]:
    """Return the target's axis of every digit in a factor's weights: i_n .. i_{l+1}, o_{l-1} .. o_1, o_l, i_l, t."""
    slow, fast = range(count, 2 * count - 1 - position), range(count - position, count)
    return [*slow, *fast, count - 1 - position, 2 * count - 1 - position, 2 * count]


def _spread(weight: Tensor, axes: Sequence[int], target: Sequence[int]) -> Tensor:
    """Return the weights of a factor as a tensor over the target's axes, of size 1 where it does not vary."""
    grid = weight.reshape(*(target[axis] for axis in axes[:-1]), -1)
    shape = [1] * len(target)
    for axis, size in zip(axes, grid.shape, strict=True):
        shape[axis] = size
    return grid.permute(sorted(range(len(axes)), key=axes.__getitem__)).reshape(shape)


# ------------------------------------------------------------------ data-aware


def _checked_moment(moment: Tensor, size: int) -> Tensor:
    if moment.shape != (size, size):
        raise InvalidArgument(
            "the second moment is over the patches of the layer's input",
            argument=[size, size],
            given=list(moment.shape),
            hint="patch_second_moment(inputs, kernel_size, stride, padding, dilation)",
        )
    moment = moment.detach().double()
    # a ridge of a millionth keeps directions no input ever took from being free
    return moment + 1e-6 * moment.diagonal().mean() * torch.eye(size, dtype=moment.dtype, device=moment.device)


def _whitened(kernel: Tensor, in_sizes: tuple[int, ...], out_sizes: tuple[int, ...], moment: Tensor) -> list[Tensor]:
    """Start: decompose in coordinates where the patches of every primary partition are white, partitions apart."""
    out, in_channels, taps = kernel.shape
    members, partitions = in_sizes[0], in_channels // in_sizes[0]
    grid = moment.view(partitions, members * taps, partitions, members * taps)
    own = torch.stack([grid[p, :, p] for p in range(partitions)])
    values, vectors = torch.linalg.eigh(own)
    values = values.clamp_min(values[:, -1:] * 1e-12).clamp_min(1e-300)
    root = vectors * values.sqrt()[:, None] @ vectors.mT
    back = vectors * values.rsqrt()[:, None] @ vectors.mT
    white = torch.einsum("opm,pmq->opq", kernel.reshape(out, partitions, members * taps), root)
    first, *others = _peeled(white.reshape(1, out, in_channels, taps), in_sizes, out_sizes)
    rows = first.view(partitions, out_sizes[0], members * taps)
    return [torch.einsum("pom,pmq->poq", rows, back).reshape(first.shape), *others]


def _quadratic(rows: Tensor, moment: Tensor) -> Tensor:
    return ((rows @ moment) * rows).sum()


def _refined(kernel: Tensor, start: list[Tensor], spec: ChainSpec, moment: Tensor, sweeps: int) -> list[Tensor]:
    """Minimise the output's error over all factors at once, from the whitened start."""
    weights = [weight.clone().requires_grad_() for weight in start]
    scale = float(_quadratic(kernel.flatten(1), moment)) or 1.0

    def loss() -> Tensor:
        difference = kernel.flatten(1) - dense_kernel(weights, spec).flatten(1)
        return _quadratic(difference, moment) / scale

    optimizer = torch.optim.LBFGS(weights, max_iter=sweeps, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        before = float(loss().detach())
        optimizer.step(closure)  # type: ignore[arg-type]
        after = float(loss().detach())
    better = after <= before and all(bool(torch.isfinite(w).all()) for w in weights)
    return [weight.detach() for weight in (weights if better else start)]
