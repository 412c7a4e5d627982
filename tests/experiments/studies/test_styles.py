"""The studies on emoji: runs on made-up maps are repeatable and honest about labels; the rules decide as written."""

import json

import pytest
import torch

from convsmith.errors import InvalidArgument
from experiments.datasets import maps as datasets
from experiments.datasets.maps import Maps, divided
from experiments.studies import (
    page,
    pooling_fine_tune,
    style_transfer,
    transfer_selection,
    transfer_stamps,
    transfer_styles,
)
from experiments.studies.contract import Study
from experiments.studies.statistics import Interval
from experiments.studies.style_transfer import DIRECTIONS, Recipe, run

TINY = Recipe(steps=4, batch=8, evaluate_every=2, hidden=(4,))
DIRECTION = next(iter(DIRECTIONS))


class SmallBackbone(torch.nn.Module):
    """What the heads take from the pretrained network, small."""

    def __init__(self):
        super().__init__()
        self.conv_head, self.bn2 = torch.nn.Conv2d(6, 12, 1, bias=False), torch.nn.BatchNorm2d(12)
        self.num_features = 12


@pytest.fixture
def made_up(monkeypatch):
    """Maps of twelve classes in every style, and a small network."""

    def maps(style, *, stride=1, **_):
        generator = torch.Generator().manual_seed(len(style))
        labels = torch.arange(12).repeat_interleave(10)
        values = torch.randn(120, 6, 4, 4, generator=generator) + labels[:, None, None, None] / 4
        return Maps(values, labels, torch.arange(120), tuple(f"class-{k:02}" for k in range(12)))

    monkeypatch.setattr(style_transfer, "emoji_maps", maps)
    monkeypatch.setattr(style_transfer, "stamp_maps", lambda *, stride: (maps("photographs"), maps("drawings")))
    monkeypatch.setattr(pooling_fine_tune, "emoji_maps", maps)
    monkeypatch.setattr(datasets.backbone, "pretrained", SmallBackbone)
    for cached in (style_transfer.styles, style_transfer.source_only, pooling_fine_tune.parts):
        cached.cache_clear()
    yield
    for cached in (style_transfer.styles, style_transfer.source_only, pooling_fine_tune.parts):
        cached.cache_clear()


def test_a_run_is_json_and_repeats(made_up):
    first = run(DIRECTION, "first-3", "san", 0, TINY)
    assert json.loads(json.dumps(first)) == run(DIRECTION, "first-3", "san", 0, TINY)
    assert len(first["curve"]) == len(run(DIRECTION, "first-3", "source-only", 0, TINY)["curve"]) == 2


def test_the_informed_ablation_knows_the_classes_and_the_method_sees_no_label(made_up, monkeypatch):
    told = run(DIRECTION, "first-3", "san", 0, TINY, informed=True)
    assert told["weights"] == [4.0] * 3 + [0.0] * 9
    assert told["auroc"] == 1.0
    seen = []
    train = style_transfer.train
    monkeypatch.setattr(
        style_transfer, "train", lambda m, d, target, *a, **k: seen.append(target) or train(m, d, target, *a, **k)
    )
    run(DIRECTION, "first-3", "dann", 0, TINY)
    assert seen
    assert all(int(target.labels.max()) == -1 for target in seen)


def test_a_division_keeps_every_class_on_both_sides():
    maps = Maps(torch.zeros(7, 1, 1, 1), torch.tensor([0, 0, 1, 1, 1, 1, 1]), torch.arange(7), ("a", "b"))
    first, second = divided(maps, 0.4, 0)
    assert first.labels.tolist() == [0, 1, 1, 1]
    assert second.labels.tolist() == [0, 1, 1]
    assert sorted([*first.index.tolist(), *second.index.tolist()]) == list(range(7))


def test_without_pictures_the_error_says_how_to_fetch_them(tmp_path):
    with pytest.raises(InvalidArgument, match="experiments data emoji"):
        datasets.emoji_maps("google", root=tmp_path)


def cells(dann, san):
    found = {}
    for direction in DIRECTIONS:
        for spec in transfer_styles.SETS:
            for arm, gain in (("source-only", 0), ("dann", dann), ("san", san)):
                found[direction, spec, arm] = [
                    {"curve": [{"accuracy": 0.5 + gain + 0.01 * (n if gain else 0)}]} for n in range(3)
                ]
    return found


@pytest.mark.parametrize(
    ("dann", "san", "verdict"),
    [
        (-0.2, 0.1, "reproduced"),
        (-0.2, -0.2, "not reproduced"),
        (0.1, 0.2, "not reproduced"),
        (0.1, -0.2, "not reproduced"),
    ],
)
def test_the_rule_of_styles(dann, san, verdict):
    assert transfer_styles.decide(cells(dann, san))[0] == verdict


