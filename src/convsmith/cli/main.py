"""The ``convsmith`` command: finds the verb, runs it, and turns every ending into a message and an exit code.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted. Neither ``--help`` nor a typo loads torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from convsmith import __version__
from convsmith.errors import ConvsmithError, InvalidArgument, close_matches

#: verb, what it does; the module is ``convsmith.cli.<verb>``. Listed in ``--help`` when the module exists.
VERBS: Mapping[str, str] = {
    "demo": "run everything once on real digits and write a report",
    "train": "train a classifier, with second-order pooling if asked",
    "evaluate": "measure a trained model: accuracy, calibration, intervals",
    "compress": "make a network smaller: interleave, low rank, prune, quantise",
    "plan": "show which interleaved structure fits a budget",
    "explain": "find the channels that carried each prediction",
    "detect": "tell adversarial inputs from clean ones by their routes",
    "adapt": "carry a labelled source over to an unlabelled target",
    "bench": "time ours against plain and published algorithms",
    "study": "check one claim of the papers and write the verdict",
    "export": "write a network for deployment and check its numbers",
    "report": "build one HTML page from run folders",
    "models": "list networks by name",
    "methods": "list every pooling, compressor, adapter, validator, attack",
    "data": "list data sets, or describe one",
    "init": "write an editable settings file",
    "doctor": "show versions and devices, test them with --deep",
}

USAGE = """usage: convsmith VERB [options]
       convsmith VERB -h            flags and examples of one verb

{verbs}

  --version                         print the version
  --debug                           show tracebacks of errors
  --completion bash|zsh             print a completion script for your shell

examples:
{examples}

MODEL is a timm name, a run folder or a weights file. DATA is digits, mnist-5k, fashion-mnist,
imagefolder:PATH, torchvision:NAME or hf:NAME.
Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted with the state saved."""

_SHOWN = (
    ("demo", "convsmith demo"),
    ("train", "convsmith train --model cs_resnet20 --data digits --epochs 20 --out runs/first"),
    ("evaluate", "convsmith evaluate --checkpoint runs/first --data digits"),
    ("report", "convsmith report runs/first"),
)


def verbs() -> dict[str, str]:
    """Return the verbs that exist, in the order of the table, with their summaries."""
    return {v: text for v, text in VERBS.items() if importlib.util.find_spec(f"convsmith.cli.{v}") is not None}


def usage() -> str:
    """Return what ``convsmith --help`` prints."""
    there = verbs()
    width = max(len(verb) for verb in there)
    lines = [f"  {verb:<{width}}  {text}" for verb, text in there.items()]
    shown = [f"  {command}" for verb, command in _SHOWN if verb in there]
    return USAGE.format(verbs="\n".join(lines), examples="\n".join(shown))


def load(verb: str) -> Any:
    """Import the module of a verb, or raise `InvalidArgument` with the close ones."""
    there = verbs()
    if verb not in there:
        raise InvalidArgument(
            "convsmith has no verb of this name", asked="verb", given=repr(verb), mend=close_matches(verb, there)
        )
    return importlib.import_module(f"convsmith.cli.{verb}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--debug"]:
        words = [*words[1:], "--debug"]
    try:
        return _dispatch(words)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if code and "--json" in words:
            _last_line(words, "wrong flags, see stderr", code)
        return code
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


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words:
        print(usage(), file=sys.stderr)
        return 2
    first, rest = words[0], words[1:]
    if first in ("-h", "--help"):
        print(usage())
        return 0
    if first in ("-V", "--version"):
        print(f"convsmith {__version__}")
        return 0
    if first == "--completion" or first.startswith("--completion="):
        from convsmith.cli import completion

        shell = first.partition("=")[2] or (rest[0] if rest else "")
        print(completion.script(shell))
        return 0
    if first.startswith("-"):
        raise InvalidArgument(
            "the verb comes first", asked="convsmith VERB [options]", given=first, mend="convsmith --help lists verbs"
        )
    return _run(first, load(first), rest)


def _run(verb: str, module: Any, rest: list[str]) -> int:
    from convsmith.cli import environment, options

    environment.COMMAND.set((verb, *rest))
    try:
        arguments = options.parse(verb, module.Arguments, rest)
    except SystemExit as ended:
        if not ended.code:
            print("examples:", *(f"  convsmith {line}" for line in module.EXAMPLES), sep="\n")
        raise
    summary = module.run(arguments)
    if arguments.json:
        import json

        print(json.dumps({"verb": verb, "exit_code": 0, **(summary or {})}, allow_nan=False))
    sys.stdout.flush()
    return 0


def _complain(words: Sequence[str], kind: str, text: str, *, code: int) -> None:
    """Say on stderr what went wrong; with ``--json`` also as the last line of stdout."""
    from convsmith.cli import terminal

    terminal.complain(kind, text)
    if "--json" in words:
        _last_line(words, text, code)


def _last_line(words: Sequence[str], text: str, code: int) -> None:
    import json

    print(json.dumps({"verb": words[0], "exit_code": code, "error": text}))


def _explained(error: Exception) -> tuple[str, int]:
    """Return the message and the exit code of an error."""
    if isinstance(error, ConvsmithError):
        return str(error), error.exit_code
    line = " ".join(str(error).split())[:300]
    if isinstance(error, OSError):
        return f"the system refused: {line}", 1
    if type(error).__name__ == "OutOfMemoryError":
        return f"the device is out of memory\n  given: {line}\n  mend:  a smaller --batch-size or image size", 1
    text = f"this is a bug in convsmith: {type(error).__name__}: {line}"
    return f"{text}\n  mend:  report it with the output of --debug", 1


if __name__ == "__main__":
    sys.exit(main())
