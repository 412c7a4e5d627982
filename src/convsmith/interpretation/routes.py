"""The result object: gates by layer for every image, with the numbers that say how far to trust them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convsmith.arguments import checked, one_of
from convsmith.errors import InvalidArgument, close_matches, refusing, require
from convsmith.files import replacing

_FORMAT = "convsmith-routes-3"
_STORAGE = ("float32", "float16", "uint8")
#: share of the image's gradient below which a layer passes nothing on: some 100 roundings of float32, as in a gradient
LEAST_SHARE = 100 * torch.finfo(torch.float32).eps
_COLUMNS = ("prediction", "confidence", "runner_up", "kept", "divergence", "objective", "passes", "converged", "gamma")
_ROWWISE = (*_COLUMNS, "index", "labels")
_CHECKS = ("closed", "image_share", "dead_share")


@dataclass(frozen=True)
class RouteFlags:
    """Self-checks, one row per image.

    ``closed`` [B, L] bool: every gate of this layer is 0, so the prediction comes from biases behind it.
    ``image_share`` [B, L]: norm of the gradient of the predicted logit by the image under the gates, along the paths
    through this layer, over that of the whole gradient with every gate at 1; 1 or 0 (closed) for scores, which gate
    nothing. ``dead_share`` [B]: share of critical nodes whose channel is silent in the full network (no positive value
    where a ReLU follows, else all zeros). ``layers``: names of the columns.
    """

    closed: Tensor
    image_share: Tensor
    dead_share: Tensor
    layers: tuple[str, ...]

    @property
    def open(self) -> Tensor:
        """Return [B, L] bool: through this layer the image still changes the prediction by more than rounding."""
        return ~self.closed & (self.image_share > LEAST_SHARE)

    @property
    def closed_layers(self) -> list[list[str]]:
        """Names of the completely closed layers, image by image."""
        return [[name for name, shut in zip(self.layers, row, strict=True) if shut] for row in self.closed.tolist()]


@dataclass(frozen=True)
class Routes:
    """Per-image gates (or scores of the same shape) of B images.

    ``gates``: layer name, in execution order, to non-negative [B, C_l]. ``prediction``, ``runner_up`` [B] int64 and
    ``confidence`` [B] belong to the full network; ``kept`` [B] bool: the gated network predicts the same;
    ``divergence`` [B]: KL(full || gated) in nats; ``objective`` [B]: the minimised value; ``passes`` [B] forward and
    backward passes it took; ``converged`` [B] bool: the solver stopped at a local minimum rather than after its last
    pass (the published schedule never does); ``gamma`` [B]: the weight of the gates this image got (NaN for scores,
    which have none).
    ``index`` [B] int64 numbers the images (which rows are versions of one image), ``labels`` [B] int64 or -1.
    ``settings``: how the gates were found (JSON values).
    """

    gates: Mapping[str, Tensor]
    prediction: Tensor
    confidence: Tensor
    runner_up: Tensor
    kept: Tensor
    divergence: Tensor
    objective: Tensor
    passes: Tensor
    converged: Tensor
    gamma: Tensor
    flags: RouteFlags
    index: Tensor
    labels: Tensor
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prediction)

    @property
    def layers(self) -> tuple[str, ...]:
        """Layer names in execution order."""
        return tuple(self.gates)

    @property
    def total(self) -> int:
        """Number of nodes (gates) of one image."""
        return sum(g.shape[1] for g in self.gates.values())

    @checked
    def vector(self, layers: Sequence[str] | None = None) -> Tensor:
        """Return the concatenated gates [B, total], of ``layers`` only if given."""
        names = self.layers if layers is None else tuple(layers)
        for name in names:
            if name not in self.gates:
                rule, hint = "these routes have no such layer", close_matches(name, self.layers)
                raise InvalidArgument(rule, argument=name, hint=hint)
        return torch.cat([self.gates[name] for name in names], dim=1)

    @checked
    def critical(self, threshold: float = 0.0) -> dict[str, Tensor]:
        """Return bool [B, C_l] by layer: gates above ``threshold``."""
        return {name: g > threshold for name, g in self.gates.items()}

    @checked
    def sparsity(self, threshold: float = 0.0) -> Tensor:
        """Return [B]: critical nodes / all nodes."""
        return (self.vector() > threshold).double().mean(1).to(self.confidence.dtype)

    @property
    def steps(self) -> Tensor:
        """Return [B]: the steps the search took, each one pass forward and backward, two beside a blank."""
        return self.passes // (2 if self.settings.get("open_layers") else 1)

    def messages(self, row: int) -> list[str]:
        """Return sentences on what is suspicious about image ``row``; empty if nothing is."""
        notes, one = [], self[row]
        if one.settings.get("mode") == "converged" and not bool(one.converged):
            notes.append(
                f"the search had not converged after {int(one.passes)} passes: a route with fewer nodes is likely"
            )
        shut, passed = one.flags.closed_layers[0], one.flags.open[0]
        if shut:
            names = ", ".join(shut) if len(shut) <= 3 else f"{len(shut)} of {len(self.layers)} layers, first {shut[0]}"
            notes.append(f"all gates closed in {names}: the prediction comes from biases behind it")
        elif not bool(passed.all()):
            notes.append(
                f"the gates left in {int((~passed).sum())} of {len(self.layers)} layers pass nothing of the image on: "
                "the prediction comes from biases"
            )
        share = float(one.flags.dead_share)
        if share > 0.1:
            notes.append(f"{share:.0%} of the critical nodes are silent in the full network")
        return notes

    def __getitem__(self, rows: Any) -> Routes:
        """Return the routes of ``rows``: an integer, a slice, a list, a bool or an index tensor."""
        if isinstance(rows, int):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"row {rows} of {len(self)} routes")
            rows = [rows % len(self)]
        if isinstance(rows, list | tuple):
            rows = torch.as_tensor(rows, device=self.prediction.device)
            rows = rows if rows.dtype == torch.bool else rows.long()
        return self._with({name: tensor[rows] for name, tensor in self._tensors().items()})

    def __iter__(self) -> Iterator[Routes]:
        return (self[row] for row in range(len(self)))

    def _tensors(self) -> dict[str, Tensor]:
        """Return everything there is image by image, under its name in files."""
        found = {name: getattr(self, name) for name in _ROWWISE}
        found |= {name: getattr(self.flags, name) for name in _CHECKS}
        return found | {f"gates.{number}": g for number, g in enumerate(self.gates.values())}

    def _with(self, tensors: Mapping[str, Any]) -> Routes:
        """Return routes of other images, of the same layers and settings."""
        return replace(
            self,
            gates={name: tensors[f"gates.{number}"] for number, name in enumerate(self.gates)},
            flags=replace(self.flags, **{name: tensors[name] for name in _CHECKS}),
            **{name: tensors[name] for name in _ROWWISE},
        )

    @staticmethod
    def concatenate(parts: Sequence[Routes]) -> Routes:
        """Join routes of the same layers and settings, in order."""
        if not parts:
            raise InvalidArgument("there is nothing to concatenate", given="0 routes")
        first, *others = parts
        widths = [(name, g.shape[1]) for name, g in first.gates.items()]
        for part in others:
            same = [(name, g.shape[1]) for name, g in part.gates.items()] == widths
            if not same or dict(part.settings) != dict(first.settings):
                raise InvalidArgument(
                    "routes found on other layers or with other settings cannot be joined or compared",
                    argument=f"{list(first.gates)} with {dict(first.settings)}",
                    given=f"{list(part.gates)} with {dict(part.settings)}",
                )
        tensors = [part._tensors() for part in parts]
        return first._with({name: torch.cat([each[name] for each in tensors]) for name in tensors[0]})

    def to(self, device: torch.device | str) -> Routes:
        """Return the routes on ``device``."""
        return self._with({name: tensor.to(device) for name, tensor in self._tensors().items()})

    @checked
    def save(self, path: str | Path, *, storage: str = "float32") -> Path:
        """Write one safetensors file; ``storage`` of the gates is ``"float32"`` (exact), ``"float16"`` or ``"uint8"``.

        ``"uint8"`` keeps 255 levels between 0 and the layer's largest gate and rounds small positive gates up to the
        first level, so that ``critical()`` and ``sparsity()`` of the file are exact. The file is written beside and
        then renamed: an interrupted save leaves the old file.
        """
        from safetensors.torch import save_file

        one_of("storage", storage, _STORAGE)
        tensors = self._tensors()
        for number, g in enumerate(self.gates.values()):
            key = f"gates.{number}"
            if storage == "uint8":
                scale = g.max().clamp(min=1e-12).float() / 255 if g.numel() else torch.tensor(1.0)
                levels = (g / scale).round().clamp(0, 255)
                tensors[key] = torch.where((g > 0) & (levels < 1), torch.ones_like(levels), levels).to(torch.uint8)
                tensors[f"scale.{number}"] = scale.reshape(1)
            elif storage == "float16":
                tiny = torch.finfo(torch.float16).smallest_normal
                tensors[key] = torch.where(g > 0, g.clamp(tiny, 65504), torch.zeros_like(g)).half()
        metadata = {
            "format": _FORMAT,
            "layers": json.dumps(list(self.gates)),
            "settings": json.dumps(dict(self.settings)),
        }
        path = Path(path)
        with replacing(path) as draft:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft, metadata)
        return path

    @staticmethod
    @checked
    def load(path: str | Path, *, rows: slice | None = None) -> Routes:
        """Read what `save` wrote, only ``rows`` of it if given (the rest is not read).

        A folder of files from `find_routes_from_loader` is read as one, in order.
        """
        path = Path(path)
        if path.is_dir():
            whole = Routes.concatenate([Routes.load(file) for file in route_files(path)])
            whole = whole[torch.argsort(whole.index, stable=True)]
            return whole if rows is None else whole[rows]
        with _opened(path) as file:
            metadata, cut = file.metadata(), rows or slice(None)
            t = {
                key: (file.get_tensor(key) if key.startswith("scale.") else file.get_slice(key)[cut])
                for key in file.keys()  # noqa: SIM118  # safe_open is no mapping
            }
        layers, settings = tuple(json.loads(metadata["layers"])), json.loads(metadata["settings"])
        gates = {}
        for number, name in enumerate(layers):
            g = t[f"gates.{number}"]
            g = g.float() * t[f"scale.{number}"] if g.dtype == torch.uint8 else g
            gates[name] = g.float() if g.dtype == torch.float16 else g
        return Routes(
            gates=gates,
            flags=RouteFlags(layers=layers, **{name: t[name] for name in _CHECKS}),
            settings=settings,
            **{name: t[name] for name in _ROWWISE},
        )

    def to_frame(self) -> Any:
        """Return a pandas DataFrame: one row per image, self-checks first, then one column per node (``layer[k]``)."""
        pandas = require("pandas", "frames")
        columns: dict[str, Any] = {"index": self.index.tolist(), "label": self.labels.tolist()}
        columns.update({name: getattr(self, name).tolist() for name in _COLUMNS})
        columns["sparsity"] = self.sparsity().tolist()
        columns["dead_share"] = self.flags.dead_share.tolist()
        columns["image_share"] = self.flags.image_share.amin(1).tolist()
        columns["closed_layers"] = [", ".join(names) for names in self.flags.closed_layers]
        nodes = pandas.DataFrame(
            self.vector().detach().cpu().numpy(),
            columns=[f"{name}[{k}]" for name, g in self.gates.items() for k in range(g.shape[1])],
        )
        return pandas.concat([pandas.DataFrame(columns), nodes], axis=1)


def route_files(folder: str | Path) -> list[Path]:
    """Return the files of `find_routes_from_loader` in the order of the batches."""
    files = sorted(Path(folder).glob("routes-*.safetensors"))
    if not files:
        raise InvalidArgument("the folder holds no routes", argument=folder, hint="expected routes-*.safetensors")
    return files


def saved_index(path: Path) -> Tensor:
    """Return the image numbers [B] of a file of `Routes.save` without reading its gates."""
    with _opened(path) as file:
        return file.get_tensor("index")  # type: ignore[no-any-return]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InvalidArgument("there is no such routes file", argument=path)
    rule = "the file is no complete safetensors file"
    with refusing(rule, SafetensorError, argument=path), safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("format") != _FORMAT:
            rule, hint = "the file does not hold routes", "expected a file of Routes.save"
            raise InvalidArgument(rule, argument=path, hint=hint)
        yield file
