"""The loop's flags are the fields of TrainConfig, with the same defaults; images are chosen as the flags say."""

import dataclasses

import pytest

from convsmith.cli.shell import classifier, data_options, method_settings, train_options
from convsmith.cli.verbs import train
from convsmith.errors import InvalidArgument
from convsmith.training import TrainConfig

#: settings of the loop that only a settings file of a later version may need; left at their defaults
NOT_FLAGS = {
    "beta1", "beta2", "eps", "decay_all", "gamma", "power", "warmup_lr",
    "sync_batchnorm", "find_unused",
}  # fmt: skip


def test_loop_flags_and_train_config_agree():
    flags = {f.name: f for f in dataclasses.fields(train_options.LoopOptions)}
    for field in dataclasses.fields(TrainConfig):
        if field.name in NOT_FLAGS:
            assert field.name not in flags
        else:
            assert flags[field.name].default == field.default, field.name


def test_every_loop_flag_reaches_the_configuration():
    given = {
        "epochs": 3, "lr": 0.5, "optimizer": "adamw", "momentum": 0.1, "nesterov": False, "weight_decay": 0.2,
        "schedule": "step", "warmup_steps": 4, "clip": 1.5, "accumulate": 2, "precision": "fp32", "ema": 0.9,
        "patience": 3, "restore": "best", "evaluate_every": 5, "checkpoint_every": 6, "keep_last": 7, "log_every": 8,
        "trackers": ("tensorboard",), "seed": 9, "device": "cpu", "milestones": (0.3, 0.6), "step_factor": 0.5,
    }  # fmt: skip
    config = train_options.train_config(train_options.LoopOptions(**given))
    assert {name: getattr(config, name) for name in given} == given


def test_limit_keeps_so_many_images_of_each_split_by_seed():
    arguments = data_options.DataOptions(data="digits", limit=20)
    first, second = data_options.load(arguments), data_options.load(arguments)
    assert [len(split) for split in first.splits.values()] == [20, 20, 20]
    assert first.train.index.tolist() == second.train.index.tolist()
    other = data_options.load(dataclasses.replace(arguments, seed=1))
    assert first.train.index.tolist() != other.train.index.tolist()


def test_like_gives_size_channels_and_normalisation():
    small = data_options.load(data_options.DataOptions(data="digits"))
    like = dataclasses.replace(small.description, size=(12, 12), channels=3, mean=(0.1,) * 3, std=(0.2,) * 3)
    loaded = data_options.load(data_options.DataOptions(data="digits"), like=like)
    batch = loaded.test.fetch([0])
    assert batch.images.shape == (1, 3, 12, 12)
    assert float(batch.images.min()) == pytest.approx((0 - 0.1) / 0.2)
    with pytest.raises(InvalidArgument, match="other classes"):
        data_options.load(data_options.DataOptions(data="digits"), like=dataclasses.replace(like, classes=("a", "b")))


def test_model_arguments_are_yaml_values():
    assert method_settings.keyword_arguments(["width=8", "shortcut=conv", "drop_rate=0.1", "a=[1, 2]"]) == {
        "width": 8,
        "shortcut": "conv",
        "drop_rate": 0.1,
        "a": [1, 2],
    }
    with pytest.raises(InvalidArgument, match="NAME=VALUE"):
        method_settings.keyword_arguments(["width"])


def test_a_network_is_seeded_and_its_recipe_rebuilds_it():
    from convsmith.models.storage import build

    about = data_options.load(data_options.DataOptions(data="digits", limit=10)).description
    arguments = train.Arguments(data="digits", model_args=("width=4", "depth=8"))
    (first, recipe), (second, _) = classifier.create(arguments, about), classifier.create(arguments, about)
    assert all((a == b).all() for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert recipe.kwargs == {"num_classes": 10, "in_chans": 1, "width": 4, "depth": 8}
    assert [p.shape for p in build(recipe).parameters()] == [p.shape for p in first.parameters()]
    other, _ = classifier.create(dataclasses.replace(arguments, seed=1), about)
    assert any((a != b).any() for a, b in zip(first.parameters(), other.parameters(), strict=True))
