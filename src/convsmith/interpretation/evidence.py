"""What a route points to: training images, and the channels that decide against the runner-up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convsmith.arguments import checked, integer, wide
from convsmith.errors import InvalidArgument
from convsmith.interpretation.ablation import plan_gates
from convsmith.interpretation.find import prepare, row_slices
from convsmith.interpretation.gates import GatedNetwork
from convsmith.interpretation.routes import Routes
from convsmith.interpretation.search import alike


@checked
def nearest_routes(
    query: Routes, reference: Routes, count: int = 5, *, measure: str = "cosine"
) -> tuple[Tensor, Tensor]:
    """Return the places [B, count] of the reference images with the nearest routes, and their similarity [B, count].

    ``measure``: ``"cosine"`` of gates or ``"jaccard"`` of critical nodes. Rows of the same image number as the query
    are left out when query and reference are the same object.

    Examples:
        >>> routes = find_routes(model, images, steps=5)
        >>> place, value = nearest_routes(routes, routes, 2)
    """
    Routes.concatenate([query[:1], reference[:1]])  # same layers and settings, or an error
    if not 1 <= count <= len(reference) - (query is reference):
        raise InvalidArgument("there are not so many reference images", argument=count, given=len(reference))
    a, b = (wide(routes.vector()).to(query.prediction.device) for routes in (query, reference))
    found = alike(a, b, measure)
    if query is reference:
        found = found.masked_fill(query.index[:, None] == query.index, -torch.inf)
    value, place = found.topk(count, dim=1)
    return place, value


@dataclass(frozen=True)
class Contrast:
    """Channels that decide between the prediction and the runner-up, strongest first, for every image.

    ``layer`` [B][n] names, ``channel`` [B, n], ``effect`` [B, n]: first-order change of the margin (logit of the
    prediction minus logit of the runner-up) when the channel is switched off, with the sign turned: positive nodes
    speak for the prediction. ``margin`` [B].
    """

    layer: list[list[str]]
    channel: Tensor
    effect: Tensor
    margin: Tensor


@checked
def runner_up_contrast(
    model: nn.Module, images: Tensor, routes: Routes, count: int = 10, *, batch_size: int | None = None
) -> Contrast:
    """Return the ``count`` channels of each image's route that weigh most between the top two classes.

    Effect of a node: gate-derivative of the margin in the full network, sum over positions of activation x gradient.

    Examples:
        >>> contrast = runner_up_contrast(model, images, find_routes(model, images, steps=5), 3)
    """
    integer("count", count, least=1)
    if len(routes) != len(images):
        raise InvalidArgument("one route per image", argument=f"{len(images)} images", given=f"{len(routes)} routes")
    model, images = prepare(model, images)
    plan, gates = plan_gates(model, images, routes.gates)
    critical = (gates > 0).to(images)
    names = [(site.name, channel) for site in plan.sites for channel in range(site.width)]
    count = min(count, plan.total)
    effects, margins = [], []
    for rows in row_slices(images, batch_size):
        with GatedNetwork(model, plan, images[rows]) as network:
            gates = torch.ones_like(critical[rows]).requires_grad_(True)
            logits = network.logits(gates)
            top = logits.gather(1, routes.prediction[rows, None].to(images.device, copy=True))
            second = logits.gather(1, routes.runner_up[rows, None].to(images.device, copy=True))
            (slope,) = torch.autograd.grad((top - second).sum(), gates)
        effects.append(slope * critical[rows])
        margins.append((top - second)[:, 0].detach())
    effect = torch.cat(effects)
    place = effect.abs().topk(count, dim=1).indices
    layers = [[names[k][0] for k in row] for row in place.tolist()]
    channels = torch.tensor([[names[k][1] for k in row] for row in place.tolist()])
    return Contrast(layers, channels, effect.gather(1, place), torch.cat(margins))
