"""Every method trains, keeps its state in buffers, never sees a target label, and resumes bit for bit."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from convsmith.adaptation import METHODS, adapt, available, method_settings
from convsmith.adaptation.methods.method import Domains
from convsmith.data import Loader
from convsmith.errors import InvalidArgument
from convsmith.registry import setting_types
from convsmith.training import TrainConfig, fit
from tests.adaptation.worlds import K, loader, network, world

SMALL = {
    "dann": {"hidden": (6,)},
    "san": {"hidden": (6,), "every": 3, "warmup": 0.25},
    "pada": {"hidden": (6,), "every": 3},
    "ba3us": {"hidden": (6,), "every": 3},
    "cdan": {"hidden": (6,)},
    "iwan": {"hidden": (6,)},
    "etn": {"hidden": (6,)},
    "adda": {"hidden": (6,)},
    "ar": {"critic_steps": 5, "critic_hidden": 4, "updates": 2},
    "arpm": {"critic_steps": 5, "critic_hidden": 4, "updates": 2, "neighbours": 2, "second_neighbours": 2},
}


def task_of(method, steps, source, target, norm=False, **settings):
    chosen = method_settings(method, {**SMALL.get(method, {}), **settings})
    domains = Domains(Loader(source, 64), Loader(target.without_labels(), 64), K, steps)
    torch.manual_seed(5)
    return METHODS[method](network(norm=norm), domains, chosen)


def config(steps, **changes):
    base = TrainConfig(steps=steps, lr=0.05, nesterov=False, schedule="inverse", device="cpu")
    return replace(base, **changes)


def test_all_methods_of_the_surface_are_there():
    assert {"source-only", "dan", "dann", "adda", "san", "pada"} < set(available())
    assert set(available()) == {
        "adda",
        "afn",
        "ar",
        "arpm",
        "ba3us",
        "cdan",
        "dan",
        "dann",
        "etn",
        "iwan",
        "pada",
        "san",
        "source-only",
    }


@pytest.mark.parametrize("method", available())
def test_a_run_resumed_in_the_middle_is_bit_identical(method, tmp_path):
    source, target = world()
    whole = task_of(method, 12, source, target, norm=True)
    result = fit(whole, loader(source, target), config(12))
    assert all(math.isfinite(row["loss"]) for row in result.history if row["kind"] == "train")

    class Stop(Exception):
        pass

    part = task_of(method, 12, source, target, norm=True)
    slow = config(12, checkpoint_every=7)
    before = part.before_step
    part.before_step = lambda step: (_ for _ in ()).throw(Stop()) if step == 9 else before(step)
    with pytest.raises(Stop):
        fit(part, loader(source, target), slow, out=tmp_path)
    again = task_of(method, 12, source, target, norm=True)
    fit(again, loader(source, target), slow, out=tmp_path, resume=True)
    ours, theirs = whole.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_a_run_is_not_resumed_with_other_settings(tmp_path):
    source, target = world()
    fit(task_of("dann", 3, source, target), loader(source, target), config(3), out=tmp_path)
    with pytest.raises(InvalidArgument, match=r"adversarial=1\.0.* then, .*adversarial=2\.0.* now"):
        fit(
            task_of("dann", 3, source, target, adversarial=2.0),
            loader(source, target),
            config(3),
            out=tmp_path,
            resume=True,
        )


@pytest.mark.parametrize("method", available())
def test_target_labels_change_nothing(method):
    source, target = world()
    states = []
    for labels in (target.labels, (target.labels + 1) % 3):
        task = task_of(method, 6, source, target)
        fit(task, loader(source, target.with_labels(labels, target.classes)), config(6))
        states.append(task.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_training_batches_carry_no_target_label():
    source, target = world()
    for batch in loader(source, target).epoch(0):
        assert bool((batch.target.labels == -1).all())
        assert bool((batch.source.labels >= 0).all())


def test_san_finds_the_shared_classes_and_lifts_accuracy():
    source, target = world(n=100, m=60, shift=0.35)
    task = task_of("san", 150, source, target, every=10, entropy=0.3)
    fit(task, loader(source, target, batch=20), config(150))
    weights = task.class_weights()
    assert float(weights[:3].min()) > float(weights[3:].max())
    assert_close(weights.mean(), torch.tensor(1.0))


def test_nothing_is_reversed_and_no_entropy_acts_before_the_warmup_ends():
    source, target = world()
    task = task_of("san", 20, source, target, warmup=0.5)
    assert [task.grl_coeff(t, 1.0, 1.0) for t in (0, 9, 10)] == [0.0, 0.0, 0.0]
    assert task.grl_coeff(19, 1.0, 1.0) > 0.9
    batch = next(loader(source, target).epoch(0))
    losses = task(batch, 3)
    body = [p for n, p in task.model.named_parameters() if n.startswith("0.")]
    total = torch.autograd.grad(losses.total, body)
    alone = torch.autograd.grad(task(batch, 3).parts["classification"], body)
    for a, b in zip(total, alone, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_adda_moves_the_target_encoder_alone_after_the_parting():
    source, target = world()
    task = task_of("adda", 12, source, target, pretrain=0.5)
    fit(task, loader(source, target), config(12))
    moved = [n for n, p in task.model.named_parameters() if not torch.equal(p, task.source_model.get_parameter(n))]
    assert any(n.startswith("0.") for n in moved)
    assert not any(n.startswith("7.") for n in moved)  # the classifier is the source's


def test_separate_normalisation_gives_running_statistics_of_the_target():
    source, target = world(n=48, m=48, shift=0.6)
    task = task_of("dann", 40, source, target, norm=True, normalisation="separate", adversarial=0.0)
    fit(task, loader(source, target, batch=24), config(40, lr=1e-9))
    conv, norm = task.model[0], task.model[1]
    with torch.no_grad():
        expected = conv(target.fetch(range(48)).images).mean((0, 2, 3))
        other = conv(source.fetch(range(48)).images).mean((0, 2, 3))
    gap = float((expected - other).abs().max())
    assert float((norm.running_mean - expected).abs().max()) < 0.2 * gap


def test_learning_rates_of_body_head_and_adversary():
    source, target = world()
    task = task_of("dann", 5, source, target, head_lr_mult=10.0, adversary_lr_mult=3.0)
    groups = task.parameter_groups(0.01)
    assert [round(g["lr"], 6) for g in groups] == [0.01, 0.1, 0.03]
    assert sum(len(list(g["params"])) for g in groups) == len(list(task.parameters()))
    caffe = task_of("san", 5, source, target, variant="caffe").parameter_groups(0.01)
    assert all(g["weight_decay"] == 0.0 for g in caffe)


def test_only_methods_with_an_adversary_take_its_settings():
    for name in available():
        takes = "adversary_lr_mult" in setting_types(METHODS.entry(name).traits["settings"])
        assert takes == any("discriminator" in key for key in task_of(name, 5, *world()).state_dict()), name
    with pytest.raises(InvalidArgument, match="no such setting"):
        method_settings("dan", {"adversary_lr_mult": 3.0})


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: method_settings("sann", {}), "did you mean 'san'"),
        (lambda: method_settings("san", {"entropi": 1.0}), "did you mean 'entropy'"),
        (lambda: method_settings("dann", {"entropy": 1.0}), "no such setting"),
        (lambda: method_settings("san", {"variant": "torch"}), "did you mean 'pytorch'"),
        (lambda: method_settings("dan", {"estimator": "u"}), "argument: estimator"),
        (lambda: method_settings("dann", {"normalisation": "none"}), "argument: normalisation"),
        (lambda: method_settings("adda", {"normalisation": "joint"}), "no such setting"),
        (lambda: method_settings("source-only", {"normalisation": "separate"}), "no such setting"),
        (lambda: method_settings("dann", {"adversarial": -1.0}), "argument: adversarial"),
        (lambda: method_settings("dann", {"adversarial": math.inf}), "argument: adversarial"),
        (lambda: method_settings("dann", {"adversarial": "1"}), "argument: adversarial"),
        (lambda: method_settings("dann", {"hidden": [8.5]}), "argument: hidden"),
        (lambda: method_settings("dann", {"hidden": None}), "argument: hidden"),
        (lambda: method_settings("cdan", {"entropy_weights": 2}), "argument: entropy_weights"),
        (lambda: method_settings("san", {"weights": 3}), "argument: weights|did you mean"),
        (lambda: method_settings("pada", {"weights": 3}), "argument: weights"),
        (lambda: method_settings("pada", {"scale": None}), "argument: scale"),
        (lambda: method_settings("san", {"source_is": 2}), "argument: source_is"),
        (lambda: method_settings("arpm", {"neighbours": 0}), "argument: neighbours"),
        (lambda: method_settings("iwan", {"warmup": 1.0}), "warmup must be a finite number below 1"),
        (lambda: method_settings("adda", {"pretrain": 1.0}), "pretrain must be a finite number above 0"),
    ],
)
def test_bad_settings_are_one_clear_error(call, rule):
    with pytest.raises(InvalidArgument, match=rule):
        call()


def test_nested_settings_are_named_without_their_group():
    settings = method_settings("san", {"entropy": 0.7, "inverse_temperature": 5.0, "dropout": 0.1})
    assert (settings.variant.entropy, settings.variant.weights.inverse_temperature, settings.dropout) == (0.7, 5.0, 0.1)
    caffe = method_settings("san", {"variant": "caffe", "entropy": 0.1})
    assert (caffe.variant.weights.estimate, caffe.variant.entropy) == ("running-sum", 0.1)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrappers_are_taken_off(wrap):
    more = {"method": "san", "hidden": (4,), "reference": None, "steps": 4, "batch_size": 12, "device": "cpu"}
    plain, wrapped = (adapt(model, *world(), **more) for model in (network(norm=True), wrap(network(norm=True))))
    assert torch.equal(plain.predictions.probabilities, wrapped.predictions.probabilities)
