"""Poolings that describe the positions by a Gaussian: mean and covariance in one symmetric matrix."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from convsmith import arguments
from convsmith.errors import InvalidArgument
from convsmith.pooling.covariance import covariance, triu_size, triu_vector
from convsmith.pooling.inputs import columns, float32_island, float64_island, square
from convsmith.pooling.layers import POOLINGS, Pooling
from convsmith.pooling.matrix_root import matrix_sqrt, refuse_indefinite
from convsmith.pooling.newton_schulz import checked_iterations
from convsmith.pooling.power import gram_log, power_covariance
from convsmith.pooling.spectral import ShiftedRoot, spectral_map

#: eight points and weights of Gauss and Legendre on [-1, 1]
LEGENDRE = [values.tolist() for values in np.polynomial.legendre.leggauss(8)]


@float32_island
def gaussian_embedding(x: Tensor, *, ridge: float = 0.0) -> Tensor:
    """Return ``[[Sigma + mu mu^T, mu], [mu^T, 1]]``, ``[B, C, H, W]`` -> ``[B, C + 1, C + 1]``.

    It is the second moment of the features with a constant 1 appended. ``ridge`` is added to Sigma.

    Paper: Wang, Li, Zhang, "G2DeNet: Global Gaussian Distribution Embedding Network" (CVPR 2017), equation (5).

    Examples:
        >>> gaussian_embedding(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 9, 9])
    """
    arguments.number("ridge", ridge, least=0)
    matrix = covariance(_with_ones(columns(x, "gaussian_embedding")), center=False)
    return matrix + ridge * torch.diag(nn.functional.pad(matrix.new_ones(matrix.shape[-1] - 1), (0, 1)))


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


@float64_island
def von_neumann_estimate(s: Tensor, theta: float = 0.75) -> Tensor:
    """Return the covariance regularised by its von Neumann divergence from the identity, [B, d, d] -> the same.

    The minimiser of ``log |S'| + tr(S'^-1 S) + theta D_vN(I, S')`` keeps the eigenvectors and maps an eigenvalue l to
    ``sqrt(c^2 + l / theta) - c`` with ``c = (1 - theta) / (2 theta)``: the square root of a shifted matrix. theta = 1
    is the plain square root; theta > 1 lifts a null eigenvalue to (theta - 1) / theta.

    Paper: Wang, Li, Zuo, Zhang, "RAID-G: Robust Estimation of Approximate Infinite Dimensional Gaussian with
    Application to Material Recognition" (CVPR 2016), theorem 1.

    Examples:
        >>> von_neumann_estimate(torch.eye(4)[None]).shape
        torch.Size([1, 4, 4])
    """
    arguments.number("theta", theta, above=0)
    s = refuse_indefinite(square(s, "von_neumann_estimate"), "von_neumann_estimate")
    return spectral_map(s, ShiftedRoot((1.0 - theta) / (2.0 * theta), float(theta)))


@POOLINGS.register("g2denet", order=2, paper="Wang et al., CVPR 2017")
class G2DeNet(Pooling):
    """Square root of the Gaussian embedding; (dim + 1)(dim + 2) / 2 features: 33,153 for 256, 131,841 for 512.

    A zero map gives the mean's part alone: one 1 at the end.

    Args:
        method: "eigh" (exact, as published; on the cheaper side), "newton-schulz" or "polar-express".
        iterations: steps of an iterative method, 1 to 1000.
    """

    @arguments.checked
    def __init__(self, in_channels: int, dim: int | None = None, *, method: str = "eigh", iterations: int = 5) -> None:
        super().__init__(in_channels, dim)
        arguments.one_of("method", method, ("eigh", "newton-schulz", "polar-express"))
        self.method, self.iterations = method, checked_iterations(iterations)
        self.out_features = triu_size(self.dim + 1)

    @float64_island
    def pool(self, x: Tensor) -> Tensor:
        if self.method == "eigh":
            return triu_vector(power_covariance(_with_ones(x.flatten(2)), exponent=0.5, center=False))
        return triu_vector(matrix_sqrt(gaussian_embedding(x), method=self.method, iterations=self.iterations))


@POOLINGS.register("raid-g", order=2, paper="Wang et al., CVPR 2016")
class RAIDG(Pooling):
    """Robust Gaussian: the embedding's square root with the von Neumann estimate in place of the covariance.

    Args:
        theta: weight of the divergence from the identity, above 0.
        mean_weight: scale of the mean in the embedding.

    Differs from the paper: the explicit maps to infinite-dimensional features are left to the network.
    """

    @arguments.checked
    def __init__(
        self, in_channels: int, dim: int | None = None, *, theta: float = 0.75, mean_weight: float = 1.0
    ) -> None:
        super().__init__(in_channels, dim)
        self.theta = arguments.number("theta", theta, above=0)
        self.mean_weight = arguments.number("mean_weight", mean_weight)
        self.out_features = triu_size(self.dim + 1)

    @float64_island
    def pool(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        estimate = von_neumann_estimate(covariance(x), self.theta)
        mean = x.mean(2, keepdim=True) * self.mean_weight
        top = torch.cat([estimate + mean @ mean.mT, mean], 2)
        matrix = torch.cat([top, torch.cat([mean.mT, torch.ones_like(mean[:, :1])], 2)], 1)
        return triu_vector(matrix_sqrt(matrix, method="eigh", normalization=None))


@POOLINGS.register("l2emg", order=2, paper="Li et al., TPAMI 2017")
class L2EMG(Pooling):
    """Log-Euclidean embedding of the Gaussian through the affine group.

    The Gaussian (mu, Sigma + ridge I = L L^T, L upper triangular) is the matrix ``[[L, mu], [0, 1]]``. ``mode="ie"``
    (IE-LogE) takes the logarithm of its left polar factor, which is half the logarithm of the Gaussian embedding;
    ``mode="de"`` (DE-LogE) takes the logarithm of the triangular matrix itself. (dim + 1)(dim + 2) / 2 features.

    Args:
        mode: "ie" or "de".
        ridge: what is added to every eigenvalue of the covariance, above 0.

    Paper: Li, Wang, Zeng, Zhang, "Local Log-Euclidean Multivariate Gaussian Descriptor and Its Application to Image
    Classification" (TPAMI 2017), sections 3.2 and 3.3.
    """

    @arguments.checked
    def __init__(self, in_channels: int, dim: int | None = None, *, mode: str = "ie", ridge: float = 1e-3) -> None:
        super().__init__(in_channels, dim)
        arguments.one_of("mode", mode, ("ie", "de"))
        self.mode, self.ridge = mode, arguments.number("ridge", ridge, above=0)
        self.out_features = triu_size(self.dim + 1)

    @float64_island
    def pool(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        eye = torch.eye(x.shape[1] + 1, x.shape[1], dtype=x.dtype, device=x.device)
        if self.mode == "ie":
            # a factor of the embedding: features with a 1 appended, and the ridge's columns
            lift = (eye * self.ridge**0.5).expand(len(x), -1, -1)
            return triu_vector(0.5 * gram_log(torch.cat([_with_ones(x) * x.shape[2] ** -0.5, lift], 2)))
        # L upper triangular: the lower Cholesky factor of the matrix with rows and columns in reverse order
        lifted = torch.add(covariance(x), eye[:-1], alpha=self.ridge)
        try:
            factor = torch.linalg.cholesky(lifted.flip(-1, -2)).flip(-1, -2)
        except torch.linalg.LinAlgError as error:
            rule, given = "the ridge is lost in the rounding of the covariance", f"ridge={self.ridge}"
            raise InvalidArgument(rule, argument="L2EMG", given=given, hint='a larger ridge, or mode="ie"') from error
        mean = x.mean(2, keepdim=True)
        bottom = torch.cat([torch.zeros_like(mean), torch.ones_like(mean[:, :1])], 1).mT
        return triu_vector(triangular_log(torch.cat([torch.cat([factor, mean], 2), bottom], 1)))


def triangular_root(t: Tensor) -> Tensor:
    """Return the upper triangular square root of upper triangular matrices with positive diagonal, [B, n, n].

    The Denman-Beavers iteration ``Y <- (Y + Z^-1)/2, Z <- (Z + Y^-1)/2`` stays triangular, so the inverses are
    substitutions; it is scaled by nothing and converges quadratically for every positive diagonal.
    """
    eye = torch.eye(t.shape[-1], dtype=t.dtype, device=t.device).expand_as(t)
    y, z = t, eye
    for _ in range(12):
        y_inverse = torch.linalg.solve_triangular(y, eye, upper=True)
        z_inverse = torch.linalg.solve_triangular(z, eye, upper=True)
        y, z = 0.5 * (y + z_inverse), 0.5 * (z + y_inverse)
    return y


def triangular_log(t: Tensor) -> Tensor:
    """Return log(T) for upper triangular T with positive diagonal, [B, n, n], upper triangular.

    ``log T = 8 log T^(1/8)`` with the last logarithm by the [8, 8] Pade quotient in its partial-fraction form,
    ``sum_j w_j E (I + x_j E)^-1`` with E = T - I and Gauss-Legendre points on [0, 1]: exact to double precision for
    diagonals between 1e-4 and 1e4. Differentiable by autograd.

    Method: Higham, "Functions of Matrices" (2008), section 11.5.
    """
    for _ in range(3):
        t = triangular_root(t)
    eye = torch.eye(t.shape[-1], dtype=t.dtype, device=t.device).expand_as(t)
    e = t - eye
    total = torch.zeros_like(t)
    for point, weight in zip(*LEGENDRE, strict=True):
        inverse = torch.linalg.solve_triangular(eye + 0.5 * (point + 1) * e, e, upper=True)
        total = total + 0.5 * weight * inverse
    return total * 8.0
