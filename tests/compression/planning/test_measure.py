"""Sizes are counted, bytes are the file's, times are against the original in the same run."""

import copy
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convsmith.compression import compress, load_packed_state, packed_state
from convsmith.compression.planning import latency, measure
from convsmith.compression.planning.measure import (
    Latency,
    Size,
    compiled_networks,
    latencies,
    layer_errors,
    pinned_threads,
    size,
)
from convsmith.compression.planning.table import Accuracy, Comparison, Row
from convsmith.errors import InvalidArgument

IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network(Plain, settled):
    torch.manual_seed(0)
    return settled(Plain(), IMAGES)


def test_size_by_hand(network, tmp_path):
    counted = size(network, (1, 8, 8))
    assert counted.params == sum(p.numel() for p in network.parameters())
    save_file(packed_state(network), tmp_path / "x.safetensors")
    assert counted.bytes == (tmp_path / "x.safetensors").stat().st_size
    convs = 9 * 16 * 64 + 9 * 16 * 16 * 64 + 9 * 16 * 16 * 16
    assert counted.macs == convs + 16 * 5
    assert counted.nonzero_macs == counted.macs


def test_zeros_and_bits_shrink_the_file(network):
    whole = size(network, (1, 8, 8))
    sparse = size(compress(network, "sparse", example=IMAGES, sparsity=0.75), (1, 8, 8))
    assert sparse.nonzero < 0.3 * sparse.params
    assert sparse.nonzero_macs == pytest.approx(0.25 * whole.macs, rel=0.01)
    assert sparse.bytes < 0.5 * whole.bytes
    binary = size(compress(network, "binary", example=IMAGES, ends=True), (1, 8, 8))
    assert binary.bytes < 0.25 * whole.bytes
    int8 = size(compress(network, "int8", example=IMAGES), (1, 8, 8))
    assert int8.params == sum(p.numel() for n, p in network.named_parameters() if "bn" not in n) + 32
    assert int8.recipe > 1000


def test_what_is_stored_is_counted(network):
    made = compress(network, "ternary", example=IMAGES, ends=True)
    loaded = load_packed_state(copy.deepcopy(made), packed_state(made))
    counted = size(made, (1, 8, 8))
    assert counted == size(loaded, (1, 8, 8))
    assert counted.nonzero == sum(int(torch.count_nonzero(p)) for p in loaded.parameters()) < counted.params
    assert counted.nonzero_macs < counted.macs


def test_latencies_are_ratios_to_the_first(network, monkeypatch):
    """On a clock that only the network's own calls move: four calls take four times as long."""
    ticks = [0.0]
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: ticks[0]))
    moving = network.register_forward_hook(lambda *_: ticks.__setitem__(0, ticks[0] + 0.01))

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network

        def forward(self, x):
            for _ in range(3):
                self.net(x)
            return self.net(x)

    found = latencies({"original": network, "slow": Slow()}, IMAGES, batches=(1, 4), compiled=False, seconds=0.05)
    moving.remove()
    assert list(found["original"]) == ["eager 1", "eager 4"]
    assert found["original"]["eager 1"].ratio == 1
    for case in ("eager 1", "eager 4"):
        assert found["slow"][case].ratio == pytest.approx(4)
        one = found["slow"][case]
        assert one.low <= one.median <= one.high


def test_without_a_time_of_the_original_there_is_none_to_compare(network, monkeypatch):
    found = {"original": "did not compile: no", "folded": network, "other": "did not compile: never"}
    monkeypatch.setattr(measure, "compiled_networks", lambda *_: found)
    took = latencies(dict.fromkeys(found, network), IMAGES, batches=(1,), seconds=0)
    assert [row["compiled 1"] for row in took.values()] == [
        "did not compile: no",
        "not timed without the original, which did not compile: no",
        "did not compile: never",
    ]
    assert took["original"]["eager 1"].ratio == 1


@pytest.mark.parametrize(("changes", "word"), [({"batches": [0]}, "batches"), ({"seconds": -1}, "seconds")])
def test_nothing_to_time_is_refused(network, changes, word):
    with pytest.raises(InvalidArgument, match=word):
        latencies({"original": network}, IMAGES, compiled=False, **changes)
    for models, images in (({}, IMAGES), ({"original": network}, IMAGES[:0])):
        with pytest.raises(InvalidArgument, match="nothing to time"):
            latencies(models, images)


