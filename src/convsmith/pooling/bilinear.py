"""Bilinear poolings: the uncentred second moment with element-wise normalisation, and its compact sketch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convsmith.pooling.covariance import covariance
from convsmith.pooling.inputs import float32_island, one_of, positive
from convsmith.pooling.layers import POOLINGS, Pooling
from convsmith.pooling.matrix_root import matrix_sqrt


def signed_sqrt(x: Tensor, *, ridge: float = 1e-8) -> Tensor:
    """Return sign(x) sqrt(|x| + ridge), element-wise; zero stays zero and the slope is at most 1 / (2 sqrt(ridge))."""
    return x.sign() * (x.abs() + ridge).sqrt()


@float32_island
def bilinear(x: Tensor, *, root: str | None = None, iterations: int = 5) -> Tensor:
    """Return the B-CNN descriptor, ``[B, C, H, W]`` -> ``[B, C^2]``.

    ``X X^T / M``, optionally its matrix square root by ``root`` (a method of `convsmith.pooling.matrix_sqrt`), signed
    square root, division by the Euclidean norm. A zero map gives zeros.

    Papers: Lin, RoyChowdhury, Maji, "Bilinear CNN Models for Fine-grained Visual Recognition" (ICCV 2015); with a root,
    Lin and Maji, "Improved Bilinear Pooling with CNNs" (BMVC 2017).
    """
    moment = covariance(x, center=False)
    if root is not None:
        moment = matrix_sqrt(moment, method=root, iterations=iterations)
    return nn.functional.normalize(signed_sqrt(moment.flatten(1)), dim=1)


@POOLINGS.register("bilinear", order=2, paper="Lin et al., ICCV 2015")
class BilinearPooling(Pooling):
    """B-CNN: second moment, signed square root, unit length; 262,144 features for 512 channels."""

    def __init__(
        self, in_channels: int, dim: int | None = None, *, root: str | None = None, iterations: int = 5
    ) -> None:
        super().__init__(in_channels, dim)
        one_of("root", root, (None, "newton-schulz", "polar-express", "eigh", "pade", "taylor"))
        self.root, self.iterations = root, positive("iterations", iterations)
        self.out_features = self.dim * self.dim

    def pool(self, x: Tensor) -> Tensor:
        """Return the descriptor."""
        return bilinear(x, root=self.root, iterations=self.iterations)


@POOLINGS.register("improved-bilinear", order=2, paper="Lin and Maji, BMVC 2017")
class ImprovedBilinear(BilinearPooling):
    """B-CNN with the matrix square root of the second moment before the element-wise steps."""

    def __init__(
        self, in_channels: int, dim: int | None = None, *, root: str = "newton-schulz", iterations: int = 10
    ) -> None:
        super().__init__(in_channels, dim, root=root, iterations=iterations)


@float32_island
def count_sketch_bilinear(x: Tensor, target: Tensor, sign: Tensor, size: int) -> Tensor:
    """Return the Tensor Sketch of the second moment, ``[B, C, H, W]`` -> ``[B, size]``.

    ``phi_k = sum_{i, j: target[i, j] = k} sign[i, j] (X X^T / M)_ij`` with ``target[i, j] = h1(i) + h2(j) mod size``
    and ``sign[i, j] = s1(i) s2(j)``, both [C, C]. This is the circular convolution of two count sketches, summed over
    positions, that the paper computes by FFT at every position: summed first, no FFT and no [M, size] array is
    needed.

    Paper: Gao, Beijbom, Zhang, Darrell, "Compact Bilinear Pooling" (CVPR 2016), algorithm 2.
    Differs from the paper: divided by M.
    """
    moment = covariance(x, center=False) * sign.to(x.dtype)
    out = torch.zeros(x.shape[0], size, dtype=x.dtype, device=x.device)
    return out.index_add(1, target.flatten(), moment.flatten(1))


@POOLINGS.register("compact-bilinear", order=2, paper="Gao et al., CVPR 2016")
class CompactBilinear(Pooling):
    """Tensor Sketch of the bilinear descriptor with signed square root and unit length.

    The random hash and signs come from their own generator with ``seed``, live in buffers and travel in the state dict.
    """

    target: Tensor
    sign: Tensor

    def __init__(self, in_channels: int, out_features: int = 8192, dim: int | None = None, *, seed: int = 0) -> None:
        super().__init__(in_channels, dim)
        self.out_features = positive("out_features", out_features)
        random = torch.Generator().manual_seed(seed)
        h = torch.randint(out_features, (2, self.dim), generator=random)
        s = torch.randint(2, (2, self.dim), generator=random) * 2 - 1
        self.register_buffer("target", (h[0][:, None] + h[1][None, :]) % out_features)
        self.register_buffer("sign", (s[0][:, None] * s[1][None, :]).to(torch.int8))

    def pool(self, x: Tensor) -> Tensor:
        """Return the descriptor."""
        sketch = count_sketch_bilinear(x, self.target, self.sign, self.out_features)
        return nn.functional.normalize(signed_sqrt(sketch), dim=1)
