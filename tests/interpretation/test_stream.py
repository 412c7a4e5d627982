"""Routes of a loader: the same numbers as in one go, resumable, shared among processes, memory bounded by the batch."""

import pytest
import torch

from convsmith.data.batch import Batch
from convsmith.errors import InvalidArgument
from convsmith.interpretation import Routes, RouteSettings, find_routes, find_routes_from_loader, iterate_routes

SETTINGS = RouteSettings(steps=15)


def batches(digits, size=7, count=30):
    for rows in torch.arange(count).split(size):
        yield Batch(digits.test_x[rows], digits.test_y[rows], rows + 1000)


def test_files_of_batches_hold_what_one_call_finds(digits, tmp_path):
    folder = find_routes_from_loader(digits.model, batches(digits), tmp_path, settings=SETTINGS, storage="float32")
    whole = Routes.load(folder)
    expected = find_routes(digits.model, digits.test_x[:30], steps=15, batch_size=7)
    assert torch.equal(whole.vector(), expected.vector())
    assert whole.index.tolist() == list(range(1000, 1030))
    assert torch.equal(whole.labels, digits.test_y[:30])
    assert [len(part) for part in iterate_routes(folder)] == [7, 7, 7, 7, 2]
    assert torch.equal(Routes.load(folder, rows=slice(3, 9)).vector(), expected.vector()[3:9])


def test_uniform_starts_are_those_of_one_call(digits, tmp_path):
    model, x = digits.model.double(), digits.test_x[:7].double()
    settings = RouteSettings(init="uniform", seed=3, steps=10)
    folder = find_routes_from_loader(model, x.split(3), tmp_path / "r", settings=settings, storage="float32")
    whole = find_routes(model, x, init="uniform", seed=3, steps=10)
    torch.testing.assert_close(Routes.load(folder).vector(), whole.vector(), atol=1e-7, rtol=0)


def test_a_stopped_run_goes_on_and_does_not_repeat(digits, tmp_path):
    seen = []

    def stop(done, total, note):
        seen.append(done)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_routes_from_loader(digits.model, batches(digits), tmp_path, settings=SETTINGS, progress=stop)
    assert len(list(tmp_path.glob("routes-*.safetensors"))) == 2
    stamps = {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("routes-*.safetensors")}
    more = []
    find_routes_from_loader(
        digits.model, batches(digits), tmp_path, settings=SETTINGS, progress=lambda done, total, note: more.append(done)
    )
    assert more == [21, 28, 30]
    for name, stamp in stamps.items():
        assert (tmp_path / name).stat().st_mtime_ns == stamp
    assert len(Routes.load(tmp_path)) == 30
    with pytest.raises(InvalidArgument, match="other settings"):
        find_routes_from_loader(digits.model, batches(digits), tmp_path, settings=RouteSettings(steps=16))


def test_processes_share_the_batches(digits, tmp_path):
    for rank in range(3):
        find_routes_from_loader(
            digits.model, batches(digits), tmp_path, settings=SETTINGS, storage="float32", rank=rank, world=3
        )
    alone = find_routes_from_loader(
        digits.model, batches(digits), tmp_path / "alone", settings=SETTINGS, storage="float32"
    )
    assert torch.equal(Routes.load(tmp_path).vector(), Routes.load(alone).vector())


def test_torchruns_environment_is_read(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    find_routes_from_loader(digits.model, batches(digits), tmp_path, settings=SETTINGS)
    assert sorted(f.name for f in tmp_path.glob("routes-*")) == [
        "routes-000001.safetensors",
        "routes-000003.safetensors",
    ]


def test_pairs_and_plain_tensors_are_batches(digits, tmp_path):
    pairs = [(digits.test_x[:4], digits.test_y[:4]), (digits.test_x[4:8], digits.test_y[4:8])]
    find_routes_from_loader(digits.model, pairs, tmp_path / "a", settings=SETTINGS)
    found = Routes.load(tmp_path / "a")
    assert len(found) == 8
    assert torch.equal(found.labels, digits.test_y[:8])
    find_routes_from_loader(digits.model, [digits.test_x[:3]], tmp_path / "b", settings=SETTINGS)
    assert (Routes.load(tmp_path / "b").labels == -1).all()
    with pytest.raises(InvalidArgument, match="batch"):
        find_routes_from_loader(digits.model, ["x"], tmp_path / "c")
    with pytest.raises(InvalidArgument, match="rank"):
        find_routes_from_loader(digits.model, [], tmp_path / "d", rank=2, world=2)


def test_a_finished_file_is_known_by_its_image_numbers_without_reading_its_gates(digits, tmp_path, monkeypatch):
    find_routes_from_loader(digits.model, batches(digits), tmp_path, settings=SETTINGS)
    monkeypatch.setattr(Routes, "load", None)
    find_routes_from_loader(digits.model, batches(digits), tmp_path, settings=SETTINGS)
    with pytest.raises(InvalidArgument, match="other batches"):
        find_routes_from_loader(digits.model, batches(digits, size=5), tmp_path, settings=SETTINGS)


def test_a_folder_of_another_network_is_refused(digits, tmp_path):
    find_routes_from_loader(digits.model, batches(digits, count=7), tmp_path, settings=SETTINGS)
    digits.model[0].weight.data.mul_(1.01)
    with pytest.raises(InvalidArgument, match="another network"):
        find_routes_from_loader(digits.model, batches(digits, count=7), tmp_path, settings=SETTINGS)
