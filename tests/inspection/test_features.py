"""Features are what enters the classifier, of a tensor or of any kind of batches, and the model keeps its modes."""

from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

import convsmith  # noqa: F401  (registers our models)
from convsmith.errors import InvalidArgument
from convsmith.inspection.feature_maps import infer_channels
from convsmith.inspection.features import classifier_of, extract_features, features_and_logits, head_names
from convsmith.inspection.modes import check_evaluation
from convsmith.inspection.outputs import class_scores, main_output, output_tensors


def classifier():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2)).train()


def test_a_tensor_and_all_kinds_of_batches_give_the_same():
    model, x, y = classifier(), torch.rand(5, 1, 2, 2), torch.arange(5)
    batches = [SimpleNamespace(images=x[:2], labels=y[:2]), (x[2:4], y[2:4]), [x[4:], y[4:]]]
    whole, parts = extract_features(model, x), extract_features(model, batches)
    assert model[3].training
    assert_close(whole.features, parts.features)
    assert_close(model[4](whole.features), whole.logits)
    assert (whole.labels.tolist(), parts.labels.tolist(), len(parts)) == ([-1] * 5, list(range(5)), 5)
    assert not whole.features.requires_grad
    assert not model[4]._forward_pre_hooks


@pytest.mark.parametrize(("images", "said"), [([], "no image"), ([3], "a batch is an image tensor")])
def test_no_images_are_refused(images, said):
    with pytest.raises(InvalidArgument, match=said):
        extract_features(classifier(), images)


def test_class_scores_of_every_structure():
    z = torch.rand(2, 3)
    for output in (z, (z, torch.rand(2)), {"aux": torch.rand(1), "logits": z}, SimpleNamespace(logits=z), [z]):
        assert class_scores(output) is z
    for output in (torch.rand(2, 3, 4), "text", {}, torch.rand(2, 1)):
        with pytest.raises(InvalidArgument):
            class_scores(output, classes=2)


def test_tensors_of_nested_outputs_come_in_order():
    a, b, c = torch.rand(1), torch.rand(2), torch.rand(3)
    assert [len(t) for t in output_tensors({"x": [a, (b, None)], "y": {"z": c}})] == [1, 2, 3]
    assert main_output({"x": [a, b]}) is a


def test_networks_without_parameters_have_channels():
    assert infer_channels(nn.ReLU(), lambda model, x: model(x), (8, 8)) == (3, set())


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


def test_images_take_the_dtype_of_the_network():
    model, x = classifier().double(), torch.rand(5, 1, 2, 2)
    assert_close(extract_features(model, x).logits, extract_features(model, x.double()).logits, rtol=0, atol=0)
    assert extract_features(model.bfloat16(), x).logits.dtype == torch.float32


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["dp", "compiled"])
def test_wrappers_are_looked_through_also_after_they_have_run(wrap):
    model, x = classifier().eval(), torch.rand(5, 1, 2, 2)
    wrapped = wrap(model)
    wrapped(x)  # a compiled module does not call hooks added later
    assert classifier_of(wrapped) is model[4]
    assert_close(features_and_logits(wrapped, x), features_and_logits(model, x), rtol=0, atol=0)
    check_evaluation(wrapped)


def test_one_rule_names_the_classifier():
    with torch.device("meta"):
        volo = timm.create_model("volo_d1_224", num_classes=7)
    assert head_names(volo) == ("head", "aux_head")
    assert classifier_of(volo) is volo.head
    behind = nn.ModuleDict({"head": nn.Linear(4, 3), "decoder": nn.Conv2d(3, 3, 1)})
    assert head_names(behind) == ("head",)
    assert classifier_of(behind) is behind["head"]
    assert head_names(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))) == ("1",)
    with pytest.raises(InvalidArgument, match="linear layer"):
        classifier_of(nn.Sequential(nn.Conv2d(3, 4, 1)))
