"""The suite of compression methods: a plan, a smaller copy that computes, and a history that builds it again."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import checked
from convsmith.compression import (
    METHODS,
    Plan,
    compress,
    compression_history,
    cost,
    load_packed_state,
    packed_state,
    plan_compression,
    restore_structure,
)
from convsmith.testing.module_checks import through_onnx
from convsmith.testing.suite import (
    Conformance,
    require_gradients,
    require_near,
    require_refusal,
    require_refusals,
    require_settings,
    require_that,
    run,
    run_checks,
    untouched,
    wrong_tensors,
)

CLASSES, SIDE, KEEP = 4, 12, 0.6


@checked
def check_compressor(
    name: str,
    *,
    settings: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
    exceptions: Mapping[str, str] | None = None,
) -> Conformance:
    """Check the registered compression method ``name`` on a small residual network.

    Its settings are a frozen dataclass whose values are checked; it obeys the budgets it declares and refuses others;
    the network it is given stays as it is; the result is repeatable, in the same mode, dtype and of the same output
    shape, copies, takes other batch sizes and layouts, has a gradient where it can be trained, exports to ONNX with the
    same numbers, and comes back bit for bit from its history and its packed weights; a plan survives its file.

    Args:
        name: see `convsmith.compression.available`.
        settings: in place of its defaults.
        tolerance: relative error that another order of sums may make: rounding to steps makes it larger.
        exceptions: reasons by check for rules that it cannot follow.

    Raises:
        Nonconforming: names every broken rule.

    Examples:
        >>> rules = check_compressor("sparse").passed
    """
    entry = METHODS.entry(name)
    kind, chosen = entry.value, dict(settings or {})
    budget: dict[str, Any] = {"keep_macs": KEEP} if "macs" in kind.budgets else {}
    images = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))

    def done(model: nn.Module | None = None, example: Tensor = images, **more: Any) -> nn.Module:
        given = {**budget, **chosen, **more}
        return compress(network() if model is None else model, name, example=example, **given)

    original, result = network(), done()
    wanted = run(result, images)

    def traits_are_declared() -> None:
        require_that(kind.budgets <= {"macs", "params"}, "budgets are macs and params", kind.budgets)
        require_that(bool(entry.summary), "the first line of the docstring says what it is")

    def settings_are_checked() -> None:
        require_settings(kind, lambda given: done(**given))

    def budgets() -> None:
        for asked in ("macs", "params"):
            share: dict[str, Any] = {"keep_macs": None, f"keep_{asked}": KEEP}
            if asked not in kind.budgets:
                require_refusal(partial(compress, original, name, example=images, **share))
                continue
            made = plan_compression(original, name, example=images, **share, **chosen)
            small = compress(original, name, example=images, plan=made, **chosen)
            before, after = (_count(model, asked, zeros=not kind.keeps_zeros) for model in (original, small))
            require_that(made.kept(asked) <= KEEP + 1e-9, f"the plan keeps at most {KEEP} of {asked}", made.kept(asked))
            require_that(after / before <= KEEP + 0.02, f"at most {KEEP} of {asked} are left", after / before)
        shares = (0, 1.5, -1, float("nan"), "half")
        require_refusals(lambda wrong: compress(original, name, example=images, keep_macs=wrong), shares)

    def arguments_untouched() -> None:
        model = network()
        with untouched(images, *model.state_dict().values()):
            done(model)
        require_that(str(model) == str(network()), "the network given keeps its structure")

    def repeatable() -> None:
        require_that(torch.equal(run(done(), images), wanted), "two results have the same bits")
        require_that(torch.equal(run(result, images), wanted), "one result gives the same bits twice")
        require_that(torch.equal(run(copy.deepcopy(result), images), wanted), "a copy gives the same bits")

    def output() -> None:
        require_that(wanted.shape == (len(images), CLASSES), "the output keeps its shape", tuple(wanted.shape))
        require_that(wanted.dtype == torch.float32 and bool(wanted.isfinite().all()), "it is finite and of its type")
        few = torch.cat([run(result, images[:1]), run(result, images[1:4])])
        require_near(few, wanted[:4], tolerance, "any number of images")
        last = run(result, images.contiguous(memory_format=torch.channels_last))
        require_near(last, wanted, tolerance, "the memory's layout changes nothing")

    def modes() -> None:
        require_that(not result.training, "a network in evaluation mode stays in it")
        require_that(done(network().train()).training, "so does one in training mode")

    def float64() -> None:
        found = run(done(network().double(), images.double()), images.double())
        require_that(found.dtype == torch.float64, "float64 stays float64", found.dtype)
        require_near(wanted, found, 0.05, "float32 is float64 to rounding")

    def trains() -> None:
        model = copy.deepcopy(result).train()
        require_gradients(model, model(images).square().mean())

    def history_and_state() -> None:
        told = compression_history(result)
        require_that(json.loads(json.dumps(told, allow_nan=False)) == told, "the history is JSON", told)
        require_that([item["method"] for item in told] == [name], "it names the method")
        again = load_packed_state(restore_structure(network(seed=9), told), packed_state(result)).eval()
        require_that(torch.equal(run(again, images), wanted), "history and packed weights give it back bit for bit")

    def plans() -> None:
        made = plan_compression(original, name, example=images, **budget, **chosen)
        with tempfile.TemporaryDirectory() as folder:
            read = Plan.load(made.save(Path(folder) / "plan.yaml"))
        found = compress(original, name, example=images, plan=read, **chosen)
        require_that(torch.equal(run(found, images), wanted), "the plan from its file gives the same network")

    def onnx() -> None:
        require_near(through_onnx(result, images), wanted, 1e-2, "ONNX Runtime gives the same numbers")

    def refusals() -> None:
        models: tuple[Any, ...] = ("resnet18", None, torch.zeros(2))
        require_refusals(lambda wrong: compress(wrong, name, example=images, **chosen), models, "model")
        require_refusals(lambda wrong: done(example=wrong), [*wrong_tensors(images), images[:0]], "example")
        require_refusal(lambda: done(nn.Sequential(nn.Flatten(), nn.ReLU())))

    checks = [traits_are_declared, settings_are_checked, budgets, arguments_untouched, repeatable, output, modes]
    checks += [float64, trains, history_and_state, plans, onnx, refusals]
    return run_checks(f"the compression method {name!r}", checks, exceptions)


def _count(model: nn.Module, kind: str, *, zeros: bool) -> float:
    """Return MACs or parameters; without ``zeros`` the non-zero weights, as the methods that keep zeros count."""
    if zeros:
        return float(getattr(cost(model, (3, SIDE, SIDE)), kind))
    total = 0.0
    for name, positions in (("0", SIDE**2), ("3.conv1", SIDE**2), ("3.conv2", SIDE**2), ("4", SIDE**2 / 4), ("8", 1)):
        layer: Any = model.get_submodule(name)
        used = float(layer.weight.count_nonzero())
        total += used * (positions if kind == "macs" else 1)
    return total


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


def network(seed: int = 0) -> nn.Sequential:
    """Return the suite's network: a stem, a residual block, a strided convolution and a linear classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            _Residual(16),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, CLASSES),
        )
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return made.eval()