@pytest.mark.parametrize(
    ("dann", "san", "verdict"),
    [(-0.2, 0.1, "reproduced"), (-0.2, -0.1, "partly"), (0.1, 0.2, "partly"), (0.1, -0.2, "not reproduced")],
)
def test_the_rule_of_stamps(dann, san, verdict):
    found = {
        (style_transfer.STAMPS, transfer_stamps.TARGET, arm): [
            {"curve": [{"accuracy": 0.5 + gain + slope * n}]} for n in range(3)
        ]
        for arm, gain, slope in (("source-only", 0, 0), ("dann", dann, 0.01), ("san", san, 0.02))
    }
    assert transfer_stamps.judged(found)[0] == verdict


def test_the_stamps_run_whole(made_up, monkeypatch):
    monkeypatch.setattr(transfer_stamps, "RECIPE", TINY)
    outcome = transfer_stamps.stamps(Study("transfer/stamps", quick=False, seeds=[0, 1], device="cpu"))
    assert [len(table.rows) for table in outcome.tables] == [21, 6, 5, 1]
    assert "<svg" in outcome.figures[0].svg


def test_points_lost_by_a_choice():
    row = {"source_accuracy": 1.0, "entropy": 0.1, "infomax": -1.0, "bnm": 0.5, "snd": 5.0}
    curve = [{**row, "accuracy": 0.8, "infomax": -2.0}, {**row, "accuracy": 0.6, "snd": 6.0}]
    runs = transfer_selection.grouped(
        {
            f"a|first-10|{arm}|{seed}": {"curve": curve}
            for arm in ("source-only", "dann", "san, changed")
            for seed in (0, 1)
        }
    )
    assert set(runs) == {("a", "first-10", "source-only"), ("a", "first-10", "dann")}
    lost = transfer_selection.losses(runs)
    assert lost["infomax"].mean == 0
    assert lost["last step"].mean == lost["snd"].mean == pytest.approx(20)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0, 1.9, "reproduced"), (0, 3, "partly"), (2, 4, "not reproduced")]
)
def test_the_rule_of_selection(low, high, verdict):
    lost = {"snd": Interval((low + high) / 2, low, high, 3), "last step": Interval(0, 0, 0, 3)}
    assert transfer_selection.decide(lost) == (verdict, "snd")


@pytest.mark.parametrize(
    ("ours", "needed", "verdict"),
    [
        ([75, 76.1], [100, 101], "reproduced"),
        ([75, 76.1], [220, 221], "partly"),
        ([71, 79], [100, 199], "partly"),
        ([60, 61], [220, 221], "not reproduced"),
    ],
)
def test_the_rule_of_fine_tuning(ours, needed, verdict):
    accuracy = {"average": [70, 71], pooling_fine_tune.OURS: ours}
    updates = {"average": [200, 200.5], pooling_fine_tune.OURS: needed}
    assert pooling_fine_tune.decide(accuracy, updates)[0] == verdict


def test_fine_tuning_repeats_and_keeps_identities_apart(made_up):
    one, two = (pooling_fine_tune.train(pooling_fine_tune.OURS, 0, 2) for _ in range(2))
    assert one == two
    training, validation, test = pooling_fine_tune.parts(0)
    sides = [{int(i) % 100_000 for i in part.index} for part in (training, validation, test)]
    assert len(sides[0] | sides[1] | sides[2]) == sum(map(len, sides))
    assert len(training) == 2 * len(sides[0])


def test_a_head_may_have_a_rate_of_its_own(made_up):
    head = pooling_fine_tune.PooledHead("average", 12, head_lr_mult=5.0)
    pretrained, new = head.parameter_groups(0.1)
    assert (pretrained["lr"], new["lr"]) == (0.1, 0.5)
    assert len(pretrained["params"]) + len(new["params"]) == len(list(head.parameters()))


def test_the_equal_head_has_as_many_parameters():
    ours = 1280 * 128 + 2 * 128 + (128 * 129 // 2 + 1) * 53
    made = sum(p.numel() for p in pooling_fine_tune.hidden_classifier(1280, 53).parameters())
    assert abs(made - ours) < 0.01 * ours


def test_the_page_prints_twin_and_published_number():
    value = {"study": "transfer/styles", "verdict": "partly", "summary": "x."}
    twin = {"study": "transfer/methods", "verdict": "reproduced", "summary": "10 of 16."}
    text = page.beside(value, [value, twin])[0]
    assert "`transfer/methods`: reproduced; 10 of 16." in text
    assert "87.3" in text
    assert page.beside(twin, [value, twin]) == []