@pytest.mark.slow
def test_compiled_latencies_and_what_does_not_compile(network):
    found = latencies({"original": network}, IMAGES, batches=(1,), compiled=True, seconds=0.05)
    assert isinstance(found["original"]["compiled 1"], Latency)


def test_every_network_is_compiled_once_and_stays_compiled(Plain, monkeypatch):
    """Twelve networks of one class: more than torch keeps for one piece of code unless it is told to."""
    compiled = []

    def counting(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: real(model, backend=counting, **how))
    networks = {str(i): Plain(width=4 + i).eval() for i in range(12)}
    ready = compiled_networks(networks, IMAGES)
    assert len(compiled) == 12
    with torch.no_grad():
        for name, model in networks.items():
            torch.testing.assert_close(ready[name](IMAGES), model(IMAGES))
    assert len(compiled) == 12, "timing must not compile again"


def test_threads_are_pinned_and_put_back():
    before = torch.get_num_threads()
    with pinned_threads(1) as count:
        assert count == torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with pytest.raises(InvalidArgument), pinned_threads(0):
        pass


def test_layer_errors_name_layers_and_reasons(network):
    exact = layer_errors(network, network, IMAGES)
    assert set(exact.values()) == {0.0}
    assert set(exact) == {"conv1", "conv2", "conv3", "fc"}
    pruned = layer_errors(network, compress(network, "prune-filters", example=IMAGES, keep=0.5), IMAGES)
    assert "was (16, 8, 8)" in pruned["conv1"]
    assert pruned["fc"] > 0
    ternary = layer_errors(network, compress(network, "ternary", example=IMAGES), IMAGES)
    assert ternary["conv1"] == 0
    assert ternary["conv2"] > 0
    assert "operators" in str(layer_errors(network, compress(network, "int8", example=IMAGES), IMAGES))


def rows():
    base = Size(1000, 1000, 10_000, 10_000, 4000, 0)
    half = Size(500, 500, 5000, 5000, 2000, 100)
    holes = Size(1000, 300, 10_000, 3000, 1400, 100)

    def at(ms, ratio):
        return {"eager 1": Latency(ms, ms, ms, ratio)}

    return [
        Row("original", base, at(10.0, 1.0), Accuracy(0.99, 0.98, 1.0)),
        Row("half", half, at(11.0, 1.1), Accuracy(0.5, 0.4, 0.6), Accuracy(0.98, 0.97, 0.99)),
        Row("same", half, at(9.9, 0.99), Accuracy(0.97, 0.96, 0.98)),
        Row("holes", holes, at(10.0, 1.0), Accuracy(0.99, 0.98, 1.0)),
        Row("fast", half, at(5.0, 0.5), Accuracy(0.96, 0.95, 0.97)),
        Row("broken", half, {"eager 1": "did not compile: X"}, Accuracy(0.96, 0.95, 0.97)),
    ]


def test_table_says_where_macs_and_time_disagree():
    notes = "\n".join(Comparison(rows(), 1).notes())
    assert "half: 50% of the MACs, but the time is 1.10 times" in notes
    assert "same: 50% of the MACs, and no time gained (eager, 1 image)" in notes
    assert "holes: without multiplications by zero it needs 30%" in notes
    assert "broken, eager, 1 image: did not compile" in notes
    assert "fast" not in notes


def test_the_report_shows_sizes_and_times_apart():
    from convsmith.cli.reports.compression_stages import _parts

    size, times = _parts(Comparison(rows(), 1))
    assert size[0] == ["network", "params", "non-zero", "MACs", "file, kB", "accuracy, %", "fine-tuned, %"]
    assert times[0] == ["network", "eager, 1 image, ms (of original)"]
    assert times[1][1] == ["half", "11 (1.10)"]


def test_front_by_definition():
    table = Comparison(rows(), 1)
    assert table.front() == ["original", "same", "holes", "fast"]
    assert table.points()["half"] == (0.98, 11.0)
    assert "broken" not in table.points()


def test_text_and_json():
    table = Comparison(rows(), 1)
    text = table.text()
    assert "500 (50%)" in text
    assert "98.00 (97.0 to 99.0)" in text
    assert "11 (1.10)" in text
    assert table.to_json()["rows"][1]["latency"]["eager 1"]["ratio"] == 1.1
