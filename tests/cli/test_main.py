"""The dispatcher: light help, exactly the verbs that exist, close matches, exit codes, one message for every ending."""

import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import convsmith
from convsmith.cli import main
from convsmith.cli.shell import options
from convsmith.errors import InvalidArgument, RunFailed

SOURCE = Path(__file__).parents[2] / "src"


def python(*words, cwd=None):
    environment = {"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, cwd=cwd, check=False, timeout=120
    )


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["trian"], ["--completion", "bash"]])
def test_no_heavy_module_is_imported_without_a_verb(words):
    code = (
        "import sys; from convsmith.cli.main import main; code = main(sys.argv[1:]);"
        "heavy = sorted({'torch', 'timm', 'numpy', 'torchvision', 'sklearn', 'accelerate'} & set(sys.modules));"
        "print('MODULES', len(sys.modules), heavy, code)"
    )
    done = python("-c", code, *words)
    last = done.stdout.splitlines()[-1].split(" ", 2)
    assert last[0] == "MODULES", done.stderr
    assert last[2].startswith("[] "), done.stdout
    assert int(last[1]) < 400


def test_help_lists_exactly_the_verbs_whose_module_exists(capsys):
    assert main.main(["--help"]) == 0
    text = capsys.readouterr().out
    listed = {line.split()[0] for line in text.split("\n\n")[1].splitlines()}
    folder = Path(main.__file__).parent / "verbs"
    assert listed == {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert listed == set(main.Program().verbs())
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize("verb", list(main.Program().verbs()))
def test_a_verb_imports_nothing_heavy_and_offers_help_with_examples_that_parse(verb, capsys):
    module = importlib.import_module(f"convsmith.cli.verbs.{verb}")
    assert main.main([verb, "-h"]) == 0
    text = capsys.readouterr().out
    assert text.rstrip().endswith("\n".join(f"  convsmith {line}" for line in module.EXAMPLES))
    assert len(module.EXAMPLES) >= 2
    for line in module.EXAMPLES:
        words = shlex.split(line)
        assert words[0] == verb
        if "--config" not in words and "--resume" not in words:
            assert isinstance(options.parse(verb, module.Arguments, words[1:]), module.Arguments)


def test_every_verb_module_loads_without_torch():
    code = (
        "import sys; from convsmith.cli import main;"
        "[main.Program().load(v).Arguments for v in main.Program().verbs()]; import tyro;"
        "print(sorted({'torch', 'timm', 'numpy', 'sklearn'} & set(sys.modules)))"
    )
    assert python("-c", code).stdout.strip() == "[]"


def test_every_field_of_every_verb_has_help_text():
    for verb in main.Program().verbs():
        for name, field in main.Program().load(verb).Arguments.__dataclass_fields__.items():
            assert field.metadata.get("help"), f"{verb}: {name} is not made with option(default, help)"


def test_version_and_no_words_and_help_of_a_verb(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"convsmith {convsmith.__version__}"
    assert main.main([]) == 2
    assert "usage: convsmith VERB" in capsys.readouterr().err
    assert main.main(["help", "doctor"]) == 0
    assert "convsmith doctor --deep" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["docter"], "did you mean 'doctor'"),
        (["xyzzy"], "known: "),
        (["--quiet", "doctor"], "the verb comes first"),
        (["--completion", "fish"], "bash and zsh"),
    ],
)
def test_a_wrong_word_is_exit_2_with_one_clear_message(words, said, capsys):
    assert main.main(words) == 2
    heard = capsys.readouterr()
    assert said in heard.err
    assert heard.out == ""
    assert len(heard.err.splitlines()) <= 6


def test_an_unknown_flag_is_exit_2_and_offers_the_close_one(capsys):
    assert main.main(["doctor", "--dep"]) == 2
    assert "--deep" in capsys.readouterr().err


