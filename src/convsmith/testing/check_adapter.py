"""The suite of adaptation methods: a `DomainTask` with its settings, from one step of training to its state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.adaptation.methods.method import METHODS, Domains, DomainTask, MethodConfig, method_settings
from convsmith.arguments import checked
from convsmith.data.batch import Batch, DomainBatch
from convsmith.registry import setting_types
from convsmith.testing.suite import (
    Conformance,
    other_layouts,
    require_gradients,
    require_settings,
    require_that,
    run_checks,
    state_shapes,
    untouched,
)

CLASSES, SIDE, STEPS = 4, 6, 12
SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "1e-12": lambda x: x * 1e-12,
    "1e12": lambda x: x * 1e12,
    "offset 1e3": lambda x: x + 1e3,
}


@checked
def check_adapter(
    name: str, *, settings: Mapping[str, Any] | None = None, exceptions: Mapping[str, str] | None = None
) -> Conformance:
    """Check the registered adaptation method ``name``.

    Its settings are a frozen dataclass whose values are checked; one step gives a finite loss with a gradient for the
    network at every phase of the training, for unequal batches, tiny, huge and offset images, in float64, under
    autocast and for both normalisations; its state lives on the meta device; it never reads a target label, changes no
    argument, and everything it remembers is in its state dict.

    Args:
        name: see `convsmith.adaptation.available`.
        settings: in place of its defaults, to keep the suite quick.
        exceptions: reasons by check for rules that it cannot follow.

    Raises:
        Nonconforming: names every broken rule.

    Examples:
        >>> rules = check_adapter("source-only").passed
    """
    entry = METHODS.entry(name)
    chosen = method_settings(name, dict(settings or {}))
    world, labels = _world()
    phases = (0, STEPS // 2, STEPS - 1)

    def made(own: DomainBatch = world, config: MethodConfig = chosen, model: nn.Module | None = None) -> Any:
        built = network() if model is None else model
        torch.manual_seed(3)
        domains = Domains([own.source], [own.target], CLASSES, STEPS)
        task: DomainTask = METHODS[name](built, domains, config)
        return task.to(own.source.images.dtype)

    def stepped(task: DomainTask, step: int, batch: DomainBatch) -> Any:
        task.train()
        for earlier in range(step + 1):
            task.before_step(earlier)
        torch.manual_seed(7)
        return task(batch, step)

    def settings_are_checked() -> None:
        require_that(isinstance(chosen, MethodConfig), "settings are a MethodConfig")
        require_that(isinstance(entry.traits["partial"], bool), "the trait 'partial' is declared")
        require_settings(chosen, lambda given: method_settings(name, given))

    def one_step_in_every_phase() -> None:
        for step in phases:
            task = made()
            losses = stepped(task, step, _first(world))
            for key, part in {"total": losses.total, **losses.parts}.items():
                good = part.dim() == 0 and bool(part.isfinite())
                require_that(good, f"{key} is a finite scalar at step {step}", part)
            require_gradients(task.model, losses.total)

    def unequal_batches() -> None:
        for source, target in ((12, 5), (5, 12), (2, 2)):
            total = stepped(made(), phases[-1], _first(world, source, target)).total
            require_that(bool(total.isfinite()), f"batches of {source} and {target} images", total)

    def float64_and_autocast() -> None:
        doubled = _changed(world, Tensor.double)
        wide = stepped(made(doubled), phases[-1], _first(doubled))
        require_that(wide.total.dtype == torch.float64, "float64 stays float64", wide.total.dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = stepped(made(), phases[-1], _first(world)).total
        require_that(bool(half.isfinite()), "a step under autocast is finite", half)

    def scales_and_offset() -> None:
        for words, change in SCALES.items():
            task = made()
            total = stepped(task, phases[-1], _changed(_first(world), change)).total
            require_that(bool(total.isfinite()), f"the loss is finite, {words}", total)
            require_gradients(task.model, total)

    def meta_device() -> None:
        with torch.device("meta"):
            task = made(model=network()).to("meta")
        require_that(state_shapes(task) == state_shapes(made()), "the meta device has the same state")
        require_that(all(v.is_meta for v in task.state_dict().values()), "all of it moves to the meta device")

    def layout() -> None:
        plain = stepped(made(), phases[-1], _first(world)).total
        batch = _first(world)
        for source, target in zip(*map(other_layouts, (batch.source.images, batch.target.images)), strict=True):
            laid = DomainBatch(replace(batch.source, images=source), replace(batch.target, images=target))
            found = stepped(made(), phases[-1], laid).total
            require_that(torch.allclose(found, plain, rtol=1e-4, atol=1e-5), "layout changes nothing", (found, plain))

    def both_normalisations() -> None:
        for kind in ("joint", "separate") if "normalisation" in setting_types(chosen) else ():
            config = method_settings(name, {**dict(settings or {}), "normalisation": kind})
            total = stepped(made(config=config), phases[-1], _first(world)).total
            require_that(bool(total.isfinite()), f"normalisation={kind!r}", total)

    def no_target_label() -> None:
        found = []
        for known in (world.target.labels, labels):
            named = replace(world, target=replace(world.target, labels=known))
            found.append(stepped(made(named), phases[-1], _first(named)).total)
        require_that(torch.equal(found[0], found[1]), "target labels change nothing", found)

    def deterministic() -> None:
        first, second = (stepped(made(), phases[-1], _first(world)).total for _ in range(2))
        require_that(torch.equal(first, second), "two tasks of one seed give one loss", (first, second))

    def arguments_untouched() -> None:
        batch, task = _first(world), made()
        with untouched(batch.source.images, batch.target.images, batch.source.labels, batch.target.labels):
            task.before_step(phases[1])
        before = batch.source.images.clone()
        stepped(task, phases[-1], batch).total.backward()
        require_that(torch.equal(before, batch.source.images), "a step changes no image")

    def state_dict_and_copies() -> None:
        task = made()
        stepped(task, phases[-1], _first(world)).total.backward()
        twin = made()
        twin.load_state_dict(task.state_dict())
        copied = copy.deepcopy(task)
        found = []
        for one in (task, twin, copied):
            one.train()
            torch.manual_seed(7)
            found.append(one(_first(world), phases[-1]).total.detach())
        require_that(torch.equal(found[0], found[1]), "everything remembered is in the state dict", found)
        require_that(torch.equal(found[0], found[2]), "a deep copy goes on alike", found)

    def parameter_groups() -> None:
        task = made()
        held = [p for group in task.parameter_groups(0.1) for p in group["params"]]
        trainable = {id(p) for p in task.parameters() if p.requires_grad}
        require_that(len(held) == len({id(p) for p in held}), "no parameter is in two groups")
        require_that({id(p) for p in held} == trainable, "every trainable parameter is in a group")

    def class_weights() -> None:
        task = made()
        stepped(task, phases[-1], _first(world))
        weights = task.class_weights()
        if weights is None:
            return
        good = weights.shape == (CLASSES,) and bool((weights >= 0).all()) and not weights.requires_grad
        require_that(good, "class weights are constants [K], not negative", weights)

    def evaluate() -> None:
        task = made().eval()
        with untouched(*task.state_dict().values()), torch.no_grad():
            found = task.evaluate([_first(world, 20).source])
        require_that(0 <= found["source_accuracy"] <= 1, "evaluate gives the source's accuracy", found)

    def outputs_beside_logits() -> None:
        plain = stepped(made(), phases[-1], _first(world)).total
        found = stepped(made(model=_Detailed()), phases[-1], _first(world)).total
        require_that(torch.equal(plain, found), "networks may return more than logits", (plain, found))

    checks = [settings_are_checked, one_step_in_every_phase, unequal_batches, float64_and_autocast, scales_and_offset]
    checks += [meta_device, layout, both_normalisations, no_target_label, deterministic, arguments_untouched]
    checks += [state_dict_and_copies, parameter_groups, class_weights, evaluate, outputs_beside_logits]
    return run_checks(f"the adaptation method {name!r}", checks, exceptions)


def network() -> nn.Sequential:
    """Return the suite's network: two convolutions with batch norm, and a linear classifier."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.ReLU(),
        nn.Linear(6, CLASSES),
    )


