"""Completion scripts for bash and zsh, written from the verb table and the fields of each verb's arguments."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args, get_origin, get_type_hints

from convsmith.cli import main
from convsmith.cli.shell import options, settings
from convsmith.errors import InvalidArgument, close_matches

_BASH = """# convsmith completion for bash. Use it with:  eval "$(convsmith --completion bash)"
_convsmith() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" verb="${{COMP_WORDS[1]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{verbs} --help --version --completion" -- "$word")); return
  fi
  case "$verb:$before" in
{values}
    *:--config|*:--out|*:--checkpoint) COMPREPLY=($(compgen -f -- "$word")); return ;;
  esac
  case "$word" in -*) ;; *) COMPREPLY=($(compgen -f -- "$word")); return ;; esac
  case "$verb" in
{flags}
  esac
}}
complete -o filenames -F _convsmith convsmith"""


def script(shell: str) -> str:
    """Return the completion script for ``shell``; zsh runs the bash one through its bashcompinit."""
    if shell not in ("bash", "zsh"):
        raise InvalidArgument(
            "completion exists for bash and zsh",
            argument="--completion SHELL",
            given=repr(shell),
            hint=close_matches(shell, ("bash", "zsh")),
        )
    program = main.Program()
    values, flags = [], []
    for verb in program.verbs():
        arguments = program.load(verb).Arguments
        flags.append(f'    {verb}) COMPREPLY=($(compgen -W "{_words(options.flags(arguments))} -h" -- "$word")) ;;')
        for name, choices in _choices(verb, arguments).items():
            flag = name.replace("_", "-")
            values.append(f'    {verb}:--{flag}) COMPREPLY=($(compgen -W "{_words(choices)}" -- "$word")); return ;;')
    body = _BASH.format(verbs=_words(list(program.verbs())), values="\n".join(values), flags="\n".join(flags))
    if shell == "bash":
        return body
    opening = '# convsmith completion for zsh. Use it with:  eval "$(convsmith --completion zsh)"'
    return "\n".join([opening, "autoload -Uz bashcompinit && bashcompinit", *body.splitlines()[1:]])


def _words(words: list[str]) -> str:
    return " ".join(words)


def _choices(verb: str, arguments: type[options.Listing]) -> dict[str, list[str]]:
    """Return the fields whose values can be listed: literals and presets."""
    found: dict[str, list[str]] = {}
    hints = get_type_hints(arguments)
    for field in dataclasses.fields(arguments):
        if get_origin(hints[field.name]) is Literal:
            found[field.name] = [str(choice) for choice in get_args(hints[field.name])]
    if "preset" in hints:
        found["preset"] = list(settings.presets(verb))
    return {name: choices for name, choices in found.items() if choices}
