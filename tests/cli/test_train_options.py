"""The loop's flags are the fields of TrainConfig, with the same defaults; images are chosen as the flags say."""

import dataclasses
import shlex

import pytest

from convsmith.cli import main
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


TRAIN, PREDICTED = "train --data digits", "explain cs_lenet photo.png"


@pytest.mark.parametrize(
    ("line", "unread", "needed"),
    [
        (f"{TRAIN} --momentum=0.5 --optimizer adamw", "--momentum", "an --optimizer that has one"),
        (f"{TRAIN} --nesterov --optimizer rmsprop", "--nesterov", "--optimizer sgd"),
        (f"{TRAIN} --milestones 0.5", "--milestones", "--schedule step"),
        (f"{TRAIN} --step_factor 0.5", "--step-factor", "--schedule step"),
        (f"{TRAIN} --mixup-prob 0.5", "--mixup-prob", "--mixup X or --cutmix X"),
        (f"{TRAIN} --mixup 1 --mixup-switch-prob 0.5", "--mixup-switch-prob", "--mixup X and --cutmix X"),
        (f"{TRAIN} --temperature 2", "--temperature", "--teacher MODEL"),
        ("compress x --data y --method low-rank --runtime compile", "--runtime", "--keep-latency F"),
        (f"{PREDICTED} --split train", "--split", "--data DATA alone"),
        (f"{PREDICTED} --neighbours 2", "--neighbours", "--data DATA"),
    ],
)
def test_a_flag_that_nothing_reads_is_refused(line, unread, needed, capsys):
    assert main.main(line.split()) == 2
    heard = capsys.readouterr().err
    assert f"it is read with {needed} only" in heard
    assert f"argument: {unread}\n" in heard


def test_a_preset_may_say_more_than_is_read(tmp_path, monkeypatch):
    """A flag that goes before the preset's must not clash with what else the preset says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("data: digits\nschedule: step\nmilestones: [0.5]\nmomentum: 0.8\n")
    assert main.main(shlex.split("train --config own.yaml --schedule cosine --optimizer adamw --dry-run")) == 0


def test_a_linear_probe_has_no_batches_to_fill_and_no_updates(capsys):
    assert main.main(f"{TRAIN} --limit 64 --linear-probe --dry-run".split()) == 0
    heard = capsys.readouterr().out
    assert "twice" not in heard
    assert "updates" not in heard
