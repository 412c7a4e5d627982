"""The pooling layers' common form and their registry; average pooling and the covariance poolings.

Every layer is ``forward([B, C, H, W]) -> [B, out_features]`` (``[B, C, M]`` is accepted too), built from
``in_channels`` and an optional ``dim``: with it, a 1 x 1 convolution, batch normalisation and ReLU reduce the
channels first, as the papers do in front of 2,048 channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, fx, nn

from convsmith import arguments
from convsmith.errors import InvalidArgument
from convsmith.pooling.covariance import covariance, triu_size, triu_vector
from convsmith.pooling.inputs import columns, float64_island
from convsmith.pooling.isqrt import SIDES, covariance_root
from convsmith.pooling.matrix_root import matrix_log, matrix_sqrt
from convsmith.pooling.newton_schulz import checked_iterations, newton_schulz_steps, warn_if_unsafe
from convsmith.pooling.power import power_covariance
from convsmith.pooling.remez import polar_express_steps
from convsmith.registry import Registry

#: every pooling by name; traits: ``order`` (1 or 2), ``paper``, and ``reduces`` (False: never a smaller ``dim``)
POOLINGS: Registry[type[Pooling]] = Registry("pooling", "convsmith.pooling")


def available() -> list[str]:
    """Return the names that `attach` and ``--pooling`` take.

    Examples:
        >>> "isqrt-cov" in available()
        True
    """
    return POOLINGS.names()


def reduction(in_channels: int, dim: int) -> nn.Sequential:
    """Return 1 x 1 convolution without bias, batch normalisation, ReLU; kaiming-normal fan-out, as published."""
    conv = nn.Conv2d(in_channels, dim, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(dim), nn.ReLU(inplace=True))


class Pooling(nn.Module, ABC):
    """Features to one vector per image.

    Attributes: ``in_channels``; ``dim``, the channels that are pooled (after the reduction, if there is one);
    ``out_features``, the length of the result: the upper triangle of a dim x dim matrix unless a layer says otherwise.
    Raises `InvalidArgument` in ``forward`` on a wrong rank, type, number of
    channels, on no position and on values that are not finite.
    """

    @arguments.checked
    def __init__(self, in_channels: int, dim: int | None = None) -> None:
        super().__init__()
        self.in_channels = arguments.integer("in_channels", in_channels, least=1)
        self.dim = in_channels if dim is None else arguments.integer("dim", dim, least=1)
        self.out_features = triu_size(self.dim)
        self.reduce: nn.Module = nn.Identity() if dim is None else reduction(in_channels, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, out_features]."""
        if isinstance(x, fx.Proxy):
            # one node for the whole layer: its checks look at shapes, which symbolic tracing does not know
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), {})  # type: ignore[return-value]
        name = type(self).__name__
        columns(x, name)
        if x.shape[1] != self.in_channels:
            rule, given = "the features must have the channels this layer was built for", f"shape {tuple(x.shape)}"
            hint = f"build it with in_channels={x.shape[1]}, or transpose tokens [B, N, C] to [B, C, N]"
            raise InvalidArgument(rule, argument=f"{name}(in_channels={self.in_channels})", given=given, hint=hint)
        return self.pool(self.reduce(x if x.dim() == 4 else x.unsqueeze(-1)))

    @abstractmethod
    def pool(self, x: Tensor) -> Tensor:
        """Return [B, out_features] from reduced features [B, dim, H, W]."""

    def extra_repr(self) -> str:
        """Show the sizes in ``print(model)``."""
        return f"{self.in_channels} -> {self.dim} channels -> {self.out_features} features"


@POOLINGS.register("average", order=1, paper="", reduces=False)
class GlobalAverage(Pooling):
    """The mean over positions: the baseline that every other pooling replaces."""

    @arguments.checked
    def __init__(self, in_channels: int, dim: int | None = None) -> None:
        super().__init__(in_channels, dim)
        self.out_features = self.dim

    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@POOLINGS.register("isqrt-cov", order=2, paper="Li et al., CVPR 2018")
