"""The method ``int8``: eight-bit weights and activations through torchao's PT2E route, or weights alone.

``static``       post-training: observers see the example images, weights per channel, activations per tensor; weights
                 are rounded for the least error of the layers' outputs on these images (`rounding`);
``qat``          the same quantiser with fake quantisation that trains; `finish` turns the trained one into int8;
``weight-only``  int8 weights with a scale per output channel, computed in floating point: the file shrinks.

What becomes int8 and what stays in floating point: `quantiser`. The int8 result of the first two is a fixed graph
(`Int8Model`): it answers any batch size, in evaluation mode, and gains its speed when compiled (``torch.compile`` with
``torch._inductor.config.freezing``); run eagerly it is slower than floating point, because every quantisation is an
operator of its own.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from convsmith.arguments import checked, one_of
from convsmith.compression.folded import scale_and_shift
from convsmith.compression.methods.graphs import graph_from_json, graph_to_json, inline_regions
from convsmith.compression.methods.low_bit import LowBitMethod
from convsmith.compression.methods.method import HISTORY, METHODS, Applied
from convsmith.compression.methods.quantiser import Quantiser
from convsmith.compression.methods.rounding import round_by_moments
from convsmith.compression.planning.moments import padding_sides
from convsmith.compression.planning.plan import WHOLE, Budget, Choice, Plan
from convsmith.compression.planning.replacement import replace
from convsmith.compression.planning.subject import Subject
from convsmith.errors import InvalidArgument, RunFailed, require
from convsmith.inspection.modes import copied, watching

_UNFINISHED = ("in int8 training: train it, then call finish",)
_SPEED = "int8 is fast when compiled; run eagerly it is slower than floating point"
MODES = ("static", "qat", "weight-only")


class Int8Model(nn.Module):
    """A quantised network as a fixed graph: any batch of images of the exported size, to what the network gave."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.program: Any = graph
        for module in self.modules():
            module.training = False

    def forward(self, x: Tensor) -> Tensor:
        return self.program(x)

    def train(self, mode: bool = True) -> Int8Model:
        """Note the mode; the graph itself always normalises as in evaluation and cannot be trained."""
        self.training = mode
        return self


class Int8Training(nn.Module):
    """A network that trains with the rounding of int8 in place; `finish` converts it."""

    def __init__(self, graph: fx.GraphModule, *, trainable: bool = True, structure: Any = 0) -> None:
        super().__init__()
        self.program: Any = graph
        self.training, self.structure = trainable, structure

    def forward(self, x: Tensor) -> Tensor:
        return self.program(x)

    def train(self, mode: bool = True) -> Int8Training:
        """Switch normalisation and dropout inside the exported graph."""
        from torchao.quantization import pt2e

        self.training = mode
        (pt2e.move_exported_model_to_train if mode else pt2e.move_exported_model_to_eval)(self.program)
        # in evaluation the ranges must stand still, or every look at the network would change it
        self.program.apply(pt2e.enable_observer if mode else pt2e.disable_observer)
        return self


@METHODS.register("int8")
@dataclass(frozen=True)
class Int8(LowBitMethod):
    """Eight-bit integers: weights and activations (static, qat) or weights alone.

    Args:
        mode: ``"static"``, ``"qat"`` (train the result, then `finish` it), ``"weight-only"``.
        ends: weight-only: also the first and the last layer (the other modes quantise all layers).
    """

    mode: str = "static"
    ends: bool = True

    chains: ClassVar[bool] = False
    scheme: ClassVar[str] = "int8"

    def __post_init__(self) -> None:
        one_of("mode", self.mode, MODES)
        if self.mode != "weight-only" and not self.ends:
            raise InvalidArgument("ends belongs to mode 'weight-only'; use skip", argument=f"mode={self.mode!r}")
        if self.mode != "weight-only":
            require("torchao", "compress")

    @property
    def calibrates(self) -> bool:  # type: ignore[override]  # depends on the mode
        """Return whether real images are needed: the activations' ranges come from them."""
        return self.mode == "static"

    def plan(self, subject: Subject, budget: Budget | None) -> Plan:
        """Return the one choice there is."""
        if self.mode == "weight-only":
            return super().plan(subject, budget)
        seen, whole = subject.seen, subject.cost
        if seen.example.dtype != torch.float32:
            raise InvalidArgument(
                "int8 programs compute in float32",
                argument="model",
                given=str(seen.example.dtype),
                hint="model.float()",
            )
        macs, params = (whole.macs, whole.macs), (whole.params, whole.params)
        runs = [layer for layer in seen.layers if layer.kind in ("conv", "linear") and layer.calls]
        choices = (Choice(WHOLE, {"mode": self.mode}, macs, params),) if runs else ()
        return Plan("int8", choices, macs, params)

    def apply(self, subject: Subject, plan: Plan) -> Applied:
        """Quantise the whole network (static, qat) or its weights."""
        asked = plan.settings()
        if WHOLE in asked if self.mode == "weight-only" else asked != {WHOLE: {"mode": self.mode}}:
            rule = "the plan was made for another mode, or edited: int8 in this mode takes all or nothing"
            raise InvalidArgument(rule, argument=f"mode={self.mode!r}", given=asked)
        if self.mode == "weight-only":
            return super().apply(subject, plan)
        model, seen = subject.model, subject.seen
        training = self.mode == "qat"
        prepared = _calibrated(prepare(model, seen.example, training=training, skip=self.skip), seen.example)
        if training:
            return Applied(prepared.train(model.training), {}, _UNFINISHED)
        done, layers = converted(prepared, images=seen.example)
        return Applied(done.train(model.training), layers, (_SPEED,))

    @classmethod
    def restore_structure(cls, model: nn.Module, layers: dict[str, Any]) -> nn.Module:
        """Rebuild the graph, or put empty int8 layers in place; torchao is not needed for either."""
        if WHOLE in layers:
            return Int8Model(graph_from_json(layers[WHOLE])).train(model.training)
        if not layers:
            raise InvalidArgument(
                "a network in int8 training cannot be stored", given="mode 'qat'", hint="finish it first"
            )
        return super().restore_structure(model, layers)