class _Detailed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x), x


def _world() -> tuple[DomainBatch, Tensor]:
    """Return noise with a bright spot where its class says, two of four in the target, whose labels follow."""
    generator = torch.Generator().manual_seed(1)

    def images(labels: Tensor, shift: float) -> Tensor:
        made = 0.3 * torch.rand(len(labels), 1, SIDE, SIDE, generator=generator)
        for row, label in enumerate(labels.tolist()):
            y, x = divmod(label, 2)
            made[row, 0, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3] += 0.6 - shift
        return made

    labels, others = torch.arange(24) % CLASSES, torch.arange(20) % 2
    source = Batch(images(labels, 0.0), labels, torch.arange(24))
    return DomainBatch(source, Batch(images(others, 0.2), torch.full((20,), -1), torch.arange(20))), others


def _first(world: DomainBatch, source: int = 12, target: int = 12) -> DomainBatch:
    """Return copies of the first images of both domains."""
    sides = ((world.source, source), (world.target, target))
    return DomainBatch(*(Batch(b.images[:n].clone(), b.labels[:n], b.index[:n]) for b, n in sides))


def _changed(world: DomainBatch, change: Callable[[Tensor], Tensor]) -> DomainBatch:
    return DomainBatch(*(replace(b, images=change(b.images)) for b in (world.source, world.target)))
