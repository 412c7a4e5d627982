"""One call from data to model, predictions and alarms; what selects and what must not."""

import csv
import json

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from convsmith.adaptation import EvaluationOptions, Predictions, Reference, WeightSettings, adapt
from convsmith.adaptation.adapt import built
from convsmith.adaptation.evaluation.alarms import CollapseRule
from convsmith.adaptation.evaluation.evaluator import EXCLUDED
from convsmith.adaptation.inputs import resolve
from convsmith.adaptation.methods.pada import PADASettings
from convsmith.errors import InvalidArgument, RunFailed
from convsmith.training import TrainConfig
from tests.adaptation.worlds import K, network, world

QUICK = {"steps": 20, "lr": 0.05, "batch_size": 12, "device": "cpu"}


@pytest.fixture(scope="module")
def sides():
    return world(n=100, m=60, shift=0.35)


@pytest.fixture(scope="module")
def result(sides):
    return adapt(
        network(), *sides, method="san", validator="infomax", use_target_labels=True, hidden=(6,), every=5, **QUICK
    )


def test_result_carries_everything(result, sides):
    assert result.method == "san"
    assert_close(result.class_weights.mean(), torch.tensor(1.0))
    assert result.selected_step in {row["step"] for row in result.history if row["kind"] == "evaluation"}
    assert 0 <= result.measurements["oracle_accuracy"] <= 1
    assert result.reference is not None
    assert result.weight_history.shape == (10, K)
    assert not result.model.training
    p = result.predictions.probabilities
    assert_close(p.sum(1), torch.ones(len(sides[1])))
    assert result.predictions.index.tolist() == list(range(len(sides[1])))


def test_the_selected_step_is_the_validators_best_among_those_that_pass_the_guard(result):
    rows = [row for row in result.history if row["kind"] == "evaluation"]
    floor = 0.9 * result.reference.measurements["source_accuracy"]
    allowed = [row for row in rows if row["source_accuracy"] >= floor]
    for row in rows:
        assert row["selection"] == (pytest.approx(-row["infomax"]) if row in allowed else EXCLUDED)
    assert result.selected_step == max(rows, key=lambda row: row["selection"])["step"]
    assert_close(result.measurements["infomax"], -max(row["selection"] for row in rows), rtol=0, atol=1e-5)


