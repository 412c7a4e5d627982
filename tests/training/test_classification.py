import math

import pytest
import torch
from torch import nn

from convsmith.data.batch import Batch
from convsmith.errors import InvalidArgument
from convsmith.training import ClassificationTask, TrainConfig, distillation_loss, fit


def naive_distillation(student, teacher, temperature):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        es, et = (torch.exp(v / temperature) for v in (s, t))
        p, q = es / es.sum(), et / et.sum()
        total += sum(float(q[k] * torch.log(q[k] / p[k])) for k in range(len(s)))
    return temperature**2 * total / len(student)


def test_distillation_equals_the_formula():
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    for temperature in (1.0, 4.0):
        value = distillation_loss(student, teacher, temperature).item()
        assert math.isclose(value, naive_distillation(student, teacher, temperature), rel_tol=1e-5)
    assert distillation_loss(student, student + 3, 2.0).abs().item() < 1e-6


def test_distillation_gradient_at_high_temperature_matches_logits():
    """Hinton et al. 2015, eq. 4: for T large and centred logits the gradient is (z - v) / N per class."""
    student = torch.randn(1, 4, dtype=torch.float64)
    teacher = torch.randn(1, 4, dtype=torch.float64)
    student, teacher = student - student.mean(), teacher - teacher.mean()
    student.requires_grad_()
    distillation_loss(student, teacher, 300.0).backward()
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 4, rtol=0.05, atol=1e-2)


def batch(count=6):
    return Batch(torch.randn(count, 1, 2, 2), torch.arange(count) % 3, torch.arange(count))


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def test_loss_is_the_convex_combination():
    teacher = net(1)
    task = ClassificationTask(net(), 3, label_smoothing=0.1, teacher=teacher, distill=0.3, temperature=2.0)
    task.eval()
    b = batch()
    losses = task(b, 0)
    logits = task.model(b.images)
    smooth = torch.full((6, 3), 0.1 / 3)
    smooth[torch.arange(6), b.labels] += 0.9
    cross = -(smooth * torch.log_softmax(logits, 1)).sum(1).mean()
    kd = distillation_loss(logits, teacher.eval()(b.images), 2.0)
    torch.testing.assert_close(losses.total, 0.7 * cross + 0.3 * kd, rtol=1e-5, atol=1e-6)
    assert set(losses.parts) == {"cross_entropy", "distillation"}


def test_teacher_never_changes():
    teacher = net(1)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    task = ClassificationTask(net(), 3, teacher=teacher, distill=0.5)
    done = fit(task, [batch() for _ in range(4)], TrainConfig(steps=8, device="cpu", weight_decay=0.1, ema=0.5))
    torch.testing.assert_close(dict(teacher.state_dict()), before, rtol=0, atol=0)
    assert {"cross_entropy", "distillation"} <= set(done.history[0])
    assert task.train().model.training
    torch.testing.assert_close(dict(task.teacher.state_dict()), before, rtol=0, atol=0)
    assert not task.teacher.training
    assert teacher.training


def test_evaluate():
    task = ClassificationTask(net(), 3).eval()
    data = [batch(), batch(3)]
    metrics = task.evaluate(data)
    logits = torch.cat([task.model(b.images) for b in data])
    labels = torch.cat([b.labels for b in data])
    assert metrics["accuracy"] == (logits.argmax(1) == labels).double().mean().item()
    assert "top5" not in metrics
    with pytest.raises(InvalidArgument, match="nothing to evaluate"):
        task.evaluate([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "two classes or more"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"distill": 0.5}, "come together"),
        ({"teacher": nn.Identity()}, "come together"),
        ({"teacher": nn.Identity(), "distill": 1.5}, "distill"),
        ({"teacher": nn.Identity(), "distill": 0.5, "temperature": 0.0}, "temperature"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        ClassificationTask(net(), **{"num_classes": 3, **arguments})


def test_a_model_with_other_classes_is_refused_at_the_first_batch():
    with pytest.raises(InvalidArgument, match=r"one logit per class"):
        ClassificationTask(net(), 4)(batch(), 0)


def test_a_teacher_and_validation_of_other_classes_are_refused():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(InvalidArgument, match="a teacher gives one logit per class"):
        ClassificationTask(net(), 3, teacher=teacher, distill=0.5)(batch(), 0)
    for label in (-1, 3):
        one = Batch(torch.randn(2, 1, 2, 2), torch.tensor([0, label]), torch.arange(2))
        with pytest.raises(InvalidArgument, match="outside the classes"):
            ClassificationTask(net(), 3).evaluate([one])
        with pytest.raises(InvalidArgument, match="outside the classes"):
            ClassificationTask(net(), 3)(one, 0)
