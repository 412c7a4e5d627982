"""Frozen stages, kept statistics, and a head on frozen features."""

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression

from convsmith.data import Loader, from_arrays
from convsmith.data.batch import Batch
from convsmith.errors import InvalidArgument
from convsmith.training import ClassificationTask, TrainConfig, fit, freeze, linear_probe, norms, predict


def model(**settings):
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=3, **settings)


def changed(before, after):
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def images(count=24):
    draw = np.random.default_rng(0)
    labels = np.arange(count) % 3
    return from_arrays((draw.random((count, 3, 32, 32)) * 0.5 + labels[:, None, None, None] / 6), labels)


@pytest.mark.parametrize("parts", [["conv1", "bn1", "layer1"], [2]])
def test_frozen_stages_keep_weights_and_statistics(parts):
    net = model()
    still = freeze(net, parts)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    task = ClassificationTask(net, 3, still=still)
    fit(task, Loader(images(), 8), TrainConfig(steps=2, lr=0.1, device="cpu"))
    moved = changed(before, net.state_dict())
    assert not [name for name in moved if name.startswith(("conv1", "bn1", "layer1"))]
    assert {"fc.weight", "layer4.0.conv1.weight", "layer4.0.bn1.running_mean"} <= moved


def test_kept_statistics_still_train_their_weights():
    net = model()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fit(ClassificationTask(net, 3, still=norms(net)), Loader(images(), 8), TrainConfig(steps=2, lr=0.1, device="cpu"))
    moved = changed(before, net.state_dict())
    assert "layer1.0.bn1.weight" in moved
    assert not [name for name in moved if "running" in name or "batches" in name]


@pytest.mark.parametrize("parts", [["layer9"], [1, "layer1"], [99]])
def test_parts_that_are_none(parts):
    with pytest.raises(InvalidArgument):
        freeze(model(), parts)


def test_mixed_targets_are_what_the_loss_sees():
    net = model()
    task = ClassificationTask(net, 3, label_smoothing=0.3).eval()
    x, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    hard = torch.nn.functional.one_hot(labels, 3).float()
    plain = ClassificationTask(net, 3).eval()
    index = torch.arange(4)
    one = task(Batch(x, labels, index, hard), 0).total
    assert torch.equal(one, torch.nn.functional.cross_entropy(net(x), hard))
    torch.testing.assert_close(one, plain(Batch(x, labels, index), 0).total)


def test_a_linear_probe_is_logistic_regression_on_the_features():
    split, net = images(60), model().eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = linear_probe(net, Loader(split, 16), weight_decay=0.01)
    assert not changed(before, net.state_dict())
    assert changed(before, found.state_dict()) == {"fc.weight", "fc.bias"}
    x = split.fetch(range(60)).images
    with torch.no_grad():
        features = net.forward_head(net.forward_features(x), pre_logits=True).double().numpy()
    features = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    theirs = LogisticRegression(C=1 / (0.01 * 60), tol=1e-8, max_iter=5000).fit(features, split.labels.numpy())
    logits, labels, _ = predict(found, Loader(split, 16))
    expected = torch.from_numpy(theirs.predict_proba(features))
    torch.testing.assert_close(logits.double().softmax(1), expected, atol=2e-3, rtol=0)
    assert float((logits.argmax(1) == labels).float().mean()) == theirs.score(features, split.labels.numpy())


def test_a_linear_probe_of_a_head_without_bias_is_fitted_without_one():
    """Regression: it was fitted with a bias on centred features, and then the bias was dropped."""
    split, net = images(60), model().eval()
    net.fc = torch.nn.Linear(net.fc.in_features, net.fc.out_features, bias=False)
    found = linear_probe(net, Loader(split, 16), weight_decay=0.01)
    with torch.no_grad():
        x = split.fetch(range(60)).images
        features = net.forward_head(net.forward_features(x), pre_logits=True).double().numpy()
    features = features / np.maximum(np.sqrt((features**2).mean(0)), 1e-6)
    theirs = LogisticRegression(C=1 / (0.01 * 60), tol=1e-8, max_iter=5000, fit_intercept=False)
    expected = torch.from_numpy(theirs.fit(features, split.labels.numpy()).predict_proba(features))
    torch.testing.assert_close(predict(found, Loader(split, 16))[0].double().softmax(1), expected, atol=2e-3, rtol=0)


def test_a_linear_probe_smooths_its_labels():
    split, net = images(60), model().eval()
    plain, smooth = (
        predict(linear_probe(net, Loader(split, 16), label_smoothing=s), Loader(split, 16))[0].double().softmax(1)
        for s in (0.0, 0.3)
    )
    # where the bias is free, the mean of the probabilities is that of the targets
    shares = torch.bincount(split.labels, minlength=3).double() / 60
    torch.testing.assert_close(plain.mean(0), shares, atol=1e-4, rtol=0)
    torch.testing.assert_close(smooth.mean(0), 0.7 * shares + 0.1, atol=1e-4, rtol=0)
    assert float(smooth.max()) < float(plain.max())


def test_a_linear_probe_refuses_labels_that_its_classifier_lacks():
    net = model().eval()
    net.reset_classifier(2)
    with pytest.raises(InvalidArgument, match="labels of its classes"):
        linear_probe(net, Loader(images(20), 10))


def test_wrapped_networks_have_the_names_of_their_own():
    wrapped = torch.nn.DataParallel(model())
    assert len(freeze(wrapped, ["layer1"])) == len(freeze(model(), ["layer1"]))
    batch = Batch(torch.rand(6, 3, 32, 32), torch.arange(6) % 3, torch.arange(6))
    assert isinstance(linear_probe(wrapped, [batch], iterations=2), type(wrapped.module))
