"""The suite of explainers: scores of every channel for every image, in the shape of `Routes`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convsmith.arguments import checked
from convsmith.interpretation import Routes, score_units
from convsmith.testing.check_compressor import CLASSES, SIDE, network
from convsmith.testing.suite import (
    Conformance,
    other_layouts,
    require_near,
    require_refusal,
    require_refusals,
    require_that,
    run,
    run_checks,
    untouched,
    wrong_tensors,
)

COUNT = 6


@checked
def check_explainer(
    explain: str | Callable[..., Routes],
    *,
    tolerance: float = 1e-3,
    exceptions: Mapping[str, str] | None = None,
) -> Conformance:
    """Check a registered score (see `convsmith.interpretation.SCORES`), or a function like `find_routes`.

    It gives finite, non-negative numbers for every gated channel of every image, with the network's own prediction;
    float32 agrees with float64; images do not influence each other, whatever the batches and their order; the memory's
    layout, gradient mode and gradients of others change nothing; network, images and random state stay as they were;
    the result comes back from its file; wrong networks and images are refused by name.

    Args:
        explain: a name, or a function of (model, images, labels=, index=, batch_size=, layers=).
        tolerance: relative error that rounding may make: an iteration's is larger than a formula's.
        exceptions: reasons by check for rules that it cannot follow.

    Raises:
        Nonconforming: names every broken rule.

    Examples:
        >>> rules = check_explainer("activation").passed
    """
    images = torch.randn(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    model = network()

    def found(own: Any = model, pixels: Any = images, **more: Any) -> Routes:
        if isinstance(explain, str):
            return score_units(own, pixels, explain, **more)
        return explain(own, pixels, **more)

    wanted = found()
    vector = wanted.vector()

    def same(other: Routes, rule: str) -> None:
        require_near(other.vector(), vector, tolerance, rule)

    def numbers() -> None:
        logits = run(model, images)
        require_that(len(wanted) == COUNT and len(wanted.layers) > 0, "one row an image", len(wanted))
        require_that(bool(vector.isfinite().all()) and bool((vector >= 0).all()), "scores are finite and not negative")
        require_that(torch.equal(wanted.prediction, logits.argmax(1)), "the prediction is the network's")
        sure = logits.softmax(1).amax(1)
        require_that(torch.allclose(wanted.confidence, sure, atol=1e-5), "so is the confidence")

    def precision() -> None:
        same(found(network().double(), images.double()), "float32 is float64 to rounding")

    def degenerate_images() -> None:
        for pixels in (torch.zeros_like(images), images * 1e-12, images + 1e3, images * 1e6):
            require_that(bool(found(pixels=pixels).vector().isfinite().all()), "constant, tiny, far: finite")

    def samples_apart() -> None:
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        same(found(batch_size=2), "batches change nothing")
        same(found(pixels=images[order])[order.argsort()], "the order of the images changes nothing")

    def layout() -> None:
        for pixels in other_layouts(images):
            same(found(pixels=pixels), "the memory's layout changes nothing")

    def gradient_modes() -> None:
        with torch.no_grad():
            same(found(), "nothing changes without gradients")
        with torch.inference_mode():
            same(found(), "nothing changes in inference mode")
        frozen = network().requires_grad_(False)
        same(found(frozen), "nothing changes for frozen weights")

    def wrappers() -> None:
        same(found(nn.DataParallel(network())), "wrappers are looked through")

    def arguments_untouched() -> None:
        own = network()
        flags = [p.requires_grad for p in own.parameters()]

        def held() -> list[dict[str, int]]:
            """Return how much every dictionary of every module holds: its hooks of all kinds among them."""
            return [{k: len(v) for k, v in vars(m).items() if isinstance(v, dict)} for m in own.modules()]

        before = held()
        with untouched(images, *own.state_dict().values()):
            found(own)
        require_that(all(p.grad is None for p in own.parameters()), "no gradient is left behind")
        require_that([p.requires_grad for p in own.parameters()] == flags, "no flag is changed")
        require_that(held() == before and not own.training, "no hook is left, the mode stays")

    def repeatable() -> None:
        torch.manual_seed(4)
        first = found()
        require_that(torch.equal(first.vector(), vector), "the same images give the same bits, whatever the seed")

    def labels_and_numbers() -> None:
        labels, index = torch.arange(COUNT) % CLASSES, torch.arange(COUNT) + 7
        made = found(labels=labels, index=index)
        kept = torch.equal(made.labels, labels) and torch.equal(made.index, index)
        require_that(kept, "labels and numbers of images are kept")
        require_refusal(lambda: found(labels=labels[:2]), "labels")
        require_refusal(lambda: found(index=index[:2]), "index")

    def sites() -> None:
        one = found(layers=[wanted.layers[0]])
        require_that(one.layers == wanted.layers[:1], "layers may be chosen", one.layers)
        require_refusal(lambda: found(layers=["no such layer"]), "layers")
        require_refusal(lambda: found(sites="nowhere"), "sites")

    def files() -> None:
        with tempfile.TemporaryDirectory() as folder:
            wanted.save(Path(folder) / "routes.safetensors")
            read = Routes.load(Path(folder) / "routes.safetensors")
        require_that(torch.equal(read.vector(), vector), "the file keeps every bit")
        require_that(dict(read.settings) == dict(wanted.settings), "and the settings", read.settings)

    def refusals() -> None:
        require_refusals(found, ("resnet18", None, torch.zeros(2)), "model")
        require_refusal(lambda: found(network().train()))
        require_refusals(lambda wrong: found(pixels=wrong), [None, *wrong_tensors(images), images[:0]], "images")
        require_refusals(lambda wrong: found(batch_size=wrong), (0, -1, 1.5, "two"), "batch_size")

    checks = [numbers, precision, degenerate_images, samples_apart, layout, gradient_modes, wrappers]
    checks += [arguments_untouched, repeatable, labels_and_numbers, sites, files, refusals]
    name = explain if isinstance(explain, str) else getattr(explain, "__name__", "given")
    return run_checks(f"the explainer {name!r}", checks, exceptions)
