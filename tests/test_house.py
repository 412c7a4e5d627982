"""The shape of the house: no two files import each other, no room is crowded, no file is long."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
MOST_LINES, MOST_FILES = 350, 20
#: to be ended by the owners of these rooms; add nothing
CROWDED: dict[str, int] = {}


def modules(source):
    named = {}
    for path in source.rglob("*.py"):
        parts = path.relative_to(source).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imports(path, known):
    """Files of ``known`` that a file imports anywhere: inside functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name:
                yield name


def circles(graph):
    """Return the sets of nodes that reach each other, by following every path from every node."""
    reach = {}
    for start in graph:
        seen, todo = set(), list(graph[start])
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += graph[node]
        reach[start] = seen
    found = []
    for node in graph:
        circle = {other for other in reach[node] if node in reach[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def graph_of(source):
    known = modules(source)
    return {name: {other for other in imports(path, known) if other != name} for name, path in known.items()}


def test_no_two_files_import_each_other():
    assert circles(graph_of(SOURCE)) == []


def test_a_circle_is_found_through_functions_and_packages(tmp_path):
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").write_text("")
    (room / "a.py").write_text("def f():\n    from room import b\n")
    (room / "b.py").write_text("import room.c\n")
    (room / "c.py").write_text("from room.a import f\n")
    (room / "d.py").write_text("from room.a import f\n")
    assert circles(graph_of(tmp_path)) == [{"room.a", "room.b", "room.c"}]


def rooms():
    return sorted(p.parent for p in SOURCE.rglob("__init__.py"))


@pytest.mark.parametrize("room", [str(p.relative_to(SOURCE)) for p in rooms()])
def test_no_room_is_crowded(room):
    files = [p for p in (SOURCE / room).glob("*.py") if p.name != "__init__.py"]
    assert len(files) <= CROWDED.get(room, MOST_FILES)


def test_no_file_is_long():
    lines = {str(p.relative_to(SOURCE)): len(p.read_text().splitlines()) for p in SOURCE.rglob("*.py")}
    assert {name: n for name, n in lines.items() if n > MOST_LINES} == {}