class Verb:
    """A module of a verb that ends as it is told."""

    EXAMPLES = ("doctor",)

    class Arguments(options.Listing):
        """Nothing."""

    def __init__(self, ending):
        self.ending = ending

    def run(self, arguments):
        if self.ending is not None:
            raise self.ending
        return {"answer": 42}


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        (
            InvalidArgument("rule broke", argument="x", given=3, hint="do y"),
            2,
            "error: rule broke\n  argument: x\n  given:",
        ),
        (RunFailed("it broke"), 1, "error: it broke"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            KeyError("k"),
            1,
            "this is a bug in convsmith: KeyError: 'k'\n  hint:     report it with the output of --debug",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "error: the device is out of memory"),
        (MemoryError(), 1, "error: the device is out of memory"),
        (PermissionError(13, "Permission denied", "/x"), 1, "the system refused: [Errno 13] Permission denied: '/x'"),
    ],
)
def test_every_ending_has_a_message_and_a_code(ending, code, said, capsys, monkeypatch):
    monkeypatch.setattr(main.Program, "load", lambda self, verb: Verb(ending))
    assert main.main(["doctor", "--json"]) == code
    heard = capsys.readouterr()
    assert said in heard.err
    assert "Traceback" not in heard.err
    last = json.loads(heard.out.splitlines()[-1])
    assert last["exit_code"] == code
    assert last["verb"] == "doctor"
    assert last["error"]


def test_debug_shows_the_traceback_before_or_after_the_verb(capsys, monkeypatch):
    monkeypatch.setattr(main.Program, "load", lambda self, verb: Verb(InvalidArgument("rule broke")))
    for words in (["--debug", "doctor"], ["doctor", "--debug"]):
        assert main.main(words) == 2
        heard = capsys.readouterr().err
        assert "Traceback" in heard
        assert "error: rule broke" in heard


def test_json_summary_is_the_last_line(capsys, monkeypatch):
    monkeypatch.setattr(main.Program, "load", lambda self, verb: Verb(None))
    assert main.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"verb": "doctor", "exit_code": 0, "answer": 42}


def test_python_m_convsmith_works(tmp_path):
    done = python("-m", "convsmith", "initt", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'init'" in done.stderr
    assert "Traceback" not in done.stderr


def test_completion_scripts_know_verbs_and_flags(capsys):
    assert main.main(["--completion", "bash"]) == 0
    script = capsys.readouterr().out
    for words, wanted in (("doc", "doctor"), ("doctor --de", "--debug --deep"), ("train --schedule ''", "cosine step")):
        complete = (
            f"COMP_WORDS=(convsmith {words}); COMP_CWORD={len(words.split())}; _tyro_convsmith; echo ${{COMPREPLY[@]}}"
        )
        done = subprocess.run(["bash", "-c", f"{script}\n{complete}"], capture_output=True, text=True, check=True)
        assert set(wanted.split()) <= set(done.stdout.split()), words
    assert main.main(["--completion=zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef convsmith")
    # read by eval it called itself outside of completion: a traceback at every start of a shell, and no completion
    assert script.splitlines()[-1].endswith("; else compdef _tyro_convsmith convsmith; fi")


@pytest.mark.parametrize("verb", list(main.Program().verbs()))
def test_common_flags_of_a_verb_fit_two_screens_and_all_flags_are_in_the_long_help(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main.main([verb, "-h"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 84
    assert "examples:" in short
    assert main.main([verb, "--help"]) == 0
    full = capsys.readouterr().out
    for name, field in main.Program().load(verb).Arguments.__dataclass_fields__.items():
        if not field.metadata["positional"]:
            assert f"--{name.replace('_', '-')}" in full, name


def test_a_verb_that_takes_a_network_takes_its_weights():
    fields = {verb: main.Program().load(verb).Arguments.__dataclass_fields__ for verb in main.Program().verbs()}
    takes = {verb for verb, own in fields.items() if "model" in own}
    assert {"compress", "detect", "evaluate", "explain", "export", "predict", "train"} <= takes
    assert {verb for verb in takes if "weights" not in fields[verb]} == set()


def test_several_processes_explain_with_save_alone(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main.main(["explain", "runs/first", "--data", "digits"]) == 2
    assert "add --save FILE" in capsys.readouterr().err


@pytest.mark.parametrize("verb", list(main.Program().verbs()))
def test_several_processes_divide_the_work_or_are_refused(verb, monkeypatch, capsys):
    module = importlib.import_module(f"convsmith.cli.verbs.{verb}")
    ran = []
    monkeypatch.setattr(module, "run", ran.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = shlex.split(next(line for line in module.EXAMPLES if "--config" not in line))
    code = main.main(words)
    if verb in ("train", "adapt", "evaluate", "predict", "explain"):
        assert (code, len(ran)) == (0, 1)
    else:
        assert (code, ran) == (2, [])
        assert "2 processes of a launcher" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["methods"], ["--version"]])
def test_a_reader_that_goes_away_ends_quietly(words):
    """As ``convsmith methods | head -1``, where the pipe is closed before anything was written."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "convsmith", *words], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
