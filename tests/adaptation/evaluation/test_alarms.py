"""The alarms fire on collapsed and harmful runs and stay silent on healthy ones."""

import torch
from torch.testing import assert_close

from convsmith.adaptation.evaluation.alarms import (
    CollapseRule,
    agreement,
    collapse_alarm,
    effective_classes,
    moved_mass,
    negative_transfer_alarm,
    prediction_histogram,
)


def one_hot(labels, k=5):
    return torch.nn.functional.one_hot(torch.as_tensor(labels), k).double() * 0.9 + 0.02


def test_effective_classes_counts():
    assert_close(effective_classes(torch.tensor([2.0, 2.0, 2.0])), 3.0)
    assert_close(effective_classes(torch.tensor([7.0, 0.0, 0.0])), 1.0)


def test_histogram_agreement_and_moved_mass():
    a, b = one_hot([0, 0, 1, 2]), one_hot([0, 1, 1, 3])
    assert_close(prediction_histogram(a), torch.tensor([0.5, 0.25, 0.25, 0, 0], dtype=torch.float64))
    assert agreement(a, b) == 0.5
    assert moved_mass(a, b) == 0.5


def test_one_predicted_class_is_a_collapse():
    alarm = collapse_alarm(one_hot([3] * 20))
    assert alarm is not None
    assert alarm.kind == "collapse"
    assert "1.00 effective classes" in alarm.message


def test_a_confident_move_to_wrong_classes_is_a_collapse_only_the_reference_shows():
    source_only = one_hot([0, 1, 2, 0, 1, 2, 3, 4] * 10)
    wrong = one_hot([3, 4, 3, 3, 4, 4, 3, 4] * 10)
    assert collapse_alarm(wrong) is None
    alarm = collapse_alarm(wrong, source_only)
    assert alarm is not None
    assert "moved to other classes" in alarm.message
    assert "keep the class" in alarm.message


def test_a_repaired_run_is_no_collapse():
    source_only = one_hot([0, 1, 2, 0, 1, 2, 3, 4] * 10)
    repaired = one_hot([0, 1, 2, 0, 1, 2, 0, 1] * 10)
    assert collapse_alarm(repaired, source_only) is None
    assert collapse_alarm(repaired, source_only, CollapseRule(fewest=4.0)) is not None


def test_negative_transfer_is_judged_by_one_selector():
    assert negative_transfer_alarm("snd", 1.0, 1.0) is None
    alarm = negative_transfer_alarm("snd", 0.8, 1.0)
    assert alarm is not None
    assert alarm.kind == "negative-transfer"
