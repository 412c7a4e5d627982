"""Gates leave no trace, whatever the network does inside, and what cannot be gated is refused by name."""

import copy

import pytest
import torch
from torch import nn

from convsmith.errors import InvalidArgument
from convsmith.interpretation import apply_routes, find_routes
from convsmith.interpretation.gates import GatedNetwork
from convsmith.interpretation.sites import plan_sites
from tests.interpretation.naive import gated_logits
from tests.interpretation.untouched import assert_untouched, snapshot

NETWORKS = ["resnet18", "mobilenetv2_100", "efficientnet_lite0", "convnext_atto", "vgg11_bn", "densenet121"]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_timm_run_without_edits(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    before, seed = snapshot(model), torch.get_rng_state()
    routes = find_routes(model, x, mode="paper", steps=2)
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), seed)
    assert routes.kept.all()
    assert torch.equal(find_routes(model, x, mode="paper", steps=2).vector(), routes.vector())
    with torch.no_grad():
        plain = model(x)
    ones = {layer: torch.ones_like(g) for layer, g in routes.gates.items()}
    assert torch.equal(apply_routes(model, x, ones), plain)
    torch.testing.assert_close(routes.confidence, plain.softmax(1).amax(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sites", ["conv", "activation", "block"])
def test_the_kinds_of_sites_of_a_residual_network(sites):
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet18", num_classes=5).eval()
    plan = plan_sites(model, torch.randn(1, 3, 32, 32), sites)
    names = [site.name for site in plan.sites]
    if sites == "block":
        assert names == [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
        assert plan.widths == [64, 64, 128, 128, 256, 256, 512, 512]
        assert plan.prefix[-1] == "layer1.0"
    elif sites == "conv":
        assert len(names) == 20
        assert names[0] == "conv1"
        assert plan.total == 64 + 4 * 64 + 5 * 128 + 5 * 256 + 5 * 512
    else:
        assert len(names) == 17


def test_auto_takes_blocks_then_convolutions_but_activations_where_a_norm_comes_between(digits):
    timm = pytest.importorskip("timm")
    x = torch.randn(1, 3, 32, 32)
    assert plan_sites(timm.create_model("resnet18").eval(), x).kind == "block"
    assert plan_sites(timm.create_model("vgg11").eval(), x).kind == "conv"
    assert plan_sites(timm.create_model("vgg11_bn").eval(), x).kind == "activation"
    assert plan_sites(digits.model, digits.test_x).kind == "conv"


def test_tokens_have_their_channels_last():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2).eval()
    x = torch.randn(2, 3, 32, 32)
    plan = plan_sites(model, x)
    assert plan.kind == "block"
    assert [(s.width, s.axis, s.rank) for s in plan.sites] == [(192, 2, 3)] * 2
    routes = find_routes(model, x, mode="paper", steps=3)
    assert routes.kept.all()


def test_channels_last_activations_of_convnext_are_seen():
    timm = pytest.importorskip("timm")
    model = timm.create_model("convnext_atto", num_classes=3).eval()
    plan = plan_sites(model, torch.randn(1, 3, 64, 64), "activation")
    assert plan.sites[0].width == 160
    assert plan.sites[0].axis in (1, 3)


@pytest.mark.parametrize("sites", ["block", "activation", "conv"])
def test_signals_have_their_channels_first(sites):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU())

        def forward(self, x):
            return x + self.inner(x)

    model = nn.Sequential(nn.Conv1d(2, 6, 3), Block(), Block(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3))
    assert {(s.width, s.axis) for s in plan_sites(model.eval(), torch.randn(2, 2, 20), sites).sites} == {(6, 1)}


def test_gates_at_one_change_nothing_and_others_do_what_they_say(digits):
    x = digits.test_x[:5]
    plan = plan_sites(digits.model, x, "conv")
    gates = torch.rand(5, plan.total)
    with torch.no_grad():
        plain = digits.model(x)
        with GatedNetwork(digits.model, plan, x) as network:
            assert torch.equal(network.logits(torch.ones_like(gates)), plain)
            gated = network.logits(gates)
        for row in range(5):
            expected = gated_logits(digits.model, x[row : row + 1], gates[row].split(plan.widths))
            torch.testing.assert_close(gated[row : row + 1], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(digits.model(x), plain)


def test_the_gradient_by_the_gates_agrees_with_finite_differences(digits):
    model, x = digits.model.double(), digits.test_x[:2].double()
    plan = plan_sites(model, x, "conv")
    with GatedNetwork(model, plan, x) as network:
        p = network.logits().detach().softmax(1)

        def loss(gates):
            return -(p * network.logits(gates).log_softmax(1)).sum()

        gates = (torch.rand(2, plan.total, dtype=torch.float64) + 0.2).requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(gates), gates)
        for row, column in ((0, 0), (1, 7), (0, 30), (1, plan.total - 1)):
            step = torch.zeros_like(gates)
            step[row, column] = 1e-6
            numeric = (loss(gates + step) - loss(gates - step)) / 2e-6
            torch.testing.assert_close(slope[row, column], numeric, atol=1e-7, rtol=1e-5)
        ones = torch.ones(2, plan.total, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(ones), ones)
        assert slope.abs().max() < 1e-12  # q equals p at ones, so the cross-entropy is flat there


def test_an_exception_inside_the_network_leaves_no_hook_behind(digits):
    class Fails(nn.Module):
        calls = 0

        def forward(self, x):
            Fails.calls += 1
            if Fails.calls > 5:
                raise RuntimeError("broken on purpose")
            return x

    for limit in range(5):  # in the survey, in the prefix pass, in the first steps
        model = nn.Sequential(*copy.deepcopy(list(digits.model)), Fails()).eval()
        Fails.calls = 5 - limit
        before = snapshot(model)
        with pytest.raises((RuntimeError, InvalidArgument), match="on purpose"):
            find_routes(model, digits.test_x[:2])
        assert_untouched(model, before)


def test_interruption_by_the_user_leaves_no_hook_behind(digits):
    before = snapshot(digits.model)

    def stop(done, total, note):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_routes(digits.model, digits.test_x[:4], progress=stop, batch_size=2)
    assert_untouched(digits.model, before)


class Shared(nn.Module):
    """One activation used three times, one convolution twice, in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.act(self.stem(x))
        y = self.twice(x)
        x = x + self.act(y)
        x = self.act(self.twice(x))
        return self.head(x.mean((2, 3)))


def test_a_module_that_runs_twice_has_a_gate_for_each_call():
    model = Shared().eval()
    x = torch.rand(4, 1, 6, 6)
    routes = find_routes(model, x, sites="activation", mode="paper")
    assert routes.layers == ("act#0", "act#1", "act#2")
    plan = plan_sites(model, x, "conv")
    assert [s.name for s in plan.sites] == ["stem", "twice#0", "twice#1"]
    g = torch.rand(4, 18)
    with torch.no_grad():
        a, b, c = (part[:, :, None, None] for part in g.split(6, dim=1))
        h = (model.stem(x) * a).relu()
        h = h + (model.twice(h) * b).relu()
        expected = model.head((model.twice(h) * c).relu().mean((2, 3)))
        with GatedNetwork(model, plan, x) as network:
            for _ in range(3):  # the same answer from the stored prefix every time
                torch.testing.assert_close(network.logits(g), expected, atol=1e-6, rtol=1e-6)


def test_a_stored_prefix_that_the_network_overwrites_is_handed_out_as_a_copy():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x):
            shortcut = self.stem(x)
            y = self.conv(shortcut)
            shortcut += y
            return self.head(shortcut.mean((2, 3)))

    model, x = Overwrites().eval(), torch.rand(3, 1, 6, 6)
    plan = plan_sites(model, x, "conv", ["conv"])
    assert plan.prefix == ("stem", "conv")
    g = torch.rand(3, 4)
    with torch.no_grad():
        s = model.stem(x)
        expected = model.head((s + model.conv(s) * g[:, :, None, None]).mean((2, 3)))
        with GatedNetwork(model, plan, x) as network:
            for _ in range(3):
                torch.testing.assert_close(network.logits(g), expected, atol=1e-6, rtol=1e-6)


def test_the_prefix_is_computed_once(digits):
    counted = {"stem": 0, "later": 0}

    class Counting(nn.Conv2d):
        key = "later"

        def forward(self, x):
            counted[self.key] += 1
            return super().forward(x)

    model = digits.model
    for place, key in ((0, "stem"), (2, "later")):
        conv = Counting(model[place].in_channels, model[place].out_channels, 3, padding=1)
        conv.key = key
        model[place] = conv.eval()
    find_routes(model, digits.test_x[:4], mode="paper", steps=10, sites="conv")
    assert counted["stem"] == 2  # the survey and the pass that fills the store
    assert counted["later"] > 10


def test_wrappers_are_looked_through(digits):
    x = digits.test_x[:4]
    expected = find_routes(digits.model, x, mode="paper", steps=5).vector()
    parallel = nn.DataParallel(digits.model)
    assert torch.equal(find_routes(parallel, x, mode="paper", steps=5).vector(), expected)
    compiled = torch.compile(digits.model)
    assert torch.equal(find_routes(compiled, x, mode="paper", steps=5).vector(), expected)


def test_a_model_compiled_in_place_runs_eagerly_while_gated(digits):
    x = digits.test_x[:4]
    expected = find_routes(digits.model, x, mode="paper", steps=5).vector()
    model = copy.deepcopy(digits.model)
    model.compile(backend="eager")
    assert torch.equal(find_routes(model, x, mode="paper", steps=5).vector(), expected)


def test_a_distributed_wrapper_is_looked_through(digits, tmp_path):
    import torch.distributed as dist

    x = digits.test_x[:4]
    expected = find_routes(digits.model, x, mode="paper", steps=5).vector()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(digits.model)
        assert torch.equal(find_routes(wrapped, x, mode="paper", steps=5).vector(), expected)
    finally:
        dist.destroy_process_group()


def test_callers_contexts_do_not_matter(digits):
    x = digits.test_x[:3]
    expected = find_routes(digits.model, x, mode="paper", steps=5).vector()
    with torch.no_grad():
        assert torch.equal(find_routes(digits.model, x, mode="paper", steps=5).vector(), expected)
    with torch.inference_mode():
        assert torch.equal(find_routes(digits.model, x * 1, mode="paper", steps=5).vector(), expected)


def test_scripted_models_are_refused_by_name(digits):
    scripted = torch.jit.trace(digits.model, digits.test_x[:1])
    with pytest.raises(InvalidArgument, match="scripted"):
        find_routes(scripted, digits.test_x[:1])


def test_training_mode_and_batch_statistics_are_refused_by_name():
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(InvalidArgument, match=r"1 \(BatchNorm2d\) is in training mode"):
        find_routes(model, x)
    model.eval()
    norm.train()
    with pytest.raises(InvalidArgument, match="BatchNorm2d"):
        find_routes(model, x)
    model[1] = nn.BatchNorm2d(4, track_running_stats=False).eval()
    with pytest.raises(InvalidArgument, match="running statistics"):
        find_routes(model, x)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def test_functional_activations_are_refused_by_name_and_convolutions_still_work():
    model, x = Functional().eval(), torch.rand(2, 1, 8, 8)
    with pytest.raises(InvalidArgument, match="functional activation inside Functional"):
        find_routes(model, x, sites="activation")
    assert find_routes(model, x).layers == ("conv",)
    assert plan_sites(model, x).sites[0].rectified


def test_a_module_without_a_tensor_of_rows_is_refused_by_name():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pair, self.head = nn.Conv2d(1, 4, 3), Pair(), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.pair(self.conv(x))[0].mean((2, 3)))

    with pytest.raises(InvalidArgument, match="pair"):
        find_routes(Net().eval(), torch.rand(2, 1, 8, 8), layers=["pair"])


def test_layers_select_by_name_and_pattern_and_a_rule_by_function(digits):
    x = digits.test_x[:2]
    assert find_routes(digits.model, x, layers=["5", "2"], mode="paper", steps=1).layers == ("2", "5")
    assert find_routes(digits.model, x, sites="conv", layers=["[02]"], mode="paper", steps=1).layers == ("0", "2")
    rule = find_routes(
        digits.model, x, sites=lambda name, module: isinstance(module, nn.MaxPool2d), mode="paper", steps=1
    )
    assert rule.layers == ("4",)
