"""``convsmith structures``: show which interleaved structure fits a budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from convsmith.cli.shell import terminal
from convsmith.cli.shell.options import Listing, option
from convsmith.errors import InvalidArgument

EXAMPLES = (
    "structures --channels 256",
    "structures --channels 256 --budget 20000",
    "structures --channels 256 --kernel 1 --size 14 --kind macs --budget 2000000",
    "structures --budget 4672",
)


@dataclass(frozen=True, kw_only=True)
class Arguments(Listing):
    """Show interleaved structures: all of a width within a budget, or without a width the widest pairs.

    A structure is the list of channels per branch of its factors, the spatial one first. All of them connect every
    input with every output by exactly one path.
    """

    channels: int | None = option(None, "channels in and out (none: find the widest pairs)", metavar="C")
    budget: int | None = option(None, "weights, or MACs with --kind macs, that a layer may cost", metavar="N")
    kind: Literal["params", "macs"] = option("params", "what the budget counts")
    kernel: int = option(3, "side of the spatial kernel", metavar="K", least=1)
    size: int = option(1, "side of the output map, for the MACs", metavar="PIXELS", least=1)
    limit: int = option(12, "rows to print", metavar="N", least=1)


def run(arguments: Arguments) -> dict[str, Any]:
    """Print one table."""
    if arguments.channels is None and arguments.budget is None:
        rule = "a structure needs a width or a budget"
        raise InvalidArgument(rule, argument="structures", hint="--channels 256, or --budget 4672")
    from convsmith.compression.operators import chooser

    area, positions = arguments.kernel**2, arguments.size**2
    if arguments.channels is None:
        assert arguments.budget is not None
        weights = arguments.budget if arguments.kind == "params" else arguments.budget // positions
        found = chooser.widest_pairs(weights, area)
        bound = chooser.widest_bound(weights, area)
        rows = [(s.channels, s.partitions[1], s.members, s.params, s.params * positions) for s in found]
        terminal.table(("channels", "L", "M", "params", "MACs"), rows[: arguments.limit])
        terminal.say("", f"no pair of {weights:,} weights is wider than {bound:.1f}, reached at L = {area} M")
        return {"bound": bound, "structures": [asdict(s) for s in found]}
    found = chooser.structures(
        arguments.channels, area=area, positions=positions, budget=arguments.budget, kind=arguments.kind
    )
    dense = chooser.chain_params((arguments.channels,), area)
    shown = [
        (s.name, " x ".join(map(str, s.partitions)), s.params, s.macs, f"{s.params / dense:.1%}")
        for s in found[: arguments.limit]
    ]
    terminal.table(("structure", "channels per branch", "params", "MACs", "of dense"), shown)
    if len(found) > arguments.limit:
        terminal.say("", f"{len(found) - arguments.limit} heavier ones not shown; --limit shows more")
    return {"structures": [asdict(s) for s in found]}
