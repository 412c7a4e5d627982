"""The demonstration's routes part: routes of held-out digits, removal, a detector beside a baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convsmith.cli.shell import terminal
from convsmith.cli.shell.progress import progress

if TYPE_CHECKING:
    from convsmith.cli.verbs.demo import Context

TITLE = "Explain predictions by their routes, and detect adversarial images"
IMAGES, SHOWN, EPSILON = 64, 4, 32 / 255


def run(context: Context) -> None:
    """Find routes of test digits, write removal curve and chapters, fit and score a small detector."""
    import torch

    from convsmith import interpretation
    from convsmith.cli.reports import detect_report, explain_report
    from convsmith.cli.verbs.explain import Explained

    model, test = context.model.eval(), context.images.test
    batch = test.fetch(range(min(IMAGES, len(test))))
    pixels = test.pixels(range(len(batch)))
    names = tuple(f"test image {int(i)}" for i in batch.index)
    found = Explained(batch.images, pixels, names, batch.labels, tuple(test.classes))
    with progress("routes") as callback:
        routes = interpretation.find_routes(
            model, batch.images, labels=batch.labels, index=batch.index, progress=callback
        )
    facts = explain_report.write(context.folder, model, found, routes, neighbours=None, show=SHOWN, seed=context.seed)
    context.headline["critical nodes, %"] = facts["critical nodes, %"]
    about = context.images.description
    train = context.images.train
    own = train.fetch(torch.arange(min(160, len(train))))
    with progress("detector") as callback:
        rows = interpretation.detection_table(
            model,
            interpretation.Pictures(own.images, own.labels, own.index, about.mean, about.std),
            interpretation.Pictures(batch.images, batch.labels, batch.index, about.mean, about.std),
            epsilon=EPSILON,
            unseen=("fgsm",),
            per_class=(5,),
            features=("routes", "activations"),
            seed=context.seed,
            progress=callback,
        )
    detect_report.section(rows, EPSILON).save(context.folder, "48-detector")
    seen = next(row for row in rows if row.features == "routes" and row.seen)
    context.headline["detector, area under ROC"] = round(seen.report.auroc, 3)
    terminal.say(
        f"routes: {facts['critical nodes, %']} % of {facts['nodes']} nodes are critical; "
        f"detector AUROC {seen.report.auroc:.3f} on the attack it was fitted on"
    )