def test_fewer_evaluations_change_no_weight(sides):
    often, once = (
        adapt(network(), *sides, method="san", hidden=(6,), every=5, reference=None, num_evals=n, **QUICK)
        for n in (10, 1)
    )
    assert [len([row for row in r.history if row["kind"] == "evaluation"]) for r in (often, once)] == [10, 1]
    for a, b in zip(often.model.parameters(), once.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_callers_random_numbers_are_left_alone(sides):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    adapt("cs_lenet", *sides, method="dann", hidden=(4,), **{**QUICK, "steps": 2})
    assert torch.equal(torch.rand(2), expected)


def test_the_input_model_is_left_alone(sides):
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    adapt(model, *sides, method="dan", reference=None, **QUICK)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("validator", [None, "entropy", "infomax", "snd", "bnm", "source-accuracy", "dev"])
def test_target_labels_neither_train_nor_select(sides, validator):
    source, target = sides
    outcomes = []
    for labels in (target.labels, (target.labels + 1) % 3, torch.full_like(target.labels, -1)):
        changed = target.with_labels(labels, target.classes)
        outcomes.append(
            adapt(network(), source, changed, method="dann", validator=validator, hidden=(6,), **{**QUICK, "steps": 3})
        )
    first = outcomes[0]
    assert "oracle_accuracy" not in first.measurements
    for other in outcomes[1:]:
        assert other.selected_step == first.selected_step
        assert_close(other.predictions.probabilities, first.predictions.probabilities, rtol=0, atol=0)


def test_the_oracle_says_so(sides):
    found = adapt(network(), *sides, method="dann", validator="oracle", use_target_labels=True, hidden=(6,), **QUICK)
    assert any("oracle" in warning for warning in found.warnings)
    rows = [row for row in found.history if row["kind"] == "evaluation"]
    assert found.measurements["oracle_accuracy"] == pytest.approx(max(row["oracle_accuracy"] for row in rows))


def test_an_earlier_reference_equals_training_it_anew(sides):
    base = adapt(network(), *sides, method="source-only", **QUICK)
    given = adapt(network(), *sides, method="dan", reference=base, **QUICK)
    anew = adapt(network(), *sides, method="dan", **QUICK)
    assert_close(given.reference.measurements["source_accuracy"], anew.reference.measurements["source_accuracy"])
    assert given.warnings == anew.warnings


def test_a_reference_of_another_kind_is_refused_before_training(sides):
    other = adapt(network(), *sides, method="dan", reference=None, **{**QUICK, "steps": 2})
    few = Reference(torch.full((60, 3), 1 / 3), {"source_accuracy": 1.0})
    for reference, rule in ((other, "source-only result"), (few, "other classes")):
        with pytest.raises(InvalidArgument, match=rule):
            adapt(network(), *sides, method="dan", reference=reference, **QUICK)


def test_source_only_is_trained_by_the_same_recipe(sides):
    more = {"head_lr_mult": 10.0, **QUICK}
    trained = adapt(network(), *sides, method="dann", hidden=(6,), **more).reference
    alone = adapt(network(), *sides, method="source-only", **more)
    assert torch.equal(trained.probabilities, alone.predictions.probabilities)


def test_alarms_reach_result_and_warnings(sides):
    found = adapt(network(), *sides, method="dan", collapse=CollapseRule(fewest=99.0), **QUICK)
    assert found.alarms[0].kind == "collapse"
    assert any(w.startswith("collapse: ") for w in found.warnings)
    rows = [row for row in found.history if row["kind"] == "evaluation"]
    assert all(row["collapse_alarm"] == 1.0 for row in rows)
    assert {row["negative_transfer_alarm"] for row in rows} <= {0.0, 1.0}


def test_resume_continues_reference_and_method(sides, tmp_path):
    whole = adapt(network(), *sides, method="san", hidden=(6,), every=5, out=tmp_path / "a", **QUICK)

    class Stop(Exception):
        pass

    def stop(done, total, note):
        if note.startswith("san"):
            raise Stop

    config = TrainConfig(
        steps=20, lr=0.05, schedule="inverse", gamma=0.5, nesterov=False, device="cpu", checkpoint_every=7
    )
    again = {"method": "san", "hidden": (6,), "every": 5, "batch_size": 12, "config": config}
    with pytest.raises(Stop):
        adapt(network(), *sides, out=tmp_path / "b", progress=stop, **again)
    stated = max((tmp_path / "b/checkpoints").iterdir()) / "checkpoint.json"
    about = json.loads(stated.read_text())
    about["position"]["seconds"] += 1000
    stated.write_text(json.dumps(about))
    resumed = adapt(network(), *sides, out=tmp_path / "b", resume=True, **again)
    assert 1000 < resumed.seconds < 2000  # of all sessions
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert torch.equal(whole.class_weights, resumed.class_weights)


def test_predictions_file(result, tmp_path):
    path = result.predictions.save(str(tmp_path / "predictions.csv"))
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == len(result.predictions.index)
    assert {row["prediction"] for row in rows} <= {f"c{k}" for k in range(K)}
    assert all(0 < float(row["second_confidence"]) <= float(row["confidence"]) <= 1 for row in rows)


def test_no_cell_of_the_predictions_is_a_formula(tmp_path):
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    made = Predictions(torch.arange(2), p, 1.0, ("=cmd|' /C calc'!A0", "plain"), ("@SUM(A1)", "-2.png"))
    rows = list(csv.reader(made.save(tmp_path / "new" / "predictions.csv").open()))
    assert rows[1][1:3] == ["'@SUM(A1)", "'=cmd|' /C calc'!A0"]
    assert rows[2][1:3] == ["'-2.png", "plain"]
    assert not any(path.name.endswith(".draft") for path in (tmp_path / "new").iterdir())


def test_arrays_specs_and_datasets_are_taken(sides, tmp_path):
    source, target = sides
    arrays = (source.pixels(slice(None)).numpy(), source.labels.numpy())
    X = target.pixels(slice(None)).numpy()
    by_array = adapt(network(), arrays, X, method="source-only", **QUICK)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1]))
    by_dataset = adapt(network(), dataset, X, method="source-only", **QUICK)
    assert_close(by_array.predictions.probabilities, by_dataset.predictions.probabilities, rtol=0, atol=0)
    digits = adapt("cs_lenet", "digits", "digits", target_classes="0-2", method="dann", hidden=(6,), **QUICK)
    assert len(digits.classes) == 10


