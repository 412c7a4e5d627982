"""timm's interface to the maps between a network's stages, once for all networks of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from convsmith.errors import InvalidArgument


def intermediates(
    model: nn.Module,
    x: Tensor,
    stages: Sequence[tuple[str, Callable[[Tensor], Tensor]]],
    *,
    indices: int | list[int] | None = None,
    norm: bool = False,
    stop_early: bool = False,
    output_fmt: str = "NCHW",
    intermediates_only: bool = False,
) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
    """Run ``stages`` in turn and collect the maps named in ``model.feature_info``.

    Args:
        model: the network, for its ``feature_info`` and, after the last stage, its ``finish``.
        x: images [B, C, H, W].
        stages: names and functions; the names that count are those of ``feature_info``.
        indices: which maps: the last n, these, or None for all.
        norm: no network of ours has a last normalisation to apply; anything but False is an error.
        stop_early: do not run what follows the last map that is wanted.
        output_fmt: only ``"NCHW"``.
        intermediates_only: leave the final features out.
    """
    if output_fmt != "NCHW":
        raise InvalidArgument("maps come as NCHW", argument="output_fmt", given=repr(output_fmt))
    if norm:
        raise InvalidArgument("there is no last normalisation to apply", argument="norm", given=repr(norm))
    counted = [info["module"] for info in model.feature_info]  # type: ignore[union-attr]  # timm's interface
    taken = wanted_maps(len(counted), indices)
    found = []
    for name, stage in stages:
        place = counted.index(name) if name in counted else None
        if stop_early and place is not None and place > max(taken):
            break
        x = stage(x)
        if place in taken:
            found.append(x)
    if intermediates_only:
        return found
    finish = getattr(model, "finish", None)
    return (x if finish is None else finish(x)), found


def wanted_maps(count: int, indices: int | list[int] | None) -> list[int]:
    """Return the numbers of the maps that ``indices`` means out of ``count``: the last n, these, or all."""
    if indices is None:
        return list(range(count))
    asked = list(range(count - indices, count)) if isinstance(indices, int) else list(indices)
    if not asked or any(not -count <= place < count for place in asked) or (isinstance(indices, int) and asked[0] < 0):
        raise InvalidArgument(f"there are {count} maps", argument="indices", given=repr(indices))
    return [place % count for place in asked]
