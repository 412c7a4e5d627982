import json

import pytest

from convsmith.errors import InvalidArgument
from convsmith.training import TrainConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "at least 1\n  argument: epochs"),
        ({"steps": -1}, "at least 1"),
        ({"steps": 1, "epochs": 1}, "not both"),
        ({"epochs": 1.5}, "whole number"),
        ({"epochs": True}, "whole number"),
        ({"lr": 0.0}, "above 0"),
        ({"lr": -0.1}, "above 0"),
        ({"lr": float("nan")}, "finite"),
        ({"lr": "0.1"}, "finite number"),
        ({"optimizer": "adamww"}, "did you mean 'adamw'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"precision": "float16"}, "did you mean 'fp16'|known: auto"),
        ({"device": "cudaa"}, "did you mean 'cuda'"),
        ({"restore": "bst"}, "did you mean 'best'"),
        ({"trackers": ("tensorbord",)}, "did you mean 'tensorboard'"),
        ({"momentum": 1.0}, "below 1"),
        ({"ema": 1.0}, "below 1"),
        ({"weight_decay": -1e-4}, "at least 0"),
        ({"clip": 0.0}, "above 0"),
        ({"accumulate": 0}, "at least 1"),
        ({"patience": 0}, "at least 1"),
        ({"keep_last": 0}, "at least 1"),
        ({"log_every": 0}, "at least 1"),
        ({"warmup_steps": -1}, "at least 0"),
        ({"warmup_share": 1.0}, "below 1"),
        ({"warmup_share": 0.1, "warmup_steps": 4}, "one says how long"),
        ({"seed": -1}, "at least 0"),
        ({"milestones": (0.5, 0.5)}, "must grow"),
        ({"milestones": (0.5, 1.0)}, "below 1"),
        ({"milestones": 0.5}, "milestones must be tuple"),
        ({"trackers": "wandb"}, "trackers must be tuple"),
        ({"nesterov": "no"}, "nesterov must be True or False"),
        ({"layer_decay": 1.5}, "at most 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InvalidArgument, match=message):
        TrainConfig(**settings)


def test_json_round_trip():
    config = TrainConfig(steps=5, milestones=(0.2, 0.9), ema=0.99, trackers=("tensorboard",))
    assert TrainConfig(**json.loads(json.dumps(config.to_json()))) == config


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
