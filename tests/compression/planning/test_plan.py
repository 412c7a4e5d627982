"""Plans are printed, saved, edited and obeyed."""

import pytest
import torch

from convsmith.compression import Plan, compress, compression_history, plan_compression
from convsmith.errors import InvalidArgument


@pytest.fixture
def planned(Plain, settled):
    images = torch.randn(8, 1, 8, 8)
    model = settled(Plain(), images)
    return model, images, plan_compression(model, "low-rank", example=images, keep_macs=0.5)


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_saved_and_loaded(planned, suffix, tmp_path):
    _, _, plan = planned
    assert Plan.load(plan.save(tmp_path / f"plan.{suffix}")) == plan


def test_an_edited_plan_is_obeyed(planned, tmp_path):
    model, images, plan = planned
    path = plan.save(tmp_path / "plan.yaml")
    text = path.read_text()
    assert "Edit any `setting`" in text
    rank = plan.settings()["conv2"]["rank"]
    path.write_text(text.replace(f"rank: {rank}", "rank: 3"))
    made = compress(model, "low-rank", example=images, plan=Plan.load(path))
    assert compression_history(made)[0]["layers"]["conv2"]["rank"] == 3
    assert made.conv2[0].out_channels == 3
    alone = compress(model, "low-rank", example=images, plan=plan.with_choice("conv2", {}))
    assert torch.equal(alone.conv2.weight, model.conv2.weight)


def test_text_names_layers_shares_and_budget(planned):
    text = planned[2].text()
    assert "asked: 50.0% of macs" in text
    assert "conv2" in text
    assert "rank" in text


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", '{"method": "sparse"}', '{"method": "x", "choices": 3}'])
def test_files_that_are_no_plans(content, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(InvalidArgument, match="not a compression plan"):
        Plan.load(path)
    with pytest.raises(InvalidArgument, match="must exist"):
        Plan.load(tmp_path / "none.json")


def test_plans_that_do_not_fit_are_refused(planned):
    model, images, plan = planned
    with pytest.raises(InvalidArgument, match="another method"):
        compress(model, "sparse", example=images, plan=plan)
    with pytest.raises(InvalidArgument, match="replaces the budget"):
        compress(model, "low-rank", example=images, plan=plan, keep_macs=0.5)
    with pytest.raises(InvalidArgument, match="no such layer"):
        plan.with_choice("conv9", {})
    with pytest.raises(InvalidArgument, match="full rank"):
        compress(
            model, "low-rank", example=images, plan=plan.with_choice("conv2", {"decomposition": "svd", "rank": 999})
        )


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("low-rank", {"rank": 2}),
        ("low-rank", {"decomposition": "svd", "rank": "two"}),
        ("prune-filters", {"kept": 3}),
        ("interleave", {"partitions": 4, "out_partitions": [4, 4]}),
        ("sparse", {"sparsity": 1.5}),
        ("sparse", {"sparsity": -0.5}),
        ("structured-sparse", {"n": 2, "m": 5}),
        ("structured-sparse", {"n": 5, "m": 4}),
        ("structured-sparse", {"block": [0, 4], "sparsity": 0.5}),
        ("binary", {"bits": 1}),
    ],
)
def test_settings_that_no_method_writes_are_refused(method, setting, Plain):
    images, model = torch.randn(8, 1, 8, 8), Plain().eval()
    plan = plan_compression(model, method, example=images)
    layer = next(choice.layer for choice in plan.choices if choice.layer.startswith("conv"))
    with pytest.raises(InvalidArgument):
        compress(model, method, example=images, plan=plan.with_choice(layer, setting))


def test_a_plan_edited_again_leaves_what_it_made(planned):
    model, images, plan = planned
    made = compress(model, "low-rank", example=images, plan=plan)
    before = compression_history(made)
    for setting in plan.settings().values():
        setting["rank"] = 1
    assert compression_history(made) == before


def test_a_budget_between_two_reachable_ones_names_both(Plain, tmp_path):
    """Channels that go by eights leave gaps: the plan says what can be reached on either side."""
    images, model, missed = torch.randn(8, 1, 8, 8), Plain().eval(), 0
    for keep in (0.3, 0.45, 0.6, 0.75, 0.9):
        plan = plan_compression(model, "prune-filters", example=images, keep_macs=keep, round_to=8)
        missed += bool(plan.nearest)
        assert bool(plan.nearest) == (plan.kept("macs") < 0.99 * keep)
        if plan.nearest:
            below, above = plan.nearest
            assert below == pytest.approx(plan.kept("macs"))
            assert below < keep < above
            assert f"nearest that can be reached: {below:.1%} and {above:.1%}" in plan.text()
            assert Plan.load(plan.save(tmp_path / "plan.yaml")).nearest == plan.nearest
    assert missed
