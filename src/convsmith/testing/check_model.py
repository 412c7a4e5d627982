"""The suite of networks: what timm, our verbs and our files ask of a registered name."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from typing import Any

import timm
import torch

from convsmith.arguments import checked
from convsmith.data.preprocessing import Preprocessing
from convsmith.models import ModelRecipe, load_model, save_model
from convsmith.testing.suite import (
    Conformance,
    require_gradients,
    require_that,
    run,
    run_checks,
    state_shapes,
    untouched,
)

CLASSES = 4


@checked
def check_model(
    name: str, *, arguments: Mapping[str, Any] | None = None, exceptions: Mapping[str, str] | None = None
) -> Conformance:
    """Check the network ``name`` of timm's registry.

    Head, features and intermediates as timm means them; every parameter gets a gradient and a group; the configuration
    is complete and gives a preprocessing; float64 stays, layouts change nothing, samples are apart in evaluation; it
    copies, lives on the meta device, and comes back bit for bit from our files and timm's.

    Args:
        name: a registered name.
        arguments: of the network, to keep the suite quick.
        exceptions: reasons by check for rules that it cannot follow.

    Raises:
        Nonconforming: names every broken rule.

    Examples:
        >>> rules = check_model("cs_lenet").passed
    """
    chosen = {"num_classes": CLASSES, **(arguments or {})}

    def made(**more: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return timm.create_model(name, **{**chosen, **more}).eval()

    model = made()
    least = (model.pretrained_cfg.get("min_input_size") or (3, 64, 64))[-1]
    shape = (3, model.in_chans, max(least, 16), max(least, 16))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def heads() -> None:
        with torch.no_grad():
            features = model.forward_features(x)
            require_that(features.shape[1] == model.num_features, "num_features are the map's", features.shape)
            pooled = model.forward_head(features, pre_logits=True)
            require_that(pooled.shape[1] == model.head_hidden_size, "head_hidden_size is the vector's", pooled.shape)
            require_that(torch.equal(model.forward_head(features), model(x)), "features and head make the network")
        require_that(model.get_submodule(model.get_classifier(name_only=True)) is model.get_classifier(), "its name")
        other = made()
        other.reset_classifier(7)
        require_that(run(other, x).shape == (3, 7) and other.num_classes == 7, "reset_classifier makes another head")

    def gradients() -> None:
        other = made().train()
        require_gradients(other, other(torch.cat([x, x.flip(0)])).square().mean(), every=True)

    def groups() -> None:
        grouped = timm.models.group_parameters(model, model.group_matcher())
        found = {n for names in grouped.values() for n in names}
        require_that(found == {n for n, _ in model.named_parameters()}, "every parameter is in a group")

    def configuration() -> None:
        state = model.state_dict()
        for key in ("first_conv", "classifier"):
            require_that(f"{model.pretrained_cfg[key]}.weight" in state, f"{key} names a layer", model.pretrained_cfg)
        preprocessing = Preprocessing.from_model(model)
        require_that(preprocessing.channels == model.in_chans, "the preprocessing has the network's channels")

    def intermediates() -> None:
        found = model.forward_intermediates(x, intermediates_only=True)
        widths = [info["num_chs"] for info in getattr(model.feature_info, "info", model.feature_info)]
        require_that([m.shape[1] for m in found] == widths, "feature_info tells the maps' channels", widths)

    def numbers() -> None:
        wanted, exact = run(model, x), copy.deepcopy(model).double()
        double = run(exact, x.double())
        require_that(double.dtype == torch.float64, "float64 stays")
        # a deep network amplifies rounding: what it does when every weight moves by one is its own measure
        moved, generator = copy.deepcopy(exact), torch.Generator().manual_seed(2)
        for p in moved.parameters():
            p.data *= 1 + torch.finfo(torch.float32).eps * (2 * torch.rand(p.shape, generator=generator) - 1)
        most = torch.maximum(4 * (run(moved, x.double()) - double).norm(), 1e-4 * double.norm())
        require_that(bool((wanted - double).norm() <= most), "float32 is float64 to rounding")
        last = run(model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last))
        model.to(memory_format=torch.contiguous_format)
        require_that(bool((last - wanted).norm() <= most), "channels_last changes nothing")
        alone = torch.cat([run(model, image[None]) for image in x])
        require_that(bool((alone - wanted).norm() <= most), "samples are apart in evaluation")

    def repeatable() -> None:
        with untouched(x, *model.state_dict().values()):
            first = run(model, x)
        require_that(torch.equal(run(model, x), first), "the same images give the same bits")
        require_that(torch.equal(run(copy.deepcopy(model), x), first), "a copy gives the same bits")

    def meta_device() -> None:
        with torch.device("meta"):
            empty = timm.create_model(name, **chosen)
        require_that(state_shapes(empty) == state_shapes(model), "the meta device has the same state")

    def files() -> None:
        wanted = run(model, x)
        with tempfile.TemporaryDirectory() as folder:
            save_model(folder, model, ModelRecipe(name, chosen))
            require_that(torch.equal(run(load_model(folder).model, x), wanted), "our files keep every bit")
        with tempfile.TemporaryDirectory() as folder:
            timm.models.save_for_hf(model, folder, safe_serialization=True)
            again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            require_that(torch.equal(run(again, x), wanted), "timm's files keep every bit")

    checks = [heads, gradients, groups, configuration, intermediates, numbers, repeatable, meta_device, files]
    return run_checks(f"the network {name!r}", checks, exceptions)
