"""A linear head on frozen features: every image through the network once, then a convex problem."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.arguments import checked
from convsmith.data.batch import Batch
from convsmith.data.source import Progress
from convsmith.errors import InvalidArgument
from convsmith.inspection.modes import copied, unwrap
from convsmith.training.evaluation import predict


class Features(nn.Module):
    """Input of the classifier, [B, C, H, W] -> [B, D], of a network with timm's ``forward_head``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)


@checked
def linear_probe(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    weight_decay: float = 1e-3,
    label_smoothing: float = 0.0,
    iterations: int = 200,
    progress: Progress | None = None,
) -> nn.Module:
    """Return a copy of ``model`` with its linear classifier fitted to the labels of ``batches``.

    Minimises cross-entropy plus ``weight_decay / 2 |W|^2`` by L-BFGS in float64, from zero, on standardised features
    (without a bias they are scaled, not centred).

    Args:
        model: a network of timm whose classifier is one ``nn.Linear``.
        batches: labelled images, without augmentation.
        weight_decay: L2 factor of the weights (not of the bias).
        label_smoothing: of the cross-entropy, in [0, 1).
        iterations: largest number of L-BFGS steps.
        progress: called after each batch of features.

    Raises:
        InvalidArgument: no such classifier, images without labels.

    Examples:
        >>> probed = linear_probe(model, loader, iterations=5)
    """
    changed: Any = copied(unwrap(model))
    head = changed.get_classifier() if hasattr(changed, "get_classifier") else None
    if not isinstance(head, nn.Linear) or not hasattr(changed, "forward_head"):
        rule = "a linear probe needs a timm network with one linear classifier"
        raise InvalidArgument(rule, given=type(head).__name__)
    found, labels, _ = predict(Features(changed), batches, progress=progress)
    if not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < head.out_features:
        given = f"{len(labels)} images, a classifier of {head.out_features} classes"
        raise InvalidArgument("a linear probe needs images with labels of its classes", given=given)
    features = found.flatten(1).double()
    mean = features.mean(0) * (head.bias is not None)
    std = (features - mean).square().mean(0).sqrt().clamp(min=1e-6)
    features = (features - mean) / std
    weight = torch.zeros(head.out_features, head.in_features, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(head.out_features, dtype=torch.float64, requires_grad=head.bias is not None)
    solver = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(features @ weight.T + bias, labels, label_smoothing=label_smoothing)
        value = value + weight_decay / 2 * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)  # type: ignore[arg-type]  # torch's stubs want a float
    with torch.no_grad():
        head.weight.copy_(weight / std)
        if head.bias is not None:
            head.bias.copy_(bias - (weight / std) @ mean)
    return changed
