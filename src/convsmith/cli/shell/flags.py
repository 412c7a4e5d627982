"""Words of a command line against the fields of its verb: each mistake is one error that names the flag."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from convsmith.cli.shell import settings
from convsmith.errors import ConvsmithError, InvalidArgument, close_matches

#: what other tools call a flag of ours
ELSEWHERE = {
    "learning-rate": "lr", "dataset": "data", "data-dir": "data", "image-size": "size", "img-size": "size",
    "input-size": "size", "output": "out", "output-dir": "out", "save-dir": "out", "workers": "num-workers",
    "arch": "model", "network": "model", "gpu": "device", "max-steps": "steps", "num-epochs": "epochs",
    "settings": "config", "out": "file",
}  # fmt: skip
#: values of a list
MANY = 10**9


def read(command: str, arguments: type[Any], argv: Sequence[str]) -> dict[str, Any]:
    """Return the values that ``argv`` gives to fields, by name, or raise `InvalidArgument` for its first mistake.

    Unknown flags come before wrong values, because a mistyped flag is also a missing one. Several flags of one list
    are joined, of any other the last counts; after ``--`` every word is a bare one.
    """
    fields = {field.name: field for field in dataclasses.fields(arguments)}
    hints = {name: _plain(kind) for name, kind in get_type_hints(arguments).items()}
    flags = {name.replace("_", "-"): name for name, field in fields.items() if not field.metadata["positional"]}
    offs = {f"no-{flag}": name for flag, name in flags.items() if hints[name] is bool and name not in settings.SOURCES}
    parts = list(_parts(argv, {**flags, **offs}, hints))
    for flag, name, _ in parts:
        if flag and name is None:
            _refuse_unknown(command, flag, [*flags, *offs])
    given: dict[str, Any] = {}
    bare: list[str] = []
    for flag, name, words in parts:
        if name is None:
            bare += words
        elif hints[name] is bool and words:
            also = f", or say --no-{flag[2:]}" if f"no-{flag[2:]}" in offs else ""
            hint = f"leave out ={words[0]}{also}"
            raise InvalidArgument("the flag takes no value", argument=flag, given=f"{flag}={words[0]}", hint=hint)
        else:
            value: Any = flag[2:] not in offs if hints[name] is bool else _value(fields[name], hints[name], words)
            given[name] = (*given.get(name, ()), *value) if _count(hints[name]) == MANY else value
    places = [field for field in fields.values() if field.metadata["positional"]]
    for field in places:
        most = _count(hints[field.name])
        words, bare = bare[:most], bare[most:]
        if words:
            given[field.name] = _value(field, hints[field.name], words)
    if bare:
        asked = " ".join(_shown(field) for field in places) or "only flags"
        hint = "a path with spaces stands in quotes; a value stands right after its flag"
        raise InvalidArgument("a word too many", argument=f"{command}: {asked}", given=repr(bare[0]), hint=hint)
    return given


def refuse_missing(command: str, arguments: type[Any], there: Collection[str]) -> None:
    """Raise `InvalidArgument` if a field without a default is not ``there``."""
    fields = dataclasses.fields(arguments)
    missing = [f for f in fields if f.default is dataclasses.MISSING and f.name not in there]
    if missing:
        rule = f"{command} needs {' and '.join(_shown(field) for field in missing)}"
        what = "; ".join(f"{_shown(field)}: {field.metadata['help']}" for field in missing)
        raise InvalidArgument(rule, argument=what, given="nothing", hint=f"{command} -h ends with examples")


def name_flags(error: ConvsmithError, arguments: Any) -> None:
    """Let an error of the library name the flag: ``--optimizer NAME`` for optimizer, ``--set rank=2`` for rank.

    Of a value it names the flag that gave it: ``--weights w.pth`` for w.pth.
    """
    said, given = str(error.argument), error.given
    fields = [field for field in dataclasses.fields(arguments) if field.name != "verb"]
    # of "compression method"; a data set is told by its value, and is no --set
    last = {"data set": "", "settings": "set"}.get(said, said.split(" ")[-1].replace("-", "_").partition("=")[0])
    alike = (f for f in fields if last == f.name or (len(f.name) > 5 and last.startswith(f.name)))
    words = [(word, f) for f in fields for word in words_of(getattr(arguments, f.name)) if "Literal" not in str(f.type)]
    named = (f"--{f.name.replace('_', '-')} {w}" for w, f in words if w.partition("=")[0].split(".")[-1] == said != w)
    shown = next(named, None) or next(map(_shown, alike), None)
    if shown is None and "--" not in said:
        for value, field in sorted(words, key=lambda one: -len(one[0])):
            whole = said == value or (said == "data set" and str(given) == repr(value))
            if whole or re.search(rf"(^|[\s:/'\"]){re.escape(value)}($|[\s:/'\"])", said):
                place = _shown(field) if field.metadata["positional"] else f"--{field.name.replace('_', '-')}"
                shown = f"{place} {value}" if whole else f"{place} {value}: {said}"
                break
    flags = {field.name for field in fields if not field.metadata["positional"]}
    rule, hint = (text if text is None else _as_flags(text, flags) for text in (error.rule, error.hint))
    if error.argument is None and isinstance(given, str):
        given = _as_flags(given, flags)
    type(error).__init__(error, rule or "", argument=shown or error.argument, given=given, hint=hint)


def words_of(value: Any) -> list[str]:
    """Return what a person wrote for a field: its text, or every text of its list."""
    return [word for word in (value if isinstance(value, tuple) else (value,)) if word and isinstance(word, str)]


def _as_flags(text: str, names: Collection[str]) -> str:
    """Write what is said for Python, ``use_target_labels=True`` or ``warmup_steps``, as the flags it stands for."""

    def flag(found: re.Match[str]) -> str:
        name, value = found[1].replace("_", "-"), (found[2] or "").strip("'\"")
        if value in ("None", "False"):
            return f"no --{name}" if value == "None" else f"--no-{name}"
        return f"--{name}" if value in ("", "True") else f"--{name} {value}"

    called = "|".join(sorted(names, key=len, reverse=True))
    bare = "|".join(name for name in names if "_" in name) or "$^"
    text = re.sub(rf"(?<![\w.-])(?<!--set )(?<!-args )({called})=([\w.'\"/-]*)", flag, text)
    return re.sub(rf"(?<![\w.-])({bare})()(?![\w=(-])", flag, text)


def _parts(argv: Sequence[str], names: dict[str, str], hints: dict[str, Any]) -> Iterator[tuple[str, Any, list[str]]]:
    """Yield every flag with its field (None if unknown) and its values, and every bare word with an empty flag."""
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            yield from (("", None, [rest]) for rest in words)
            return
        if not _is_flag(word):
            yield "", None, [word]
            continue
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        name = names.get(flag[2:]) if flag.startswith("--") else None
        values = [value] if equals else []
        most = 0 if name is None or equals else _count(hints[name])
        while len(values) < most and words and not _is_flag(words[0]):
            values.append(words.pop(0))
        yield flag, name, values


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word != "-" and not settings.fits(word, float)


def _count(kind: Any) -> int:
    """Return how many values a flag takes at most."""
    if get_origin(kind) is tuple:
        return MANY if get_args(kind)[-1] is Ellipsis else len(get_args(kind))
    return 0 if kind is bool else 1


def _plain(kind: Any) -> Any:
    """Return the type without its None."""
    rest = [choice for choice in get_args(kind) if choice is not type(None)]
    return rest[0] if type(None) in get_args(kind) and len(rest) == 1 else kind


def _value(field: Any, kind: Any, words: list[str]) -> Any:
    """Return the words as the type of their field."""
    many, count = get_origin(kind) is tuple, _count(kind)
    least = 1 if count == MANY else count
    if len(words) < least:
        rule, given = f"the flag needs {'a value' if least == 1 else f'{least} values'}", " ".join(words) or "none"
        raise InvalidArgument(rule, argument=_shown(field), given=given, hint=field.metadata["help"])
    values = [_one(_shown(field), get_args(kind)[0] if many else kind, word) for word in words]
    return tuple(values) if many else values[0]


def _one(argument: str, kind: Any, word: str) -> Any:
    hint = None
    if get_origin(kind) is Literal:
        choices = {str(choice): choice for choice in get_args(kind)}
        if word in choices:
            return choices[word]
        hint = close_matches(word, choices)
    elif kind in (int, float):
        with contextlib.suppress(ValueError):
            if settings.fits(kind(word), kind):
                return kind(word)
            hint = "infinity and numbers beyond 64 bits are none here"
    elif word.strip():
        return word
    else:
        hint = "leave it out, or give it a value"
    raise InvalidArgument(f"must be {settings.spelled(kind)}", argument=argument, given=repr(word), hint=hint)


def _refuse_unknown(command: str, flag: str, known: Sequence[str]) -> None:
    word = flag.lstrip("-").lower()
    meant = {name: name for name in known} | {name: ours for name, ours in ELSEWHERE.items() if ours in known}
    found = [word] if word in meant else difflib.get_close_matches(word, meant, cutoff=0.65)
    near = list(dict.fromkeys(meant[name] for name in found))
    near = near or [name for name in known if word and (name.startswith(word) or word in name.split("-"))][:3]
    lists = f"{command} --help lists its flags"
    hint = f"did you mean {' or '.join(f'--{name}' for name in near)}?" if near else lists
    raise InvalidArgument(f"{command} has no flag of this name", argument=flag, hint=hint)


def _shown(field: Any) -> str:
    """Return a field as a person writes it: ``--data DATA``, ``--resume``, ``MODEL``."""
    metavar = field.metadata["metavar"] or ("" if isinstance(field.default, bool) else field.name.upper())
    return metavar if field.metadata["positional"] else f"--{field.name.replace('_', '-')} {metavar}".rstrip()
