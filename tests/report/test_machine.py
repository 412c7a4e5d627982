"""The conditions beside a number are those of convsmith and of this machine."""

import subprocess

from convsmith.report import machine


def git(folder, *words):
    settings = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *settings, *words], cwd=folder, check=True, capture_output=True)


def test_an_installed_copy_inside_somebodys_checkout_has_no_commit(tmp_path, monkeypatch):
    """Regression: a virtual environment in a project gave the project's commit as convsmith's."""
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "x")
    source = tmp_path / "venv" / "machine.py"
    source.parent.mkdir()
    source.write_text("")
    monkeypatch.setattr(machine, "__file__", str(source))
    assert machine.commit() == "unknown"
    assert machine.commit(tmp_path) != "unknown"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "y")
    assert machine.commit() == machine.commit(tmp_path)