class ISQRTCOV(Pooling):
    """Iterative square root of the covariance (fast MPN-COV): Newton-Schulz with trace normalisation and compensation.

    ``out_features`` is dim (dim + 1) / 2; 32,896 for dim 256. ``dim=None`` leaves the reduction out.

    Args:
        iterations: steps, 1 to 1000; 5 published, 7 of "polar-express" give the true root to single precision.
        method: "newton-schulz", or "polar-express" with minimax steps.
        normalization: "trace", "frobenius" or none: what the covariance is divided by before the steps.
        compensate: multiply the root of the divisor back.
        isometric: weigh entries beside the diagonal by the root of 2, so that distances of matrices stay.
        side: "channels", "positions" or "auto", the cheaper one; the result is the same.

    Paper: Li et al., "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root
    Normalization" (CVPR 2018).
    """

    @arguments.checked
    def __init__(
        self,
        in_channels: int,
        dim: int | None = 256,
        iterations: int = 5,
        *,
        method: str = "newton-schulz",
        normalization: str | None = "trace",
        compensate: bool = True,
        isometric: bool = False,
        side: str = "auto",
    ) -> None:
        super().__init__(in_channels, dim)
        self.iterations = checked_iterations(iterations)
        arguments.one_of("method", method, ("newton-schulz", "polar-express"))
        arguments.one_of("normalization", normalization, ("trace", "frobenius", None))
        arguments.one_of("side", side, SIDES)
        self.fused = normalization == "trace" and compensate
        if side != "auto" and not self.fused:
            rule = "a side can be forced with trace normalisation and compensation only"
            given = f"normalization={normalization!r}, compensate={compensate}"
            raise InvalidArgument(rule, argument=f"side={side!r}", given=given)
        self.method, self.normalization, self.compensate = method, normalization, compensate
        self.isometric, self.side = isometric, side
        maker = newton_schulz_steps if method == "newton-schulz" else polar_express_steps
        self.steps = maker(iterations)

    def pool(self, x: Tensor) -> Tensor:
        if self.fused:
            warn_if_unsafe(self.iterations, torch.float64 if x.dtype == torch.float64 else torch.float32)
            root = covariance_root(x, self.steps, side=self.side)
        else:
            root = _plain_root(x, self.method, self.iterations, self.normalization, self.compensate)
        return triu_vector(root, isometric=self.isometric)


@float64_island  # the covariance's squares, or the root over its trace, leave single precision from 1e-12 on
def _plain_root(x: Tensor, method: str, iterations: int, normalization: str | None, compensate: bool) -> Tensor:
    return matrix_sqrt(
        covariance(x), method=method, iterations=iterations, normalization=normalization, compensate=compensate
    )


@POOLINGS.register("mpn-cov", order=2, paper="Li et al., ICCV 2017")
class MPNCOV(Pooling):
    """Matrix power normalised covariance, by exact eigenvalues.

    Args:
        exponent: any number above 0; 0.5 published.
        normalization: none, "frobenius" (M-Fro) or "spectral" (M-l2): what the power is divided by; the authors found
            neither to help.
        isometric: weigh entries beside the diagonal by the root of 2, so that distances of matrices stay.
        side: "channels", "positions" or "auto", the cheaper one; the result is the same.

    Paper: Li et al., "Is Second-order Information Helpful for Large-scale Visual Recognition?" (ICCV 2017), section 3.
    """

    @arguments.checked
    def __init__(
        self,
        in_channels: int,
        dim: int | None = None,
        exponent: float = 0.5,
        *,
        normalization: str | None = None,
        isometric: bool = False,
        side: str = "auto",
    ) -> None:
        super().__init__(in_channels, dim)
        self.exponent = arguments.number("exponent", exponent, above=0)
        arguments.one_of("normalization", normalization, (None, "frobenius", "spectral"))
        arguments.one_of("side", side, SIDES)
        self.normalization = normalization
        self.isometric, self.side = isometric, side

    def pool(self, x: Tensor) -> Tensor:
        if self.normalization is None:
            power = power_covariance(x, exponent=self.exponent, side=self.side)
        else:
            power = _normalised_power(x, self.exponent, self.side, self.normalization)
        return triu_vector(power, isometric=self.isometric)


@float64_island
def _normalised_power(x: Tensor, exponent: float, side: str, normalization: str) -> Tensor:
    power = power_covariance(x, exponent=exponent, side=side)
    squares = power.square().sum((1, 2), keepdim=True)
    alive = squares > 0
    if normalization == "frobenius":
        size = torch.where(alive, squares, 1.0).sqrt()
    else:
        filled = torch.where(alive, power, torch.eye(power.shape[-1], dtype=power.dtype, device=power.device))
        size = torch.linalg.eigvalsh(filled)[:, -1, None, None]
    return torch.where(alive, power, 0.0) / size


@POOLINGS.register("deep-o2p", order=2, paper="Ionescu et al., ICCV 2015")
class DeepO2P(Pooling):
    """Matrix logarithm of the second moment, log(X X^T / M + ridge I).

    A zero map gives log(ridge) I.

    Args:
        ridge: what is added to every eigenvalue, above 0.
        center: take the covariance instead.

    Paper: Ionescu, Vantzos, Sminchisescu, "Matrix Backpropagation for Deep Networks with Structured Layers" (ICCV
    2015).
    Differs from the paper: the sum over positions is divided by M, and no eigenvalue gaps occur in the gradient.
    """

    @arguments.checked
    def __init__(self, in_channels: int, dim: int | None = None, *, ridge: float = 1e-3, center: bool = False) -> None:
        super().__init__(in_channels, dim)
        self.ridge, self.center = arguments.number("ridge", ridge, above=0), center

    @float64_island
    def pool(self, x: Tensor) -> Tensor:
        return triu_vector(matrix_log(covariance(x, center=self.center), ridge=self.ridge))
