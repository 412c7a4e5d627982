"""Who may import whom: the rooms of the house and the arrows between them."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "convsmith"
ROOT = {"arguments", "errors", "files", "offline", "registry", "version", "timm_hook"}
PILLARS = {"compression", "pooling", "interpretation", "adaptation"}
ALLOWED = {
    "inspection": ROOT,
    "data": ROOT,
    "training": ROOT | {"data", "inspection"},
    **{pillar: ROOT | {"inspection", "data", "training"} for pillar in PILLARS},
    "models": ROOT | PILLARS | {"inspection", "data"},
    "report": ROOT | PILLARS | {"inspection", "data", "training", "models"},
    "testing": ROOT | PILLARS | {"inspection", "data", "training", "models", "report"},
    "cli": ROOT | PILLARS | {"inspection", "data", "training", "models", "report"},
}


def imported_rooms(path):
    """Rooms of convsmith that a file imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} uses a relative import; write the full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "convsmith" and len(parts) > 1:
                yield parts[1], node.lineno


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_its_arrows_allow(room):
    for path in sorted((SOURCE / room).rglob("*.py")):
        for other, line in imported_rooms(path):
            known = other in ALLOWED or other in ROOT
            if known and other != room:
                assert other in ALLOWED[room], f"{path}:{line}: {room} may not import {other}"


def test_every_folder_is_a_known_room():
    folders = {p.name for p in SOURCE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(ALLOWED)


HEAVY = {"torch", "torchvision", "timm", "accelerate", "sklearn"}


def test_command_line_modules_import_torch_and_reports_only_inside_functions():
    reports = SOURCE / "cli" / "reports"  # these import what they need: nothing loads them before a verb runs
    for path in sorted({*(SOURCE / "cli").rglob("*.py")} - {*reports.rglob("*.py")}):
        for node in ast.parse(path.read_text()).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            heavy = [n for n in names if n.split(".")[0] in HEAVY or n.startswith("convsmith.cli.reports")]
            assert not heavy, f"{path}: {heavy} at module level; import it inside the command"
