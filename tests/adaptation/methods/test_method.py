"""Features are what enters the classifier, for timm's networks and for plain modules, and no hook stays behind."""

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

import convsmith  # noqa: F401  (registers our models)
from convsmith.adaptation.methods.method import extract_domain_features
from convsmith.data.batch import Batch, DomainBatch
from convsmith.errors import InvalidArgument
from convsmith.inspection.features import classifier_of, features_and_logits


@pytest.mark.parametrize("name", ["cs_lenet", "cs_resnet20", "resnet18"])
def test_features_times_classifier_are_the_logits(name):
    model = timm.create_model(name, num_classes=4, in_chans=1).eval()
    f, z = features_and_logits(model, torch.rand(2, 1, 32, 32))
    head = classifier_of(model)
    assert f.shape == (2, head.in_features)
    assert_close(head(f), z)
    assert not head._forward_pre_hooks


def test_a_plain_module_uses_its_last_linear_layer():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert classifier_of(model) is model[3]
    x = torch.rand(5, 1, 2, 2)
    assert_close(features_and_logits(model, x)[0], model[:3](x))


def test_no_hook_survives_an_error():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            self.fc(x)
            raise RuntimeError("broken")

    model = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        features_and_logits(model, torch.rand(2, 4))
    assert not model.fc._forward_pre_hooks


def test_a_classifier_that_runs_twice_or_on_maps_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.fc(x))

    with pytest.raises(InvalidArgument, match="once an image batch"):
        features_and_logits(Twice(), torch.rand(2, 4))
    with pytest.raises(InvalidArgument, match="linear layer"):
        classifier_of(nn.Conv2d(1, 1, 1))


def test_joint_and_separate_normalisation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    one, two = torch.rand(6, 1, 2, 2), torch.rand(4, 1, 2, 2) + 3
    labels = torch.zeros(6, dtype=torch.long)
    batch = DomainBatch(Batch(one, labels, labels), Batch(two, labels[:4] - 1, labels[:4]))
    joint = extract_domain_features(model, batch, "joint")
    both = torch.cat([one, two]).flatten(1)
    expected = (both - both.mean(0)) / (both.var(0, correction=0) + 1e-5).sqrt()
    assert_close(torch.cat([joint.source_features, joint.target_features]), expected)
    model[1].reset_running_stats()
    apart = extract_domain_features(model, batch, "separate")
    for images, features in ((one, apart.source_features), (two, apart.target_features)):
        x = images.flatten(1)
        assert_close(features, (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt())
    assert_close(model[1].running_mean, 0.1 * two.flatten(1).mean(0))
    assert model[1].momentum == 0.1
    model[1].momentum = None  # the plain mean of all batches so far
    model[1].reset_running_stats()
    extract_domain_features(model, batch, "separate")
    assert_close(model[1].running_mean, two.flatten(1).mean(0))
