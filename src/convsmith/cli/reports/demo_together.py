"""The demonstration's last part: the study ``together/one-network`` at its smallest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convsmith.cli.shell.progress import progress

if TYPE_CHECKING:
    from convsmith.cli.verbs.demo import Context

TITLE = "One network through all four: lean, sharp, adapted, explained, guarded, in int8"


def run(context: Context) -> None:
    """Send the plain and the convsmith network down the same short road and put their numbers side by side."""
    from convsmith.errors import require
    from convsmith.report import Section

    require("mlxtend", "demo")
    from experiments.studies.together_one_network import ARMS, SMALLEST, judged, travel

    cells = {}
    with progress("road") as callback:
        for number, arm in enumerate(ARMS):
            callback(number, len(ARMS), arm)
            cells[arm] = [travel(arm, context.seed, SMALLEST)]
        callback(len(ARMS), len(ARMS), "done")
    outcome = judged(cells)
    Section(
        "Together on one network",
        [
            "Both networks learn MNIST, adapt to unlabelled UCI digits 0 to 4, explain their predictions, are attacked "
            "and guarded, and have their weights stored in int8. This is the shortest form with one seed: "
            "`python -m experiments study together/one-network` runs the full one, and its rule decides.",
            outcome.summary,
        ],
        outcome.tables,
        outcome.figures,
    ).save(context.folder, "60-together")
    ours = cells["convsmith"][0]
    context.headline["adapted target accuracy of the one network, %"] = ours["target_adapted"]
