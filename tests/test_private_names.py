"""Private names of other packages: at most five of torch's, each with its reason."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "convsmith"

#: torch's own private names that stay, and why there is no public one
TORCH = {
    "_subclasses": "FakeTensorMode: cost() counts without computing, on the operators that the device would run",
    "_python_dispatch": "TorchDispatchMode: the counter names what it does not know; FlopCounterMode is silent",
    "_version": "whether a tensor was written in place; values miss writes that change nothing yet",
    "_inductor": "config.freezing: dynamo reads it while it traces, before torch.compile's options are set",
    "_dynamo": "recompile_limit: networks of one class share one list of compiled versions",
}
#: other packages'
OTHERS = {
    "_shared_state": "accelerate keeps its singletons there and offers no way to put them back",
}


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_"


def trees(source):
    return {path: ast.parse(path.read_text()) for path in sorted(source.rglob("*.py"))}


def own_names(tree):
    """Names that a file defines: functions, classes, attributes, variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def used_names(tree):
    """Private names that a file takes from elsewhere, with their lines."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("convsmith"):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            names = [x.value for x in node.args[1:2] if isinstance(x, ast.Constant) and isinstance(x.value, str)]
        yield from ((name, node.lineno) for name in names if is_private(name))


def foreign(source):
    """Every private name of another package with the places that use it."""
    files = trees(source)
    own = {name for tree in files.values() for name in own_names(tree)}
    found = {}
    for path, tree in files.items():
        for name, line in used_names(tree):
            if name not in own and name != "_C":  # a namespace: what is taken from it stands in the list
                found.setdefault(name, []).append(f"{path.relative_to(source)}:{line}")
    return found


def test_private_names_of_other_packages_are_those_of_the_list():
    found = foreign(SOURCE)
    new = {name: places for name, places in found.items() if name not in {*TORCH, *OTHERS}}
    assert not new, "a private name of another package: use a public one"
    assert {name for name in (*TORCH, *OTHERS) if name not in found} == set(), "take it off the list"


def test_the_list_is_short():
    assert len(TORCH) <= 5


def test_the_search_sees_every_way_to_take_a_private_name(tmp_path):
    (tmp_path / "a.py").write_text(
        "import torch._one\nfrom torch._two import x\nfrom torch import _three\nimport torch\n"
        "torch._C._four()\ngetattr(torch, '_five')\nself._own = 1\nself._own\ndef _mine(): self._six[0] = 1\n_mine\n"
    )
    assert set(foreign(tmp_path)) == {"_one", "_two", "_three", "_four", "_five", "_six"}
