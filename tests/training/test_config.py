import json

import pytest

from convsmith.errors import InvalidArgument
from convsmith.training import TrainConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "must be 1 or more\n  argument: epochs"),
        ({"steps": -1}, "must be 1 or more"),
        ({"steps": 1, "epochs": 1}, "not both"),
        ({"epochs": 1.5}, "whole number"),
        ({"epochs": True}, "whole number"),
        ({"lr": 0.0}, "must lie in"),
        ({"lr": -0.1}, "must lie in"),
        ({"lr": float("nan")}, "finite"),
        ({"lr": "0.1"}, "finite number"),
        ({"optimizer": "adamww"}, "did you mean 'adamw'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"precision": "float16"}, "did you mean 'fp16'|known: auto"),
        ({"device": "cudaa"}, "did you mean 'cuda'"),
        ({"restore": "bst"}, "did you mean 'best'"),
        ({"trackers": ("tensorbord",)}, "did you mean 'tensorboard'"),
        ({"momentum": 1.0}, "must lie in"),
        ({"ema": 1.0}, "must lie in"),
        ({"weight_decay": -1e-4}, "must lie in"),
        ({"clip": 0.0}, "must lie in"),
        ({"accumulate": 0}, "1 or more"),
        ({"patience": 0}, "1 or more"),
        ({"keep_last": 0}, "1 or more"),
        ({"log_every": 0}, "1 or more"),
        ({"warmup_steps": -1}, "0 or more"),
        ({"warmup_share": 1.0}, "must lie in"),
        ({"warmup_share": 0.1, "warmup_steps": 4}, "one says how long"),
        ({"seed": -1}, "0 or more"),
        ({"milestones": (0.5, 0.5)}, "must grow"),
        ({"milestones": (0.5, 1.0)}, "must lie in"),
        ({"layer_decay": 1.5}, "must lie in"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InvalidArgument, match=message):
        TrainConfig(**settings)


def test_json_round_trip():
    config = TrainConfig(steps=5, milestones=(0.2, 0.9), ema=0.99, trackers=("tensorboard",))
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(InvalidArgument, match="did you mean 'epochs'"):
        TrainConfig.from_json({"epoch": 3})


@pytest.mark.parametrize(
    ("settings", "batches", "steps"),
    [
        ({"steps": 7}, 3, 7),
        ({"epochs": 2}, 5, 10),
        ({"epochs": 3, "accumulate": 2}, 5, 8),
        ({}, 4, 80),
    ],
)
def test_total_steps(settings, batches, steps):
    assert TrainConfig(**settings).total_steps(batches) == steps
