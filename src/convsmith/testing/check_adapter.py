"""The suite of adaptation methods: a `DomainTask` with its settings, from one step of training to its state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.adaptation.methods.method import METHODS, Domains, DomainTask, MethodConfig, method_settings
from convsmith.data.batch import Batch, DomainBatch
from convsmith.registry import setting_types
from convsmith.testing.suite import Conformance, require_refusal, require_that, run_checks, untouched

CLASSES, SIDE, STEPS = 4, 6, 12
SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "1e-12": lambda x: x * 1e-12,
    "1e12": lambda x: x * 1e12,
    "offset 1e3": lambda x: x + 1e3,
}


@dataclass(frozen=True)
class _World:
    """Noise with a bright spot at the place of its class; the target has two of four classes."""

    source: Batch
    target: Batch
    target_labels: Tensor

    def batch(self, source: int = 12, target: int = 12) -> DomainBatch:
        """Return the first images of both domains."""
        return DomainBatch(_first(self.source, source), _first(self.target, target))


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
    world = _world()
    phases = (0, STEPS // 2, STEPS - 1)

    def made(dtype: torch.dtype = torch.float32, config: MethodConfig = chosen, model: nn.Module | None = None) -> Any:
        built = network() if model is None else model
        torch.manual_seed(3)
        own = world if dtype == torch.float32 else _as(world, dtype)
        domains = Domains([own.source], [own.target], CLASSES, STEPS)
        task: DomainTask = METHODS[name](built, domains, config)
        return task.to(dtype)

    def stepped(task: DomainTask, step: int, batch: DomainBatch) -> Any:
        task.train()
        for earlier in range(step + 1):
            task.before_step(earlier)
        torch.manual_seed(7)
        return task(batch, step)

    def settings_are_checked() -> None:
        require_that(isinstance(chosen, MethodConfig) and is_dataclass(chosen), "settings are a MethodConfig")
        try:
            chosen.normalisation = "joint"  # type: ignore[misc]
        except FrozenInstanceError:
            pass
        else:
            raise AssertionError("settings are frozen")
        require_that(isinstance(entry.traits["partial"], bool), "the trait 'partial' is declared")
        require_refusal(lambda: method_settings(name, {"no_such_setting": 1}))
        for key in setting_types(chosen):
            for wrong in (None, "no such choice", object(), -1, float("nan"), [None]):
                if _takes(chosen, key, wrong):
                    continue
                require_refusal(lambda key=key, wrong=wrong: method_settings(name, {key: wrong}), key)  # type: ignore[misc]

    def one_step() -> None:
        for step in phases:
            task = made()
            losses = stepped(task, step, world.batch())
            for key, part in {"total": losses.total, **losses.parts}.items():
                require_that(
                    part.dim() == 0 and bool(part.isfinite()), f"{key} is a finite scalar at step {step}", part
                )
            losses.total.backward()
            grown = [p.grad for p in task.model.parameters() if p.grad is not None]
            require_that(bool(grown), f"the network gets a gradient at step {step}")
            require_that(all(bool(g.isfinite().all()) for g in grown), f"the gradient is finite at step {step}")

    def parts_are_detachable() -> None:
        parts = stepped(made(), phases[-1], world.batch()).parts
        require_that(all(isinstance(p, Tensor) for p in parts.values()), "parts are tensors for the log", parts)

    def unequal_batches() -> None:
        for source, target in ((12, 5), (5, 12), (2, 2)):
            total = stepped(made(), phases[-1], world.batch(source, target)).total
            require_that(bool(total.isfinite()), f"batches of {source} and {target} images", total)

    def precision() -> None:
        wide = stepped(made(torch.float64), phases[-1], _as(world, torch.float64).batch())
        require_that(wide.total.dtype == torch.float64, "float64 stays float64", wide.total.dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = stepped(made(), phases[-1], world.batch()).total
        require_that(bool(half.isfinite()), "a step under autocast is finite", half)

    def scales() -> None:
        for words, change in SCALES.items():
            batch, task = world.batch(), made()
            moved = (_with(b, change(b.images)) for b in (batch.source, batch.target))
            total = stepped(task, phases[-1], DomainBatch(*moved)).total
            total.backward()
            grown = [p.grad for p in task.model.parameters() if p.grad is not None]
            finite = bool(total.isfinite()) and all(bool(g.isfinite().all()) for g in grown)
            require_that(finite, f"loss and gradient are finite, {words}", total)

    def meta() -> None:
        with torch.device("meta"):
            task = made(model=network()).to("meta")
        found, wanted = ({k: v.shape for k, v in one.state_dict().items()} for one in (task, made()))
        require_that(found == wanted, "the meta device has the same state", found)
        require_that(all(v.is_meta for v in task.state_dict().values()), "all of it moves to the meta device")

    def layout() -> None:
        plain = stepped(made(), phases[-1], world.batch()).total
        batch = world.batch()
        source = batch.source.images.contiguous(memory_format=torch.channels_last)
        target = batch.target.images.transpose(2, 3).contiguous().transpose(2, 3)
        other = DomainBatch(_with(batch.source, source), _with(batch.target, target))
        found = stepped(made(), phases[-1], other).total
        require_that(torch.allclose(found, plain, rtol=1e-4, atol=1e-5), "layout changes nothing", (found, plain))

    def normalisations() -> None:
        for kind in ("joint", "separate"):
            config = method_settings(name, {**dict(settings or {}), "normalisation": kind})
            total = stepped(made(config=config), phases[-1], world.batch()).total
            require_that(bool(total.isfinite()), f"normalisation={kind!r}", total)

    def no_target_label() -> None:
        found = []
        for labels in (torch.full_like(world.target_labels, -1), world.target_labels):
            named = _World(world.source, _with(world.target, labels=labels), labels)
            domains = Domains([named.source], [named.target], CLASSES, STEPS)
            model = network()
            torch.manual_seed(3)
            found.append(stepped(METHODS[name](model, domains, chosen), phases[-1], named.batch()).total)
        require_that(torch.equal(found[0], found[1]), "target labels change nothing", found)

    def deterministic() -> None:
        first, second = (stepped(made(), phases[-1], world.batch()).total for _ in range(2))
        require_that(torch.equal(first, second), "two tasks of one seed give one loss", (first, second))

    def untouched_arguments() -> None:
        batch, task = world.batch(), made()
        with untouched(batch.source.images, batch.target.images, batch.source.labels, batch.target.labels):
            task.before_step(phases[1])
        before = batch.source.images.clone()
        stepped(task, phases[-1], batch).total.backward()
        require_that(torch.equal(before, batch.source.images), "a step changes no image")

    def state() -> None:
        task = made()
        stepped(task, phases[-1], world.batch()).total.backward()
        twin = made()
        twin.load_state_dict(task.state_dict())
        copied = copy.deepcopy(task)
        found = []
        for one in (task, twin, copied):
            one.train()
            torch.manual_seed(7)
            found.append(one(world.batch(), phases[-1]).total.detach())
        require_that(torch.equal(found[0], found[1]), "everything remembered is in the state dict", found)
        require_that(torch.equal(found[0], found[2]), "a deep copy goes on alike", found)

    def groups() -> None:
        task = made()
        held = [p for group in task.parameter_groups(0.1) for p in group["params"]]
        trainable = {id(p) for p in task.parameters() if p.requires_grad}
        require_that(len(held) == len({id(p) for p in held}), "no parameter is in two groups")
        require_that({id(p) for p in held} == trainable, "every trainable parameter is in a group")

    def class_weights() -> None:
        task = made()
        stepped(task, phases[-1], world.batch())
        weights = task.class_weights()
        if weights is None:
            return
        good = weights.shape == (CLASSES,) and bool((weights >= 0).all()) and not weights.requires_grad
        require_that(good, "class weights are constants [K], not negative", weights)

    def evaluates() -> None:
        task = made().eval()
        with untouched(*task.state_dict().values()), torch.no_grad():
            found = task.evaluate([_first(world.source, 20)])
        require_that(0 <= found["source_accuracy"] <= 1, "evaluate gives the source's accuracy", found)

    def other_outputs() -> None:
        plain = stepped(made(), phases[-1], world.batch()).total
        found = stepped(made(model=_Detailed()), phases[-1], world.batch()).total
        require_that(torch.equal(plain, found), "networks may return more than logits", (plain, found))

    return run_checks(
        f"the adaptation method {name!r}",
        {
            "settings are checked": settings_are_checked,
            "one step in every phase": one_step,
            "parts are tensors": parts_are_detachable,
            "unequal batches": unequal_batches,
            "float64 and autocast": precision,
            "scales and offset": scales,
            "meta device": meta,
            "layout": layout,
            "both normalisations": normalisations,
            "no target label": no_target_label,
            "deterministic": deterministic,
            "arguments untouched": untouched_arguments,
            "state dict and copies": state,
            "parameter groups": groups,
            "class weights": class_weights,
            "evaluate": evaluates,
            "outputs beside logits": other_outputs,
        },
        exceptions,
    )


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


def _world() -> _World:
    generator = torch.Generator().manual_seed(1)

    def images(labels: Tensor, shift: float) -> Tensor:
        made = 0.3 * torch.rand(len(labels), 1, SIDE, SIDE, generator=generator)
        for row, label in enumerate(labels.tolist()):
            y, x = divmod(label, 2)
            made[row, 0, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3] += 0.6 - shift
        return made

    labels, others = torch.arange(24) % CLASSES, torch.arange(20) % 2
    source = Batch(images(labels, 0.0), labels, torch.arange(24))
    return _World(source, Batch(images(others, 0.2), torch.full((20,), -1), torch.arange(20)), others)


def _first(batch: Batch, count: int) -> Batch:
    return Batch(batch.images[:count].clone(), batch.labels[:count], batch.index[:count])


def _with(batch: Batch, images: Tensor | None = None, labels: Tensor | None = None) -> Batch:
    return Batch(batch.images if images is None else images, batch.labels if labels is None else labels, batch.index)


def _as(world: _World, dtype: torch.dtype) -> _World:
    source, target = (_with(b, b.images.to(dtype)) for b in (world.source, world.target))
    return _World(source, target, world.target_labels)


def _values(settings: Any) -> Iterator[tuple[str, Any]]:
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from _values(value)
        else:
            yield field.name, value


def _takes(settings: MethodConfig, name: str, value: Any) -> bool:
    """Say whether ``value`` may be right for the setting: None where that is its default, -1 nowhere."""
    return value is None and dict(_values(settings))[name] is None
