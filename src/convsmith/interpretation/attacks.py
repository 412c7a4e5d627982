"""Adversarial images, in pixel units and on the device: gradient sign, iterated, projected; others through ART."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import checked, integer, number, one_of
from convsmith.errors import InvalidArgument, require
from convsmith.inspection.modes import copied
from convsmith.inspection.outputs import class_scores
from convsmith.interpretation.find import class_numbers, prepare, row_slices
from convsmith.registry import Registry, check_settings, setting_types

#: moves pixels: (setting, start pixels [B, C, H, W], labels [B], settings of its own as keywords) -> pixels
Move = Callable[..., Tensor]
ATTACKS: Registry[Move] = Registry("attack", "convsmith.interpretation")


@dataclass(frozen=True)
class AttackSetting:
    """What an attack knows: ``model`` takes images, that is ``normalise(pixels)``; pixels are in [0, 1]."""

    model: nn.Module
    shift: Tensor
    scale: Tensor
    epsilon: float
    step: float
    steps: int
    targeted: bool
    generator: torch.Generator

    def normalise(self, pixels: Tensor) -> Tensor:
        return (pixels - self.shift) / self.scale

    def gradient(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return the gradient by the pixels of the loss that is raised, that of ``labels`` (targeted: lowered)."""
        with torch.enable_grad():
            points = pixels.detach().requires_grad_(True)
            logits = class_scores(self.model(self.normalise(points)))
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            if self.targeted:
                loss = -loss
            slope = torch.autograd.grad(loss, points, allow_unused=True)[0] if loss.requires_grad else None
        if slope is None:
            rule = "the output does not depend on the images in a way autograd can follow"
            hint = "an int8 network has no gradients: take the one it was made of"
            raise InvalidArgument(rule, argument="model", given=type(self.model).__name__, hint=hint)
        return slope


@torch.inference_mode(False)
@checked
def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    method: str = "fgsm",
    epsilon: float = 8 / 255,
    *,
    targeted: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    step: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    round_to_8bit: bool = True,
    batch_size: int | None = None,
    **settings: Any,
) -> Tensor:
    """Return adversarial versions of ``images`` [B, C, H, W], normalised as they came, on the model's device.

    Args:
        model: classifier in evaluation mode; not changed.
        images: as the model takes them: (pixel - mean) / std.
        labels: [B] int64, the true class; with ``targeted`` the class to reach.
        method: ``"fgsm"`` one step of the gradient's sign (Goodfellow et al. 2015); ``"ifgsm"`` iterated from the image
            itself (Kurakin et al. 2017); ``"pgd"`` iterated from a random point of the ball (Madry et al. 2018);
            ``"adaptive"`` fools the network while its inside stays like a clean image's, and can ask a detector, see
            `adaptive`; else the name of an evasion attack of adversarial-robustness-toolbox, such as ``"DeepFool"``.
        epsilon: largest change of a pixel, for pixels in [0, 1] (8/255 by default); some attacks of ART know no such
            bound (``"DeepFool"``) and go beyond it.
        targeted: lower the loss of ``labels`` instead of raising it.
        mean: of the normalisation, by channel; None: images are plain pixels in [0, 1].
        std: of the normalisation, by channel.
        step: change per iteration in pixel units, default 2.5 epsilon / steps (iterated methods).
        steps: iterations (iterated methods), default 10, of ``"adaptive"`` 50.
        seed: of the random start.
        round_to_8bit: round pixels to multiples of 1/255, as a stored image would be, towards the original so that the
            change never exceeds epsilon. Where the original is itself no 8-bit image its nearest one is the reference.
        batch_size: images at once.
        settings: of ``"adaptive"`` (``match``, ``guide``, ``weight``, ...) or of an attack of ART.

    Raises:
        InvalidArgument: an unknown method, an epsilon outside [0, 1], labels of no class, pixels outside [0, 1] (the
            mean or std is wrong).

    Examples:
        >>> changed = attack(model, images.clamp(-1, 1), labels, "pgd", epsilon=8 / 255, mean=[0.5] * 3, std=[0.5] * 3)
    """
    number("epsilon", epsilon, least=0, most=1)
    if steps is not None:
        integer("steps", steps, least=1)
    if step is not None:
        number("step", step, above=0)
    model, images = prepare(model, images)
    labels = class_numbers(model, images, labels)
    shift, scale = _normalisation(images, mean, std)
    pixels = images * scale + shift
    if float(pixels.min()) < -0.01 or float(pixels.max()) > 1.01:
        raise InvalidArgument(
            "attacks work on pixels in [0, 1]",
            given=f"pixels from {float(pixels.min()):.3f} to {float(pixels.max()):.3f} after undoing mean and std",
            hint="pass the mean and std the images were normalised with",
        )
    pixels = pixels.clamp(0, 1)
    ours = method in ATTACKS
    if not ours and (step is not None or steps is not None):
        rule, hint = "an attack of ART names its steps itself", "such as eps_step= and max_iter="
        raise InvalidArgument(rule, argument="step, steps", given=f"{step}, {steps}", hint=hint)
    steps = steps or (default_steps(method) if ours else 1)
    step, generator = step or 2.5 * epsilon / steps, torch.Generator().manual_seed(seed)
    setting = AttackSetting(model, shift, scale, epsilon, step, steps, targeted, generator)
    if ours:
        move, parts = ATTACKS[method], []
        check_settings(f"the attack {method}", settings, (*setting_types(move), "step", "steps", "seed", "epsilon"))
        for rows in row_slices(images, batch_size):
            own = {k: v[rows] if isinstance(v, Tensor) and v.shape == pixels.shape else v for k, v in settings.items()}
            parts.append(move(setting, pixels[rows], labels[rows], **own))
        moved = torch.cat(parts)
    else:
        moved = _through_art(setting, pixels, labels, method, settings)
    return setting.normalise(eight_bit(moved, pixels, epsilon if ours else None) if round_to_8bit else moved)