def test_a_network_with_other_classes_gets_a_new_head_and_says_so(sides):
    model = network()
    model[-1] = nn.Linear(8, 9)
    found = adapt(model, *sides, method="dann", hidden=(6,), reference=None, **{**QUICK, "steps": 2})
    assert found.predictions.probabilities.shape == (60, K)
    assert model[-1].out_features == 9
    assert any("classifier is new: 5 source classes where the network had 9" in w for w in found.warnings)
    again = adapt(model, *sides, method="dann", hidden=(6,), reference=None, **{**QUICK, "steps": 2})
    assert torch.equal(found.predictions.probabilities, again.predictions.probabilities)
    timms = timm.create_model("cs_lenet", num_classes=7, in_chans=1)
    assert built(timms, resolve(*sides), 0)[0].num_classes == K


class Detailed(nn.Module):
    """A network that returns more than its logits."""

    def __init__(self, kind):
        super().__init__()
        self.inner, self.kind = network(), kind

    def forward(self, x):
        logits = self.inner(x)
        return (logits, x) if self.kind == "tuple" else {"logits": logits, "images": x}


@pytest.mark.parametrize("kind", ["tuple", "dictionary"])
@pytest.mark.parametrize("method", ["san", "arpm", "adda"])
def test_outputs_beside_the_logits_are_left_alone(sides, kind, method):
    small = {"critic_steps": 2} if method == "arpm" else {"hidden": (4,)}
    plain, detailed = (
        adapt(model, *sides, method=method, reference=None, **small, **{**QUICK, "steps": 4})
        for model in (network(), Detailed(kind))
    )
    assert torch.equal(plain.predictions.probabilities, detailed.predictions.probabilities)


def test_groups_given_whole_equal_single_keywords(sides):
    whole = adapt(
        network(),
        *sides,
        method="pada",
        settings=PADASettings(hidden=(6,), weights=WeightSettings(every=3)),
        evaluation=EvaluationOptions(validator="bnm", num_evals=4),
        reference=None,
        **QUICK,
    )
    single = adapt(
        network(),
        *sides,
        method="pada",
        hidden=(6,),
        every=3,
        scale="mean-one",
        warmup=0.0,
        validator="bnm",
        num_evals=4,
        reference=None,
        **QUICK,
    )
    assert whole.settings == single.settings
    assert whole.measurements == single.measurements


def test_a_source_class_without_images_is_said(sides):
    images_, labels = sides[0].pixels(slice(None)), sides[0].labels
    found = adapt(
        network(), (images_, labels + 1), sides[1], method="dann", hidden=(4,), reference=None, **{**QUICK, "steps": 2}
    )
    assert any("no image of" in warning for warning in found.warnings)


def test_a_network_of_double_precision_is_adapted(sides):
    found = adapt(network().double(), *sides, method="dann", hidden=(6,), **{**QUICK, "steps": 4})
    assert next(found.model.parameters()).dtype == torch.float64
    assert_close(found.predictions.probabilities.sum(1), torch.ones(len(sides[1]), dtype=torch.float64))


def test_training_that_spoils_the_network_has_failed_and_says_what_to_change(sides):
    class Spoiled(nn.Module):
        """Finite while it trains and before; NaN where it is measured afterwards."""

        def __init__(self):
            super().__init__()
            self.net = network()
            self.register_buffer("trained", torch.zeros(()))

        def forward(self, x):
            self.trained += self.training
            return self.net(x if self.training or not self.trained else x * torch.nan)

    for settings in ({}, {"validator": "entropy", "num_evals": 2}):
        with pytest.raises(RunFailed, match="no longer finite") as failed:
            adapt(Spoiled(), *sides, method="source-only", **settings, **{**QUICK, "steps": 4})
        assert "learning rate" in failed.value.hint
