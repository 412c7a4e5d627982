"""Classification: cross-entropy with label smoothing, and distillation from a frozen teacher if there is one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.arguments import checked, number, tensor, wide
from convsmith.data.batch import Batch, check_batch
from convsmith.errors import InvalidArgument, refusing
from convsmith.inspection.modes import copied
from convsmith.training.evaluation import expected_calibration_error, predict
from convsmith.training.task import Losses, Task


@checked
def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))``, mean over the batch; ``[B, K], [B, K] -> scalar``.

    Paper: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2; the factor ``T^2``
    keeps the gradient's size independent of T.

    Examples:
        >>> float(distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), 4.0))
        0.0
    """
    tensor("student", student, rank=2, what="logits [B, K]")
    if tensor("teacher", teacher, rank=2, what="logits [B, K]").shape != student.shape:
        given = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        raise InvalidArgument("student and teacher have the same classes", argument="teacher", given=given)
    number("temperature", temperature, above=0)
    log_p = F.log_softmax(wide(student) / temperature, dim=1)
    log_q = F.log_softmax(wide(teacher) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


class ClassificationTask(Task):
    """Labels from images: ``(1 - distill) * cross-entropy + distill * distillation``.

    Args:
        model: ``[B, C, H, W] -> [B, num_classes]`` logits.
        num_classes: of the data; 2 or more.
        label_smoothing: in [0, 1).
        teacher: a trained network with the same classes; kept frozen, in eval mode.
        distill: weight of the teacher's loss, in [0, 1]; above 0 exactly when there is a teacher.
        temperature: of the distillation, above 0.
        still: modules of the model that stay in eval mode (frozen stages, batch norms whose statistics are kept).

    Raises:
        InvalidArgument: a value outside its rule, a teacher without weight or a weight without teacher.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        label_smoothing: float = 0.0,
        teacher: nn.Module | None = None,
        distill: float = 0.0,
        temperature: float = 4.0,
        still: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        if num_classes < 2:
            rule = "a classifier needs two classes or more"
            raise InvalidArgument(rule, argument="num_classes", given=num_classes, hint="add images of another class")
        number("label_smoothing", label_smoothing, least=0, below=1)
        number("distill", distill, least=0, most=1)
        number("temperature", temperature, above=0)
        if (teacher is None) != (distill == 0):
            argument, given = "teacher, distill", ("no teacher" if teacher is None else "a teacher", distill)
            raise InvalidArgument("a teacher and a distillation weight come together", argument=argument, given=given)
        self.model = model
        self.teacher = None if teacher is None else copied(teacher).requires_grad_(False).eval()
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.distill, self.temperature = distill, temperature
        self.still = tuple(still)  # a tuple: the modules are the model's, and registered there

    def train(self, mode: bool = True) -> ClassificationTask:
        """Set the mode of all but the teacher and what is kept still."""
        super().train(mode)
        for module in self.still:
            module.eval()
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the model's own groups (a second-order head may learn faster than its backbone), else one group."""
        own = getattr(self.model, "parameter_groups", None)
        return own(lr) if callable(own) else super().parameter_groups(lr)

    def forward(self, batch: Batch, step: int) -> Losses:
        check_batch(batch)
        logits = self.model(batch.images)
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            rule = "the model must give one logit per class"
            hint = f"create the model with num_classes={self.num_classes}"
            raise InvalidArgument(rule, argument=f"[B, {self.num_classes}]", given=list(logits.shape), hint=hint)
        if batch.targets is not None:  # mixed images; their targets are smoothed already
            cross = F.cross_entropy(logits, batch.targets)
        else:
            with refusing(
                "a label is outside the classes", IndexError, argument=f"classes 0 to {self.num_classes - 1}"
            ):
                cross = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        if self.teacher is None:
            return Losses(cross)
        with torch.no_grad():
            taught = self.teacher(batch.images.to(next(self.teacher.parameters(), batch.images).dtype))
        if taught.shape != logits.shape:
            rule, given = "a teacher gives one logit per class, as the model does", list(taught.shape)
            raise InvalidArgument(rule, argument="teacher", given=given)
        kd = distillation_loss(logits, taught, self.temperature)
        total = (1 - self.distill) * cross + self.distill * kd
        return Losses(total, {"cross_entropy": cross, "distillation": kd})

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return accuracy, top-5 accuracy (from six classes on), cross-entropy and calibration error."""
        logits, labels, _ = predict(self.model, batches)
        if not len(labels):
            raise InvalidArgument("there is nothing to evaluate on", argument="validation", given="0 images")
        if not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            rule, given = "a label is outside the classes", f"labels from {int(labels.min())} to {int(labels.max())}"
            raise InvalidArgument(rule, argument=f"validation, classes 0 to {self.num_classes - 1}", given=given)
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        metrics = {"accuracy": int(top[:, 0].sum()) / len(labels)}
        if logits.shape[1] > 5:
            metrics["top5"] = int(top.any(1).sum()) / len(labels)
        metrics["cross_entropy"] = F.cross_entropy(logits, labels).item()
        metrics["ece"] = expected_calibration_error(logits, labels)
        return metrics
