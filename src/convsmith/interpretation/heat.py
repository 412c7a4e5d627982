"""Where on the image the route finds its evidence: heat maps, and their overlay on the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.arguments import checked, integer, number, one_of, tensor
from convsmith.errors import InvalidArgument
from convsmith.interpretation.ablation import plan_gates
from convsmith.interpretation.find import class_numbers, prepare, row_slices
from convsmith.interpretation.gates import GatedNetwork, spread
from convsmith.interpretation.routes import Routes

METHODS = ("class-activation", "route-activation", "pathway-gradient")


@checked
def heat_map(
    model: nn.Module,
    images: Tensor,
    routes: Routes,
    *,
    method: str = "class-activation",
    sizes: int = 2,
    smooth: float = 0.0,
    target: Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Return how much every pixel speaks for a class, non-negative [B, H, W]; 0 where nothing does.

    ``"class-activation"``: at a gated layer, the sum over all channels of activation x d logit / d activation of the
    full network, position by position, its negative part cut off, resized bilinearly to [H, W] and divided by its
    largest value. The last gated layer of each of the ``sizes`` coarsest map sizes gives one, and the result is their
    geometric mean: warm where coarse and fine layers agree. A layer without any heat is left out. Before the cut the
    sum over positions is the layer's first-order contribution to the logit. Selvaraju et al., ICCV 2017, section 3;
    element by element as Draelos and Carin 2020.

    ``"route-activation"``: the same with every channel weighed by its gate, so that a closed layer is left out.

    ``"pathway-gradient"``: |d logit / d pixel| of the network with critical nodes on and all others off, the largest
    channel at each pixel. Khakzar et al., CVPR 2021, section 3.4. ``sizes`` is not used.

    ``smooth``: standard deviation of a Gaussian blur, as a share of the larger side (0.02 suits a pathway gradient).
    ``target`` [B] defaults to the predicted class.

    Examples:
        >>> heat_map(model, images, find_routes(model, images, steps=5)).shape
        torch.Size([8, 16, 16])
    """
    one_of("method", method, METHODS)
    integer("sizes", sizes, least=1)
    number("smooth", smooth, least=0, most=1)
    model, images = prepare(model, images)
    plan, gates = plan_gates(model, images, routes.gates)
    gates = gates.to(images)
    wanted = class_numbers(model, images, routes.prediction if target is None else target, "target")
    maps = []
    for rows in row_slices(images, batch_size):
        with GatedNetwork(model, plan, images[rows], cache=False) as network:
            network.images = network.images.clone().requires_grad_(True)  # outputs of frozen layers need gradients
            label = wanted[rows].clone()  # what inference mode made cannot be saved for a gradient
            if method == "pathway-gradient":
                maps.append(_pathway_gradient(network, (gates[rows] > 0).to(images), label))
            else:
                weights = gates[rows] if method == "route-activation" else torch.ones_like(gates[rows])
                maps.append(_activation(network, weights, label, sizes))
    return blurred(torch.cat(maps), smooth)


def _activation(network: GatedNetwork, gates: Tensor, target: Tensor, sizes: int) -> Tensor:
    """Return maps [B, H, W] of the full network's activations and gradients, channels weighed by ``gates``."""
    size = network.images.shape[-2:]
    # gates of one: what is watched stays as it is even where an activation after it works in place
    logit = network.logits(torch.ones_like(gates), watch=True).gather(1, target[:, None]).sum()
    last: dict[int, int] = {}  # positions of a map -> the last layer with as many
    for place, site in enumerate(network.plan.sites):
        if site.rank == 4:
            last[network.outputs[place].numel() // site.width] = place
    sites = [last[positions] for positions in sorted(last)[:sizes]]
    if not sites:
        raise InvalidArgument(
            "a class activation needs a gated layer with maps [B, C, H, W]",
            argument="routes.layers",
            given=", ".join(site.name for site in network.plan.sites),
            hint='method="pathway-gradient", or routes of other layers',
        )
    outputs = [network.outputs[place] for place in sites]
    slopes = torch.autograd.grad(logit, outputs, allow_unused=True)
    parts = gates.split(network.plan.widths, dim=1)
    heat, count = logit.new_ones(len(gates), *size), logit.new_zeros(len(gates), 1, 1)
    for place, output, slope in zip(sites, outputs, slopes, strict=True):
        if slope is None:  # the logits do not read this layer (a second head)
            continue
        site = network.plan.sites[place]
        places = (output.detach() * slope * spread(parts[place], site)).sum(site.axis).relu()
        resized = F.interpolate(places[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        largest = resized.amax((1, 2), keepdim=True)
        heat = heat * torch.where(largest > 0, resized / largest, 1.0)
        count = count + (largest > 0)
    return torch.where(count > 0, heat ** (1 / count.clamp(min=1)), 0.0)


def _pathway_gradient(network: GatedNetwork, gates: Tensor, target: Tensor) -> Tensor:
    logit = network.logits(gates).gather(1, target[:, None]).sum()
    (slope,) = torch.autograd.grad(logit, network.images)
    return slope.abs().amax(1)


def blurred(maps: Tensor, share: float) -> Tensor:
    """Return maps [B, H, W] after a Gaussian blur, deviation ``share`` of the larger side; edges are repeated."""
    deviation = share * max(maps.shape[-2:])
    radius = min(round(3 * deviation), min(maps.shape[-2:]) - 1)
    if radius < 1:
        return maps
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=maps.device) / deviation) ** 2).to(maps)
    weights = weights / weights.sum()
    padded = F.pad(maps[:, None], [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights[None, None, None]), weights[None, None, :, None])[:, 0]


@checked
def overlay(pixels: Tensor, heat: Tensor) -> Tensor:
    """Return images [B, 3, H, W] in [0, 1]: ``pixels`` [B, C, H, W] in grey under ``heat`` [B, h, w] in warm colours.

    Heat is resized to the image; its lower 60 % stay grey, its strongest places are orange. A map of zeros leaves the
    image grey.

    Examples:
        >>> overlay(torch.rand(2, 3, 16, 16), torch.rand(2, 4, 4)).shape
        torch.Size([2, 3, 16, 16])
    """
    tensor("pixels", pixels, rank=4, what="images [B, C, H, W]")
    if len(tensor("heat", heat, rank=3, what="maps [B, h, w]")) != len(pixels):
        raise InvalidArgument("one map per image", argument=f"{len(pixels)} images", given=f"{len(heat)} maps")
    heat = F.interpolate(heat[:, None].float(), size=pixels.shape[-2:], mode="bilinear", align_corners=False)
    flat = heat.flatten(1)
    low, high = (flat.quantile(q, dim=1).view(-1, 1, 1, 1) for q in (0.6, 0.995))
    share = 0.7 * ((heat - low) / (high - low).clamp(min=torch.finfo(heat.dtype).tiny)).clamp(0, 1)
    colour = pixels if pixels.shape[1] == 3 else pixels.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    grey = 0.3 * colour + 0.7 * colour.mean(1, keepdim=True)
    warm = grey.new_tensor([1.0, 0.35, 0.0])[:, None, None]
    return (1 - share) * grey + share * warm
