"""The result object: vectors, rows, files."""

import pytest
import torch

from convsmith.errors import InvalidArgument
from convsmith.interpretation import RouteFlags, Routes, find_routes


@pytest.fixture(scope="module")
def routes(_trained):
    return find_routes(_trained.model, _trained.test_x[:9], labels=_trained.test_y[:9], steps=60)


def test_vector_critical_and_sparsity_agree(routes):
    assert routes.layers == ("0", "2", "5")
    assert routes.vector().shape == (9, routes.total) == (9, 80)
    joined = torch.cat(list(routes.critical().values()), dim=1)
    assert torch.equal(joined, routes.vector() > 0)
    torch.testing.assert_close(routes.sparsity(), joined.float().mean(1))
    assert torch.equal(routes.vector(["5"]), routes.gates["5"])
    assert (routes.critical(0.5)["5"] == (routes.gates["5"] > 0.5)).all()
    with pytest.raises(InvalidArgument, match="no such layer"):
        routes.vector(["7"])


def test_rows_can_be_picked_and_joined_again(routes):
    again = Routes.concatenate([routes[:4], routes[4], routes[[5, 6]], routes[torch.tensor([7, 8])]])
    assert torch.equal(again.vector(), routes.vector())
    assert torch.equal(again.index, routes.index)
    assert torch.equal(again.flags.closed, routes.flags.closed)
    assert len(list(routes)) == 9
    mask = routes.labels == routes.labels[0]
    assert torch.equal(routes[mask].labels.unique(), routes.labels[:1])
    with pytest.raises(IndexError):
        routes[9]


def test_routes_of_other_settings_are_not_joined(routes, digits):
    other = find_routes(digits.model, digits.test_x[:2], gamma=0.01)
    with pytest.raises(InvalidArgument, match="settings"):
        Routes.concatenate([routes, other])
    with pytest.raises(InvalidArgument, match="nothing"):
        Routes.concatenate([])


def test_the_exact_file_gives_everything_back(routes, tmp_path):
    back = Routes.load(routes.save(tmp_path / "deep" / "r.safetensors"))
    assert torch.equal(back.vector(), routes.vector())
    for name in (
        "prediction",
        "confidence",
        "runner_up",
        "kept",
        "divergence",
        "objective",
        "passes",
        "converged",
        "index",
        "labels",
    ):
        assert torch.equal(getattr(back, name), getattr(routes, name)), name
    assert back.layers == routes.layers
    assert dict(back.settings) == dict(routes.settings)
    assert back.flags.closed_layers == routes.flags.closed_layers
    some = Routes.load(tmp_path / "deep" / "r.safetensors", rows=slice(2, 5))
    assert torch.equal(some.vector(), routes.vector()[2:5])
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(("storage", "error"), [("float16", 2e-3), ("uint8", 6e-3)])
def test_compact_files_keep_the_critical_nodes_exactly(routes, tmp_path, storage, error):
    path = routes.save(tmp_path / "r.safetensors", storage=storage)
    back = Routes.load(path)
    assert torch.equal(back.vector() > 0, routes.vector() > 0)
    assert torch.equal(back.sparsity(), routes.sparsity())
    torch.testing.assert_close(back.vector(), routes.vector(), atol=error * routes.vector().max().item(), rtol=0)
    assert path.stat().st_size < routes.save(tmp_path / "full.safetensors").stat().st_size


def test_other_files_are_refused(routes, tmp_path):
    with pytest.raises(InvalidArgument, match="no such"):
        Routes.load(tmp_path / "missing")
    with pytest.raises(InvalidArgument, match="no routes"):
        Routes.load(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"123")
    with pytest.raises(InvalidArgument, match="complete"):
        Routes.load(tmp_path / "x.safetensors")
    with pytest.raises(InvalidArgument, match="storage"):
        routes.save(tmp_path / "y", storage="int4")


def test_the_frame_has_one_row_per_image_and_one_column_per_node(routes):
    pytest.importorskip("pandas")
    frame = routes.to_frame()
    assert len(frame) == 9
    assert frame["5[3]"].tolist() == pytest.approx(routes.gates["5"][:, 3].tolist())
    assert frame["prediction"].tolist() == routes.prediction.tolist()


def test_flags_name_closed_layers_and_silent_nodes(digits):
    with torch.no_grad():
        digits.model[5].bias.zero_()
        digits.model[5].weight.zero_()  # every channel of the last convolution is silent: the classifier's bias decides
    routes = find_routes(digits.model, digits.test_x[:3])
    assert routes.flags.closed_layers == [["0", "2", "5"]] * 3
    assert "biases" in routes.messages(0)[0]
    paper = find_routes(digits.model, digits.test_x[:3], mode="paper", steps=10)
    assert (paper.flags.dead_share > 0.3).all()
    assert "silent" in " ".join(paper.messages(0))


def test_the_messages_of_an_image_look_at_that_image_alone(routes, monkeypatch):
    rows = []
    monkeypatch.setattr(RouteFlags, "open", property(lambda flags: rows.append(len(flags.closed)) or ~flags.closed))
    for row in range(len(routes)):
        routes.messages(row)
    assert rows == [1] * len(routes)
