"""Gates on a network: one non-negative factor per image and channel, put on by hooks and taken off without a trace.

For a batch x and gates lambda [B, total] the gated network computes, at every site l with output a_l,
``lambda_l[b, k] * a_l[b, k]`` in place of ``a_l[b, k]``. Rows never mix (evaluation mode), so the gradient of a sum of
per-image losses holds every image's own gradient: a batch is many independent problems.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import wide
from convsmith.inspection.modes import check_evaluation, eager, is_hooked, unwrap
from convsmith.inspection.outputs import class_scores
from convsmith.interpretation.sites import Site, SitePlan


class GatedNetwork:
    """A context in which ``logits(gates)`` runs ``model`` with gates on; nothing of the model is changed after it.

    Inside the context gradients are on, but not those of the weights (saves about a third of the work and the saved
    inputs), hooks multiply, and modules that are complete before the first gate return their stored output (the images
    are fixed, so their outputs are). On exit, exceptions included, hooks are removed, ``requires_grad`` flags and
    ``forward`` methods are as before; buffers, ``.grad`` and random state are never touched.

    ``model`` is in evaluation mode, ``images`` [B, C, H, W] on its device. ``cache`` keeps the outputs before the first
    gate. ``precision`` and ``channels_last`` are those of `RouteSettings`: ``"bf16"`` and ``"fp16"`` by autocast,
    ``"tf32"`` for CUDA matmuls and convolutions.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: SitePlan,
        images: Tensor,
        *,
        cache: bool = True,
        precision: str = "fp32",
        channels_last: bool = False,
    ) -> None:
        self.model = unwrap(model)
        check_evaluation(self.model)
        self.plan, self.cache, self.precision = plan, cache, precision
        if channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        self.images = images
        self.outputs: dict[int, Tensor] = {}
        self.watch = False
        self._factors: tuple[Tensor, ...] | None = None
        self._calls: dict[str, int] = {}
        self._prefix: dict[str, Tensor] = {}
        self._everything: tuple[Tensor, dict[str, Tensor]] = (self.images, {})
        self._overwritten: set[str] = set()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> GatedNetwork:
        try:
            for mode in (torch.inference_mode(False), torch.enable_grad(), eager()):
                self._stack.enter_context(mode)
            self.images = self.images.clone() if self.images.is_inference() else self.images.detach()
            modules = dict(self.model.named_modules(remove_duplicate=False))
            # somebody else's hook must see every call
            own = [m for m in self.plan.prefix if not is_hooked(modules[m]) and "forward" not in vars(modules[m])]
            self._freeze()
            self._hook(modules)
            if self.cache:
                self._store_prefix({name: modules[name] for name in own})
            self._everything = (self.images, self._prefix)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._prefix, self._everything = {}, (self.images, {})
        self.outputs.clear()

    def logits(self, gates: Tensor | None = None, *, watch: bool = False) -> Tensor:
        """Return float logits [B, K] with ``gates`` [B, total] on (None: the plain network).

        ``watch=True`` keeps the outputs of the sites (before the gate) in ``self.outputs`` by site number.
        """
        # one split, whose backward is one concatenation, instead of a slice (and a zero-filled gradient) per site
        self._factors = None if gates is None else torch.split(gates, self.plan.widths, dim=1)
        self.watch = watch
        self._calls.clear()
        self.outputs.clear()
        try:
            with self._numerics():
                output = self.model(self.images)
        finally:
            self._factors = None
        return wide(class_scores(output, classes=2))

    def watched(self) -> Iterator[tuple[Site, Tensor]]:
        """Give every site with its output [B, C, N] in the pass that was watched last."""
        for number, site in enumerate(self.plan.sites):
            maps = self.outputs[number].movedim(site.axis, 1)
            yield site, maps.reshape(*maps.shape[:2], -1)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only (a finished image costs nothing any more)."""
        self.images = self.images[rows]
        self._prefix = {name: value[rows] for name, value in self._prefix.items()}

    def restore(self) -> None:
        """Go back to all rows."""
        self.images, self._prefix = self._everything

    @contextlib.contextmanager
    def entrances(self) -> Iterator[list[Tensor]]:
        """Give the tensors that the gated part starts from (images and stored outputs), so that they have gradients."""
        before = self.images, self._prefix
        leaves = [value.detach().requires_grad_(True) for value in (self.images, *self._prefix.values())]
        copies = [leaf.clone() for leaf in leaves]  # the network may overwrite what it is given
        self.images, self._prefix = copies[0], dict(zip(self._prefix, copies[1:], strict=True))
        try:
            yield leaves
        finally:
            self.images, self._prefix = before

    def _numerics(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision in ("bf16", "fp16"):
            dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
            return torch.autocast(self.images.device.type, dtype=dtype)
        if self.precision == "tf32":
            return _tf32()
        return contextlib.nullcontext()

    def _freeze(self) -> None:
        frozen = [p for p in self.model.parameters() if p.requires_grad]
        self._stack.callback(lambda: [p.requires_grad_(True) for p in frozen])
        for parameter in frozen:
            parameter.requires_grad_(False)

    def _hook(self, modules: dict[str, nn.Module]) -> None:
        by_module: dict[str, dict[int, int]] = {}
        for number, site in enumerate(self.plan.sites):
            by_module.setdefault(site.module, {})[site.call] = number
        for name, calls in by_module.items():
            self._stack.enter_context(modules[name].register_forward_hook(self._gate(name, calls)))

    def _gate(self, name: str, calls: dict[int, int]) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
            call = self._calls.get(name, 0)
            self._calls[name] = call + 1
            number = calls.get(call)
            if number is None:
                return None
            if self.watch:
                self.outputs[number] = output
            if self._factors is None:
                return None
            # a new tensor, never in place: the same output may feed a shortcut or an in-place activation
            return output * spread(self._factors[number], self.plan.sites[number]).to(output.dtype)

        return hook

    def _store_prefix(self, modules: dict[str, nn.Module]) -> None:
        def record(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    self._prefix[name] = output.clone()  # an in-place operation may overwrite the original later

            return hook

        with contextlib.ExitStack() as stack, torch.no_grad():
            for name, module in modules.items():
                stack.enter_context(module.register_forward_hook(record(name)))
            self.logits()
        for name in self._prefix:
            self._patch(modules[name], name)
        self._find_overwritten()

    def _patch(self, module: nn.Module, name: str) -> None:
        def stored(*_args: Any, **_kwargs: Any) -> Tensor:
            value = self._prefix[name]
            return value.clone() if name in self._overwritten else value

        module.__dict__["forward"] = stored
        self._stack.callback(module.__dict__.pop, "forward", None)

    def _find_overwritten(self) -> None:
        """Find stored outputs that the rest of the network overwrites in place; these are handed out as copies."""
        originals = {name: value.clone() for name, value in self._prefix.items()}
        versions = {name: value._version for name, value in self._prefix.items()}
        with torch.no_grad():
            self.logits()
        self._overwritten = {name for name, value in self._prefix.items() if value._version != versions[name]}
        self._prefix.update({name: originals[name] for name in self._overwritten})


def spread(gates: Tensor, site: Site) -> Tensor:
    """Reshape gates [B, C] so that they multiply the site's output along its channel axis."""
    shape = [1] * site.rank
    shape[0], shape[site.axis] = gates.shape
    return gates.view(shape) if gates.is_contiguous() else gates.reshape(shape)


@contextlib.contextmanager
def _tf32() -> Any:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = True, True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
