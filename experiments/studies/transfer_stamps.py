"""``transfer/stamps``: partial adaptation of a pretrained network from cut-out photographs to drawings, 9 kinds to 4.

Budget, set before the run: the recipe of `transfer/styles` unchanged, five seeds for the seven methods and for SAN's
ablations, one direction (there are too few drawings to start from), about ten minutes on one core. Nothing was tried
out on these pictures.
"""

from __future__ import annotations

from convsmith.report import Table
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.style_transfer import RECIPE, STAMPS
from experiments.studies.transfer_styles import (
    CENTRAL,
    INFORMED,
    METHODS,
    QUICK_RECIPE,
    Cells,
    Job,
    ablated,
    ablations,
    accuracies,
    against,
    auroc,
    balanced_gains,
    decide,
    gains,
    measured,
    spread,
)

TARGET = "first-4"


@study(
    "transfer/stamps",
    claim="From photographs to drawings, plain adversarial adaptation to a target with fewer kinds of things falls "
    "below source-only, and selective adversarial adaptation does not.",
    source="Cao et al., Selective Adversarial Networks, CVPR 2018, section 4.2",
    rule="Accuracy at the last step, so that nothing is chosen. Reproduced if the paired difference to source-only has "
    "a 95 % interval below 0 for DANN and not for SAN; partly if SAN less DANN has an interval above 0; else not "
    "reproduced.",
    data="tuxpaint-stamps (Debian, GPL-2): photographs of 9 kinds of things (346), drawings of 4 of them (102); "
    "EfficientNet-Lite0 (ImageNet) frozen up to its last convolution, every second row and column of its 7 x 7 map",
)
def stamps(running: Study) -> Outcome:
    """Run the seven methods with all seeds, then SAN's ablations."""
    methods = CENTRAL if running.quick else METHODS
    plans: list[list[Job]] = [[(TARGET, m, m, {}) for m in methods]]
    if not running.quick:
        plans.append(ablations(TARGET))
    cells = measured(running, plans, (STAMPS,), QUICK_RECIPE if running.quick else RECIPE)
    verdict, checks, summary = judged(cells)
    caption = "{} of 9 classes, %, mean and 95 % interval over seeds. "
    tables = [accuracies(cells, TARGET, caption), balanced_gains(cells, (TARGET,))]
    notes = [auroc(cells), spread(cells, TARGET)]
    if not running.quick:
        tables.append(ablated(cells, TARGET))
        notes.append(INFORMED)
    return Outcome(verdict, summary, [*tables, checks], [gains(cells, TARGET)], notes)


def judged(cells: Cells) -> tuple[Verdict, Table, str]:
    """Apply the rule."""
    verdict, checks, summary = decide(cells)
    better = against(cells, STAMPS, TARGET, "san", "dann")
    if verdict != "reproduced":
        verdict = "partly" if better.n > 1 and better.low > 0 else "not reproduced"
    return verdict, checks, f"{summary[:-1]}; SAN less DANN {better} points."
