"""The listing knows without loading."""

import subprocess
import sys
from pathlib import Path

import pytest

from convsmith.data import available, load, summaries, summary
from convsmith.errors import InvalidArgument
from tests.data_room.test_embedded import write_four


@pytest.mark.parametrize("spec", ["digits", "mnist-5k"])
def test_what_it_says_is_what_loading_gives(spec):
    told, data = summary(spec), load(spec)
    assert told.missing == ""
    assert told.classes == len(data.classes)
    assert told.size == data.description.size
    assert told.channels == data.description.channels
    assert told.count == sum(data.description.counts.values())


def test_one_line_for_everything_available():
    lines = summaries()
    assert [line.spec for line in lines] == available()
    assert all(line.source for line in lines)
    assert {line.spec: line.extra for line in lines if line.extra} == {"mnist-5k": "demo", "hf:NAME": "hub"}
    assert {line.spec for line in lines if not line.missing} >= {"digits", "mnist-5k"}


def test_missing_packages_and_files_are_told(tmp_path, monkeypatch):
    from convsmith.data import embedded, listing

    write_four(tmp_path / "here")
    assert summary("fashion-mnist", root=tmp_path / "here").missing == ""
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(embedded, "SYSTEM_PLACES", ())
    told = summary("fashion-mnist", root=tmp_path / "empty")
    assert "download" in told.missing
    monkeypatch.setattr(listing, "_PACKAGES", {"demo": "no_such_package", "hub": "datasets"})
    assert summary("mnist-5k").missing == 'pip install "convsmith[demo]"'


def test_torchvision_sets_on_disk_or_not(tmp_path):
    write_four(tmp_path / "KMNIST" / "raw")
    assert summary("torchvision:KMNIST", root=tmp_path).missing == ""
    assert "download" in summary("torchvision:MNIST", root=tmp_path).missing
    assert "a name torchvision knows" in summary("torchvision:Kmnist", root=tmp_path).missing


def test_unknown_names_and_paths():
    with pytest.raises(InvalidArgument, match="did you mean"):
        summary("digit")
    with pytest.raises(InvalidArgument, match="does not exist"):
        summary("imagefolder:/nowhere/at/all")


def test_importing_the_room_is_silent_and_loads_no_optional_package():
    code = (
        "import sys, convsmith.data as d; d.available();"
        "heavy = {'sklearn', 'mlxtend', 'datasets', 'torchvision', 'timm'} & set(sys.modules); assert not heavy, heavy"
    )
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": source, "PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
