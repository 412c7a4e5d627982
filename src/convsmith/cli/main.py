"""The ``convsmith`` command: finds the verb, runs it, and turns every ending into a message and an exit code.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted. Neither ``--help`` nor a typo loads torch.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import itertools
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convsmith import __version__
from convsmith.errors import ConvsmithError, InvalidArgument, close_matches

#: how ``--help`` sorts the verbs; a verb is any file of ``cli/verbs``, and one that is not named here comes last
ORDER = (
    "audit", "demo", "train", "evaluate", "predict", "compress", "structures", "explain", "detect", "adapt",
    "export", "report", "models", "methods", "data", "init", "doctor",
)  # fmt: skip

USAGE = """usage: convsmith VERB [options]
       convsmith VERB -h            common flags and examples of one verb; --help shows all flags

{verbs}

  --version                         print the version
  --debug                           show tracebacks of errors
  --completion bash|zsh             print a completion script for your shell

examples:
  convsmith demo
  convsmith train --model cs_resnet20 --data digits --epochs 20 --out runs/first
  convsmith evaluate --checkpoint runs/first --data digits
  convsmith report runs/first

MODEL is a timm name, a run folder, a weights file or package.module:factory. DATA is a folder (of class
folders or loose images), digits, mnist-5k, imagefolder:PATH, hf:NAME or another name of `convsmith data`.
Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted with the state saved."""


@dataclass(frozen=True)
class Program:
    """A command with verbs: its name, the package whose files are the verbs, and what ``--help`` prints around them."""

    name: str = "convsmith"
    package: str = "convsmith.cli.verbs"
    usage: str = USAGE
    order: tuple[str, ...] = ORDER

    def verbs(self) -> dict[str, str]:
        """Return every verb with the first line of its file, read without importing it."""
        folder = Path(importlib.import_module(self.package).__path__[0])
        names = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
        names.sort(key=lambda name: (self.order.index(name) if name in self.order else len(self.order), name))
        return {name: _summary(folder / f"{name}.py") for name in names}

    def help(self) -> str:
        """Return what ``--help`` prints."""
        there = self.verbs()
        width = max(len(verb) for verb in there)
        lines = [f"  {verb:<{width}}  {text}" for verb, text in there.items()]
        return self.usage.format(verbs="\n".join(lines))

    def load(self, verb: str) -> Any:
        """Import the module of a verb, or raise `InvalidArgument` with the close ones."""
        there = self.verbs()
        if verb not in there:
            rule = f"{self.name} has no verb of this name"
            raise InvalidArgument(rule, argument="VERB", given=repr(verb), hint=close_matches(verb, there))
        return importlib.import_module(f"{self.package}.{verb}")


def _summary(path: Path) -> str:
    """Return the first line of a verb's docstring without the command it starts with."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0].partition(": ")[2].rstrip(".") if text else ""


def main(argv: Sequence[str] | None = None, program: Program | None = None) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    from convsmith.cli.shell import terminal

    terminal.open_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--debug"]:
        words = [*words[1:], "--debug"]
    try:
        return _dispatch(words, program or Program())
    except KeyboardInterrupt as stopped:
        _complain(words, "interrupted", str(stopped), code=130)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001  (the outermost frame: whatever is left is our mistake)
        if "--debug" in words:
            traceback.print_exc()
        text, code = _explained(error)
        _complain(words, "error", text, code=code)
        return code


def _dispatch(words: list[str], program: Program) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words:
        print(program.help(), file=sys.stderr)
        return 2
    first, rest = words[0], words[1:]
    if first in ("-h", "--help"):
        print(program.help())
        return 0
    if first in ("-V", "--version"):
        print(f"{program.name} {__version__}")
        return 0
    if first == "--completion" or first.startswith("--completion="):
        from convsmith.cli.shell import options

        shell = first.partition("=")[2] or (rest[0] if rest else "")
        forms = {verb: program.load(verb).Arguments for verb in program.verbs()}
        print(options.completion(program.name, forms, shell))
        return 0
    if first.startswith("-"):
        hint = f"{program.name} --help lists verbs"
        raise InvalidArgument("the verb comes first", argument=f"{program.name} VERB [options]", given=first, hint=hint)
    return _run(program, first, program.load(first), rest)


def _run(program: Program, verb: str, module: Any, rest: list[str]) -> int:
    from convsmith.cli.shell import environment, flags, options

    asked = list(itertools.takewhile(lambda word: word != "--", rest))
    if "-h" in asked or "--help" in asked:
        options.show_help(module.Arguments, prog=f"{program.name} {verb}", full="-h" not in asked)
        print("examples:", *(f"  {program.name} {line}" for line in module.EXAMPLES), sep="\n")
        return 0
    environment.COMMAND.set((verb, *rest))
    arguments = options.parse(verb, module.Arguments, rest, program.name)
    from convsmith.cli.shell import run_folder, terminal

    if (world := terminal.processes()) > 1 and not getattr(module, "SHARES_WORK", False):
        rule = "every process would do all of the work and write the same files"
        given, hint = f"{world} processes of a launcher", "start it once, without torchrun or accelerate launch"
        raise InvalidArgument(rule, argument=f"{program.name} {verb}", given=given, hint=hint)
    try:
        with run_folder.closing(verb, arguments):
            summary = module.run(arguments)
    except ConvsmithError as error:
        flags.name_flags(error, arguments)
        raise
    if arguments.json and terminal.is_main_process():
        import json

        terminal.write(sys.stdout, json.dumps({"verb": verb, "exit_code": 0, **(summary or {})}, allow_nan=False))
    sys.stdout.flush()
    return 0


def _complain(words: Sequence[str], kind: str, text: str, *, code: int) -> None:
    """Say on stderr what went wrong; with ``--json`` also as the last line of stdout."""
    import json

    from convsmith.cli.shell import terminal

    terminal.complain(kind, text, everywhere=code == 1)
    if "--json" in words:
        with contextlib.suppress(OSError):  # stdout itself may be what is full
            terminal.write(sys.stdout, json.dumps({"verb": words[0], "exit_code": code, "error": text or kind}))


def _explained(error: Exception) -> tuple[str, int]:
    """Return the message and the exit code of an error."""
    if isinstance(error, ConvsmithError):
        return str(error), error.exit_code
    line = " ".join(str(error).split())[:300]
    if isinstance(error, OSError):
        return f"the system refused: {line}", 1
    if "No space left on device" in line or "PytorchStreamWriter failed writing" in line or "I/O error" in line:
        hint = "make room or permit writing; what was saved before is kept, and --resume goes on from it"
        return f"the disk refused\n  given:    {line}\n  hint:     {hint}", 1
    if type(error).__name__ == "OutOfMemoryError" or "allocate memory" in line or isinstance(error, MemoryError):
        return f"the device is out of memory\n  given:    {line}\n  hint:     a smaller --batch-size or image size", 1
    text = f"this is a bug in convsmith: {type(error).__name__}: {line}"
    return f"{text}\n  hint:     report it with the output of --debug", 1


if __name__ == "__main__":
    sys.exit(main())