def _calibrated(prepared: Int8Training, example: Tensor) -> Int8Training:
    """Show the example to the observers, in evaluation mode."""
    if prepared.training:
        from torchao.quantization.pt2e import enable_observer

        prepared.train(False).program.apply(enable_observer)
    with torch.no_grad():
        for images in example.split(64):
            prepared.program(images)
    return prepared


def prepare(model: nn.Module, example: Tensor, *, training: bool, skip: Sequence[str] = ()) -> Int8Training:
    """Export ``model`` with a free batch size and put observers (or fake quantisation) into it, not around ``skip``.

    Raises:
        RunFailed: torch.export cannot follow the network, its batch size is fixed in the code, or the quantiser
            does not know what to do with it.
    """
    require("torchao", "compress")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e

        work = _padded_by_number(copied(model))
        _part_from_norms(work, example)
        work.train(training)
        images = example[:2] if len(example) > 1 else example.expand(2, *example.shape[1:])
        batch = torch.export.Dim("batch", min=1)
        try:
            program = torch.export.export(work, (images.contiguous(),), dynamic_shapes=({0: batch},))
            exported, shape = program.module(), program.call_spec.out_spec
            inline_regions(exported)
            structure = 0 if shape is None else shape.unflatten(range(shape.num_leaves))
        except Exception as error:
            raise _failed("torch.export could not follow this network with a free batch size", error) from error
        try:
            prepared = (prepare_qat_pt2e if training else prepare_pt2e)(exported, Quantiser(training, skip))
            return Int8Training(prepared, trainable=training, structure=structure)
        except Exception as error:
            raise _failed("torchao cannot put observers into this network", error) from error


def _failed(rule: str, error: Exception) -> RunFailed:
    given = f"{type(error).__name__}: {str(error)[:400]}"
    return RunFailed(rule, argument="int8", given=given, hint="use int8 with mode='weight-only'")


def _padded_by_number(model: nn.Module) -> nn.Module:
    """Write ``padding="same"`` and ``"valid"`` as numbers, in place: the quantiser does not know the names."""
    for name, conv in list(model.named_modules()):
        if type(conv) is not nn.Conv2d or not isinstance(conv.padding, str):
            continue
        left, right, top, bottom = sides = padding_sides(conv)
        if (top, left) == (bottom, right):
            conv.padding = (top, left)
            continue
        conv.padding, conv.padding_mode, mode = (0, 0), "zeros", conv.padding_mode
        pad = {"zeros": nn.ZeroPad2d, "reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d}
        replace(model, name, nn.Sequential(pad.get(mode, nn.CircularPad2d)(sides), conv))
    return model


class _ChannelAffine(nn.Module):
    """What a batch normalisation computes in evaluation mode, x * scale + shift [C], written as that."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        for name, value in zip(("scale", "shift"), scale_and_shift(norm), strict=True):
            self.register_buffer(name, value.detach().view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def _part_from_norms(model: nn.Module, example: Tensor) -> None:
    """Keep torchao from folding normalisations into grouped transposed convolutions, where its shapes are wrong."""
    outputs: list[Tensor] = []
    read: dict[str, list[Tensor]] = {}
    named = dict(model.named_modules())
    wide = [name for name, module in named.items() if isinstance(module, nn.ConvTranspose2d) and module.groups > 1]
    norms = [name for name, module in named.items() if isinstance(module, nn.BatchNorm2d)]
    hooks: dict[str, Any] = dict.fromkeys(wide, lambda _module, _args, out: outputs.append(out))
    hooks |= {name: lambda _module, args, _out, name=name: read.setdefault(name, []).append(args[0]) for name in norms}
    with watching(model, hooks):
        model(example[:1])
    for name, given in read.items():
        if any(x is out for x in given for out in outputs):
            replace(model, name, _ChannelAffine(named[name]))


def converted(prepared: Int8Training, *, images: Tensor | None = None) -> tuple[Int8Model, dict[str, Any]]:
    """Return the int8 network of a calibrated or trained one, and the description `Int8.restore_structure` takes.

    With ``images`` [B, C, H, W] weights are rounded for what the layers are shown, see `rounding`; a trained network
    has learnt its own rounding.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization.pt2e import move_exported_model_to_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        graph = copy.deepcopy(prepared.program)
        if prepared.training:
            move_exported_model_to_eval(graph)
        graph = convert_pt2e(graph)
        if images is not None:
            round_by_moments(graph, prepared.program, images)
    value = graph_to_json(graph, prepared.structure)
    fresh = graph_from_json(value)
    state = {name: attrgetter(name)(graph).detach() for name in value["tensors"]}
    fresh.load_state_dict(state, strict=True)
    return Int8Model(fresh), {WHOLE: value}


@checked
def finish(model: nn.Module) -> nn.Module:
    """Return the int8 network of one prepared with ``mode="qat"`` and trained; others come back as they are.

    Examples:
        >>> finish(model) is model
        True
    """
    if not isinstance(model, Int8Training):
        return model
    done, layers = converted(model)
    history = copy.deepcopy(getattr(model, HISTORY, []))
    if history:
        history[-1] = {**history[-1], "layers": layers, "notes": [_SPEED]}
        setattr(done, HISTORY, history)
    return done
