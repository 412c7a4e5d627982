"""Bilinear poolings: the uncentred second moment with element-wise normalisation, and its compact sketch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convsmith import arguments
from convsmith.pooling.covariance import covariance
from convsmith.pooling.inputs import columns, float32_island, float64_island, power_of_two
from convsmith.pooling.layers import POOLINGS, Pooling
from convsmith.pooling.matrix_root import matrix_sqrt
from convsmith.pooling.newton_schulz import checked_iterations

#: features are scaled up by so much at most: the ridge of the signed root over its square is still a number
LEAST = 2.0**-62


def signed_sqrt(x: Tensor, *, ridge: float | Tensor = 1e-8) -> Tensor:
    """Return sign(x) sqrt(|x| + ridge), element-wise; zero stays zero and the slope is at most 1 / (2 sqrt(ridge))."""
    return x.sign() * (x.abs() + ridge).sqrt()


def _unit_length(values: Tensor, moment: Tensor, size: Tensor) -> Tensor:
    """Return the signed square root of ``size`` times the values [B, F], at unit length.

    A value below the rounding of the moment's mean eigenvalue is zero: the ridge would make 1e-4 of it.
    """
    level = 8 * torch.finfo(values.dtype).eps * moment.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    values = torch.where(values.abs() > level, values, 0.0)
    ridge = (1e-8 / size).clamp(min=torch.finfo(values.dtype).tiny)
    return nn.functional.normalize(signed_sqrt(values, ridge=ridge), dim=1)


def bilinear(x: Tensor, *, root: str | None = None, iterations: int = 5) -> Tensor:
    """Return the B-CNN descriptor, ``[B, C, H, W]`` -> ``[B, C^2]``.

    ``X X^T / M``, optionally its matrix square root by ``root`` (a method of `convsmith.pooling.matrix_sqrt`), signed
    square root, division by the Euclidean norm. A zero map gives zeros.

    Papers: Lin, RoyChowdhury, Maji, "Bilinear CNN Models for Fine-grained Visual Recognition" (ICCV 2015); with a root,
    Lin and Maji, "Improved Bilinear Pooling with CNNs" (BMVC 2017).
    """
    if root is None:
        return _single(x, root, iterations)
    return _double(x, root, iterations)


def _descriptor(x: Tensor, root: str | None, iterations: int) -> Tensor:
    x = columns(x, "bilinear")
    size = power_of_two(x).clamp(min=LEAST)
    moment = covariance(x / size, center=False)
    if root is not None:
        moment = matrix_sqrt(moment, method=root, iterations=iterations)
    return _unit_length(moment.flatten(1), moment, size[..., 0] if root is not None else size[..., 0].square())


_single, _double = float32_island(_descriptor), float64_island(_descriptor)


@POOLINGS.register("bilinear", order=2, paper="Lin et al., ICCV 2015")
class BilinearPooling(Pooling):
    """B-CNN: second moment, signed square root, unit length; 262,144 features for 512 channels.

    Args:
        root: matrix root before the element-wise steps: none, "newton-schulz", "polar-express" or "eigh".
        iterations: steps of an iterative root, 1 to 1000.
    """

    @arguments.checked
    def __init__(
        self, in_channels: int, dim: int | None = None, *, root: str | None = None, iterations: int = 5
    ) -> None:
        super().__init__(in_channels, dim)
        arguments.one_of("root", root, (None, "newton-schulz", "polar-express", "eigh"))
        self.root, self.iterations = root, checked_iterations(iterations)
        self.out_features = self.dim * self.dim

    def pool(self, x: Tensor) -> Tensor:
        return bilinear(x, root=self.root, iterations=self.iterations)


@POOLINGS.register("improved-bilinear", order=2, paper="Lin and Maji, BMVC 2017")
class ImprovedBilinear(BilinearPooling):
    """B-CNN with the matrix square root of the second moment before the element-wise steps."""

    @arguments.checked
    def __init__(
        self, in_channels: int, dim: int | None = None, *, root: str = "newton-schulz", iterations: int = 10
    ) -> None:
        super().__init__(in_channels, dim, root=root, iterations=iterations)


def tensor_sketch(moment: Tensor, target: Tensor, sign: Tensor, size: int) -> Tensor:
    """Return the Tensor Sketch of a second moment, ``[B, C, C]`` -> ``[B, size]``.

    ``phi_k = sum_{i, j: target[i, j] = k} sign[i, j] (X X^T / M)_ij`` with ``target[i, j] = h1(i) + h2(j) mod size``
    and ``sign[i, j] = s1(i) s2(j)``, both [C, C]. This is the circular convolution of two count sketches, summed over
    positions, that the paper computes by FFT at every position: summed first, no FFT and no [M, size] array is
    needed.

    Paper: Gao, Beijbom, Zhang, Darrell, "Compact Bilinear Pooling" (CVPR 2016), algorithm 2.
    Differs from the paper: divided by M.
    """
    out = torch.zeros(moment.shape[0], size, dtype=moment.dtype, device=moment.device)
    return out.index_add(1, target.flatten(), (moment * sign.to(moment.dtype)).flatten(1))


@float32_island
def compact_bilinear(x: Tensor, target: Tensor, sign: Tensor, size: int) -> Tensor:
    """Return the second moment's `tensor_sketch` after signed square root, at unit length; a zero map gives zeros."""
    x = columns(x, "compact_bilinear")
    scale = power_of_two(x).clamp(min=LEAST)
    moment = covariance(x / scale, center=False)
    return _unit_length(tensor_sketch(moment, target, sign, size), moment, scale[..., 0].square())


@POOLINGS.register("compact-bilinear", order=2, paper="Gao et al., CVPR 2016")
class CompactBilinear(Pooling):
    """Tensor Sketch of the bilinear descriptor with signed square root and unit length.

    The random hash and signs live in buffers and travel in the state dict.

    Args:
        out_features: length of the descriptor, 1 or more.
        seed: of the generator that draws hash and signs.
    """

    target: Tensor
    sign: Tensor

    @arguments.checked
    def __init__(self, in_channels: int, out_features: int = 8192, dim: int | None = None, *, seed: int = 0) -> None:
        super().__init__(in_channels, dim)
        self.out_features = arguments.integer("out_features", out_features, least=1)
        random = torch.Generator("cpu").manual_seed(seed)
        h = torch.randint(out_features, (2, self.dim), generator=random, device="cpu")
        s = torch.randint(2, (2, self.dim), generator=random, device="cpu") * 2 - 1
        self.register_buffer("target", (h[0][:, None] + h[1][None, :]) % out_features)
        self.register_buffer("sign", (s[0][:, None] * s[1][None, :]).to(torch.int8))

    def pool(self, x: Tensor) -> Tensor:
        return compact_bilinear(x, self.target, self.sign, self.out_features)
