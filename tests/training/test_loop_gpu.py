"""What only a GPU shows: precision, the loss scaler, losses read late."""

import pytest
import torch

from convsmith.data.batch import Batch
from convsmith.errors import RunFailed
from convsmith.training import ClassificationTask, checkpoint, fit
from tests.training import runs

pytestmark = pytest.mark.gpu


def config(**changes):
    return runs.config(
        **{"device": "cuda", "patience": None, "evaluate_every": None, "checkpoint_every": None, **changes}
    )


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_every_precision_learns(precision):
    task = ClassificationTask(runs.network(dropout=0.0), 3)
    done = fit(task, runs.loader(), config(precision=precision, steps=200, lr=0.1, ema=None))
    assert done.precision == ("bf16" if precision == "auto" else precision)
    assert done.history[-1]["loss"] < 0.5 * done.history[0]["loss"]
    assert next(task.parameters()).dtype == torch.float32
    assert next(task.parameters()).is_cuda


def test_fp16_resumes_with_its_scaler(tmp_path):
    settings = {"precision": "fp16", "checkpoint_every": 6, "keep_last": 100, "steps": 12}
    whole = ClassificationTask(runs.network(), 3)
    fit(whole, runs.loader(), config(**settings), out=tmp_path / "whole")
    place = checkpoint.path_of(tmp_path / "part", 6)
    place.parent.mkdir(parents=True)
    place.symlink_to(checkpoint.path_of(tmp_path / "whole", 6))
    part = ClassificationTask(runs.network(), 3)
    fit(part, runs.loader(), config(**settings), out=tmp_path / "part", resume=True)
    states = [checkpoint.load(tmp_path / name).state["scaler"] for name in ("whole", "part")]
    assert states[0] == states[1]
    torch.testing.assert_close(part.state_dict(), whole.state_dict(), rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_finite_is_named_by_its_own_step(tmp_path):
    class Spoiled(list):
        def epoch(self, epoch, start=0):
            for i, batch in enumerate(runs.loader().epoch(epoch, start), epoch * len(self) + start):
                yield Batch(batch.images * float("nan"), batch.labels, batch.index) if i == 13 else batch

    settings = {"accumulate": 1, "log_every": 10, "checkpoint_every": 5}
    with pytest.raises(RunFailed, match="not finite at step 13"):
        fit(ClassificationTask(runs.network(), 3), Spoiled(range(6)), config(**settings), out=tmp_path)
    assert checkpoint.saved_steps(tmp_path)[-1] == 10