def default_steps(method: str) -> int:
    """Return the gradients that an attack of ours takes where the caller names none."""
    return int(ATTACKS.entry(method).traits.get("steps", 10))


@ATTACKS.register("fgsm", steps=1)
def _fgsm(setting: AttackSetting, pixels: Tensor, labels: Tensor) -> Tensor:
    """One step of epsilon along the sign of the gradient."""
    return (pixels + setting.epsilon * setting.gradient(pixels, labels).sign()).clamp(0, 1)


@ATTACKS.register("ifgsm")
def _ifgsm(setting: AttackSetting, pixels: Tensor, labels: Tensor) -> Tensor:
    """Take iterated sign steps inside the ball, from the image."""
    return _iterate(setting, pixels, pixels, labels)


@ATTACKS.register("pgd")
def _pgd(setting: AttackSetting, pixels: Tensor, labels: Tensor) -> Tensor:
    """Take iterated sign steps inside the ball, from a random point of it."""
    noise = torch.rand(pixels.shape, generator=setting.generator).to(pixels) * 2 - 1
    return _iterate(setting, (pixels + setting.epsilon * noise).clamp(0, 1), pixels, labels)


def _iterate(setting: AttackSetting, start: Tensor, pixels: Tensor, labels: Tensor) -> Tensor:
    low, high = (pixels - setting.epsilon).clamp(0, 1), (pixels + setting.epsilon).clamp(0, 1)
    for _ in range(setting.steps):
        start = torch.minimum(torch.maximum(start + setting.step * setting.gradient(start, labels).sign(), low), high)
    return start


def eight_bit(moved: Tensor, pixels: Tensor, epsilon: float | None) -> Tensor:
    """Round the change, in steps of 1/255 from the 8-bit original, towards it where the ball demands it."""
    base = (pixels * 255).round()
    change = (moved * 255).round() - base
    if epsilon is not None:
        limit = float(int(epsilon * 255 + 1e-6))
        change = change.clamp(-limit, limit)
    return (base + change).clamp(0, 255) / 255


def _normalisation(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    shape = (1, -1, *([1] * (images.dim() - 2)))
    shift = images.new_tensor(list(mean) if mean is not None else [0.0]).view(shape)
    scale = images.new_tensor(list(std) if std is not None else [1.0]).view(shape)
    for name, value in (("mean", shift), ("std", scale)):
        if value.shape[1] not in (1, images.shape[1]):
            rule = "one number per channel"
            raise InvalidArgument(rule, argument=f"{name} of {images.shape[1]}", given=value.shape[1])
    if not bool((scale > 0).all()):
        raise InvalidArgument("every std is above 0", argument="std", given=scale.flatten().tolist())
    return shift, scale


def _through_art(
    setting: AttackSetting, pixels: Tensor, labels: Tensor, method: str, settings: dict[str, Any]
) -> Tensor:
    evasion = require("art.attacks.evasion", "attacks")
    estimators = require("art.estimators.classification", "attacks")
    known = [name for name in dir(evasion) if isinstance(getattr(evasion, name), type)]
    one_of("attack", method, ATTACKS.names() + known)

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copied(setting.model)  # ART clears the gradients of what it is given

        def forward(self, points: Tensor) -> Tensor:
            return class_scores(self.inner(setting.normalise(points)))

    network = Normalised().eval()
    with torch.no_grad():
        classes = network(pixels[:1]).shape[1]
    estimator = estimators.PyTorchClassifier(
        network,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(pixels.shape[1:]),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if pixels.is_cuda else "cpu",
    )
    kind = getattr(evasion, method)
    accepted = set(getattr(kind, "attack_params", ()))
    if "eps" in accepted and "eps" not in settings:
        settings = {**settings, "eps": setting.epsilon}
    if "targeted" in accepted:
        settings = {"targeted": setting.targeted, **settings}
    elif setting.targeted:
        raise InvalidArgument("this attack cannot be targeted", argument="targeted=True", given=method)
    if "verbose" in accepted:
        settings = {"verbose": False, **settings}
    check_settings(f"the attack {method}", settings, accepted)
    made = kind(estimator, **settings).generate(x=pixels.cpu().numpy(), y=labels.cpu().numpy())
    return torch.as_tensor(made).to(pixels)
