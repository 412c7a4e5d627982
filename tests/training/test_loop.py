import json
import math

import pytest
import torch
from torch import nn

from convsmith.data.batch import Batch
from convsmith.errors import InvalidArgument, RunFailed
from convsmith.training import ClassificationTask, TrainConfig, fit


def batches(count=4, size=8, classes=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    out = []
    for i in range(count):
        labels = torch.randint(classes, (size,), generator=g)
        images = torch.randn(size, 1, 4, 4, generator=g) * 0.3
        images[torch.arange(size), 0, labels, labels] += 2
        out.append(Batch(images, labels, torch.arange(i * size, (i + 1) * size)))
    return out


def network(dropout=0.0):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def config(**changes):
    return TrainConfig(**{"steps": 10, "lr": 0.05, "device": "cpu", **changes})


def test_equals_the_loop_written_by_hand():
    """SGD with Nesterov, decay on matrices only, cosine, clipping: the same weights as bare PyTorch, bit for bit."""
    settings = config(steps=11, clip=0.5, weight_decay=0.01, warmup_steps=3)
    data = batches()
    task = ClassificationTask(network(), 3)
    fit(task, data, settings)

    by_hand = network().train()
    decayed = [p for p in by_hand.parameters() if p.ndim > 1]
    rest = [p for p in by_hand.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    for t in range(11):
        warm = 1e-5 + t / 3 * (0.05 - 1e-5)  # of timm
        rate = warm if t < 3 else 0.05 * (1 + math.cos(math.pi * (t - 3) / 8)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = data[t % 4]
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(batch.images), batch.labels).backward()
        nn.utils.clip_grad_norm_(decayed + rest, 0.5)
        optimizer.step()
    for (name, ours), theirs in zip(task.model.state_dict().items(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7, msg=name)


def test_accumulation_equals_the_big_batch():
    small = batches(count=8, size=4)
    big = [
        Batch(*(torch.cat([getattr(b, f) for b in small[i : i + 2]]) for f in ("images", "labels", "index")))
        for i in range(0, 8, 2)
    ]
    results = []
    for data, accumulate in ((small, 2), (big, 1)):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        data = [Batch(b.images.double(), b.labels, b.index) for b in data]
        done = fit(ClassificationTask(model, 3), data, config(epochs=3, steps=None, accumulate=accumulate))
        assert done.steps == 12
        results.append(model.state_dict())
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_evaluations_stay_with_the_epochs_that_no_number_of_steps_makes_up(tmp_path):
    """Regression: every 4 steps of 3 batches for an epoch of 10, so that the eighth evaluation came in the tenth."""
    done = fit(
        ClassificationTask(network(), 3),
        batches(count=10),
        config(epochs=9, steps=None, accumulate=3),
        validation=batches(),
        out=tmp_path,
    )
    evaluated = [r["step"] for r in done.history if r["kind"] == "evaluation"]
    assert evaluated == [math.ceil(10 * epoch / 3) for epoch in range(1, 10)]


def test_a_float64_network_takes_float32_images_and_mixed_targets():
    """Regression: the loop ended in torch's error about two types."""
    data = [Batch(b.images, b.labels, b.index, torch.full((8, 3), 1 / 3)) for b in batches(2)] + batches(2)
    teacher = network()
    task = ClassificationTask(network().double(), 3, teacher=teacher, distill=0.5)
    done = fit(task, data, config(), validation=data)
    assert next(task.parameters()).dtype == torch.float64
    assert all(math.isfinite(row["loss"]) for row in done.history if row["kind"] == "train")


def test_learns_and_logs(tmp_path):
    task = ClassificationTask(network(), 3)
    notes = []
    done = fit(
        task,
        batches(),
        config(steps=60, log_every=20, lr=0.1),
        validation=batches(seed=9),
        out=tmp_path / "run",
        progress=lambda *step: notes.append(step),
    )
    evaluations = [r for r in done.history if r["kind"] == "evaluation"]
    assert evaluations[-1]["accuracy"] >= 0.9
    assert done.best_value == max(r["accuracy"] for r in evaluations)
    assert [r["step"] for r in done.history if r["kind"] == "train"] == [20, 40, 60]
    assert notes[-1][:2] == (60, 60)
    assert all(note.count("accuracy") <= 1 for *_, note in notes)  # twice, before the first loss was logged
    assert not task.training
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == done.history
    table = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert len(table) == len(done.history) + 1
    assert {"kind", "step", "loss", "accuracy"} <= set(table[0].split(","))


def test_early_stop_and_best_weights(tmp_path):
    for out in (None, tmp_path / "run"):
        task = ClassificationTask(network(), 3)
        data = batches()
        # the same images with wrong labels: every step of learning makes it worse
        wrong = [Batch(b.images, (b.labels + 1) % 3, b.index) for b in data]
        settings = config(steps=100, evaluate_every=2, patience=3, restore="best", lr=0.1, ema=0.5)
        done = fit(task, data, settings, validation=wrong, out=out)
        assert done.stopped_early
        assert done.steps == done.best_step + 6
        assert task.evaluate(wrong)["accuracy"] == done.best_value


@pytest.mark.parametrize("where", ["start", "later"])
def test_nan_loss_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path, where):
    data = batches()
    bad = 0 if where == "start" else 3
    data[bad] = Batch(data[bad].images * float("nan"), data[bad].labels, data[bad].index)
    with pytest.raises(RunFailed, match=f"not finite at step {bad}") as caught:
        fit(ClassificationTask(network(), 3), data, config(checkpoint_every=1), out=tmp_path)
    assert caught.value.exit_code == 1
    assert f"step-{bad:08d}" in str(caught.value)
    saved = sorted((tmp_path / "checkpoints").iterdir())
    assert saved[-1].name == f"step-{bad:08d}"


def test_weights_that_overflow_are_never_saved(tmp_path):
    from convsmith.training.checkpoint import load

    class Jump(ClassificationTask):
        def before_step(self, step):
            if step == 4:
                self.model[5].weight.grad = None
                with torch.no_grad():
                    self.model[0].weight.fill_(float("inf"))
                    self.model[1].running_var.fill_(1)

    with pytest.raises(RunFailed):
        fit(Jump(network(), 3), batches(), config(checkpoint_every=1), out=tmp_path)
    assert load(tmp_path).position.step == 4
    assert all(torch.isfinite(v).all() for v in load(tmp_path).weights.values())


def test_leaves_the_global_random_state_and_the_seed_decides():
    results = []
    for noise in (1, 2):
        task = ClassificationTask(network(dropout=0.5), 3)
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        fit(task, batches(), config(seed=5))
        assert torch.equal(before, torch.get_rng_state())
        results.append(task.state_dict())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    other = ClassificationTask(network(dropout=0.5), 3)
    fit(other, batches(), config(seed=6))
    assert not torch.equal(other.model[5].weight, results[0]["model.5.weight"])


def test_precision_per_call_and_bf16_on_a_cpu():
    for precision in ("fp32", "bf16", "auto"):
        done = fit(ClassificationTask(network(), 3), batches(), config(precision=precision))
        assert done.precision == ("bf16" if precision == "bf16" else "fp32")
        assert all(math.isfinite(r["loss"]) for r in done.history)


def test_parameter_groups_keep_their_ratio():
    seen = []

    class TwoRates(ClassificationTask):
        def parameter_groups(self, lr):
            return [
                {"params": self.model[:5].parameters(), "lr": lr},
                {"params": self.model[5:].parameters(), "lr": 10 * lr},
            ]

        def before_step(self, step):
            seen.append(step)

    task = TwoRates(network(), 3)
    done = fit(task, batches(), config(steps=3, log_every=1, schedule="inverse", gamma=1.0, power=1.0))
    assert seen == [0, 1, 2]
    torch.testing.assert_close([r["lr"] for r in done.history], [0.05, 0.025, 0.05 / 3], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {"loader": []}, "no batch to train on"),
        ({}, {"loader": iter([])}, "a loader has a length"),
        ({"patience": 1}, {}, "needs validation data"),
        ({"evaluate_every": 1}, {}, "needs validation data"),
        ({"restore": "best"}, {}, "needs validation data"),
        ({"checkpoint_every": 5}, {}, "need a run folder"),
        ({}, {"resume": True}, "resumed from its folder"),
        ({"device": "cuda:77"}, {}, "does not have the device"),
        ({"precision": "fp16"}, {}, "fp16 training needs a GPU"),
        ({"sync_batchnorm": True}, {}, "CUDA devices only"),
    ],
)
def test_refused_before_any_work(change, arguments, message):
    task = ClassificationTask(network(), 3)
    before = {k: v.clone() for k, v in task.state_dict().items()}
    loader = arguments.pop("loader", batches())
    with pytest.raises(InvalidArgument, match=message):
        fit(task, loader, config(**change), **arguments)
    torch.testing.assert_close(dict(task.state_dict()), before, rtol=0, atol=0)


def test_refuses_an_existing_run_and_an_unwritable_place(tmp_path):
    task = ClassificationTask(network(), 3)
    fit(task, batches(), config(steps=1), out=tmp_path / "run")
    with pytest.raises(InvalidArgument, match="already holds a run"):
        fit(task, batches(), config(steps=1), out=tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="cannot be written"):
        fit(task, batches(), config(steps=1), out=tmp_path / "file" / "run")


def test_a_loader_that_lies_about_its_length_is_reported():
    class Short(list):
        def epoch(self, epoch, start=0):
            return iter(self[start:-1])

    with pytest.raises(RunFailed, match="another number of batches"):
        fit(ClassificationTask(network(), 3), Short(batches()), config())


def test_a_monitored_metric_must_be_evaluated():
    task = ClassificationTask(network(), 3)
    task.monitor = "sharpness"
    with pytest.raises(InvalidArgument, match="monitored metric"):
        fit(task, batches(), config(), validation=batches())
