"""What goes to disk: binary weights as bits, ternary ones five to a byte, int8 as bytes, zeros not at all.

`packed_state` turns a model's state into tensors for a safetensors file, `load_packed_state` puts them back, strictly.
A packed tensor ``name`` becomes two entries, ``name|codes`` and ``name|scale`` (low precision) or ``name|mask`` and
``name|values`` (sparse: one bit per weight and the non-zero values). A tensor that several names share is stored once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from convsmith.arguments import checked
from convsmith.compression.methods.low_bit import LowBit, scaled_dims
from convsmith.errors import refusing

_POWERS = (1, 3, 9, 27, 81)


def pack_bits(flags: Tensor) -> Tensor:
    """Return uint8 [ceil(n / 8)] of booleans [n]; bit i of byte j is flag 8 j + i."""
    return torch.from_numpy(np.packbits(flags.reshape(-1).cpu().numpy(), bitorder="little"))


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """Return the first ``count`` booleans of what `pack_bits` made."""
    return torch.from_numpy(np.unpackbits(packed.cpu().numpy(), count=count, bitorder="little")).bool()


def pack_trits(values: Tensor) -> Tensor:
    """Return uint8 [ceil(n / 5)] of values in {-1, 0, 1} [n]: five to a byte, base 3 (1.6 bits each)."""
    flat = values.reshape(-1).to(torch.int16) + 1
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % 5)).reshape(-1, 5)
    return (padded * torch.tensor(_POWERS, dtype=torch.int16, device=flat.device)).sum(1).to(torch.uint8)


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """Return the first ``count`` values in {-1, 0, 1} (int8) of what `pack_trits` made."""
    digits = packed[:, None].to(torch.int16) // torch.tensor(_POWERS, dtype=torch.int16, device=packed.device) % 3
    return (digits.reshape(-1)[:count] - 1).to(torch.int8)


@checked
def packed_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of ``model`` as contiguous tensors for a safetensors file, packed wherever that is smaller.

    Examples:
        >>> state = packed_state(model)
    """
    state = model.state_dict(keep_vars=True)
    low = _low_bit_weights(model)
    seen: set[int] = set()
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if id(value) in seen:
            continue
        seen.add(id(value))
        value = value.detach()
        if name in low:
            out.update(_pack_lowbit(name, low[name]))
        elif value.is_floating_point() and _worth_packing(value):
            used = value != 0
            out[f"{name}|mask"] = pack_bits(used)
            out[f"{name}|values"] = value[used]
        elif not any(name == key.removesuffix("weight") + "scale" for key in low):
            out[name] = value
    return {name: value.contiguous().cpu().clone() for name, value in out.items()}


@checked
def load_packed_state(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load what `packed_state` gave into ``model``, in place; every tensor must be there and fit.

    Raises:
        InvalidArgument: missing or unexpected tensors, or shapes that do not fit.

    Examples:
        >>> same = load_packed_state(model, packed_state(model))
    """
    hint = "rebuild the model from the recipe that was saved beside these weights"
    with refusing("the weights do not fit this structure", RuntimeError, KeyError, hint=hint):
        model.load_state_dict(unpack_state(model, state), strict=True)
    return model


def unpack_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a plain state dict for ``model`` from a packed one."""
    targets = model.state_dict(keep_vars=True)
    low = _low_bit_weights(model)
    first: dict[int, str] = {}
    out: dict[str, Tensor] = {}
    for name, target in targets.items():
        source = first.setdefault(id(target), name)
        if source != name:
            out[name] = out[source]
        elif f"{name}|codes" in state and name in low:
            out[name] = _unpack_lowbit(low[name], state[f"{name}|codes"], state[f"{name}|scale"])
            if low[name].scale is not None:
                out[name.removesuffix("weight") + "scale"] = state[f"{name}|scale"]
        elif f"{name}|mask" in state:
            dense = torch.zeros(target.numel(), dtype=state[f"{name}|values"].dtype)
            dense[unpack_bits(state[f"{name}|mask"], target.numel())] = state[f"{name}|values"]
            out[name] = dense.reshape(target.shape)
        elif name in state:
            out[name] = state[name]
    used = {key.split("|")[0] for key in state}
    return {**out, **{key: state[key] for key in used - set(targets) if key in state}}


def _low_bit_weights(model: nn.Module) -> dict[str, LowBit]:
    """Return the low-bit layers by the name of their weight."""
    return {f"{name}.weight" if name else "weight": m for name, m in model.named_modules() if isinstance(m, LowBit)}


def _worth_packing(value: Tensor) -> bool:
    """Packed: n / 8 bytes of mask and the values; the header of one more tensor counts 100 bytes."""
    whole = value.numel() * value.element_size()
    packed = value.numel() // 8 + int(torch.count_nonzero(value)) * value.element_size() + 100
    return packed < whole


def _pack_lowbit(name: str, module: LowBit) -> dict[str, Tensor]:
    with torch.no_grad():
        weight, scale = module.quantised(), module.scale
        if scale is not None:
            codes = (weight / scale).round().to(torch.int8)
        else:
            scale = weight.abs().amax(scaled_dims(weight, module.per_channel))
            # a binary channel of scale 0 holds only +-0: its codes do not matter, its product is 0 either way
            codes = pack_bits(weight > 0) if module.scheme == "binary" else pack_trits(torch.sign(weight))
        return {f"{name}|codes": codes, f"{name}|scale": scale}


def _unpack_lowbit(module: LowBit, codes: Tensor, scale: Tensor) -> Tensor:
    shape = module.weight.shape
    if module.scheme == "int8":
        return codes.to(scale.dtype) * scale
    if module.scheme == "binary":
        signs = unpack_bits(codes, shape.numel()).to(scale.dtype) * 2 - 1
    else:
        signs = unpack_trits(codes, shape.numel()).to(scale.dtype)
    full = scale.reshape(-1, *[1] * (len(shape) - 1)) if module.per_channel else scale
    return signs.reshape(shape) * full
