"""Fields of a dataclass become flags; the options that all verbs share live here, once."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

from convsmith.cli.shell import flags, settings
from convsmith.errors import InvalidArgument, close_matches

A = TypeVar("A", bound="Listing")

#: a verb with more fields than this shows only the common ones on ``-h``
SHORT = 20
#: flags outside a verb's own box that ``-h`` shows all the same
COMMON = frozenset({"epochs", "steps", "lr", "batch_size", "size", "out", "resume", "config", "seed", "json"})
COMMON |= frozenset({"keep_macs", "finetune_epochs", "keep_latency"})
#: sides of images, and threads or processes, beyond which a slip of the hand would fill the memory
MOST_PIXELS, MOST_WORKERS = 16_384, 1024
MOST_SEED = 2**32 - 1
#: bounds of a number -> how it is kept, and its words
_BOUNDS = {
    "least": (operator.ge, "{} or more"),
    "most": (operator.le, "{} or less"),
    "above": (operator.gt, "above {}"),
    "below": (operator.lt, "below {}"),
}


def option(
    default: Any = MISSING,
    help: str = "",  # noqa: A002  (the word every command line library uses)
    *,
    metavar: str | None = None,
    group: str = "options",
    positional: bool = False,
    one_of: str | None = None,
    **bounds: float,
) -> Any:
    """Return a dataclass field that becomes a flag.

    Args:
        default: the value without flag, file or preset; left out, the flag is required.
        help: one line for ``-h`` and for the comments of presets.
        metavar: the word that stands for the value in ``-h``.
        group: the box of ``-h`` in which the flag is shown.
        positional: a bare word instead of a flag.
        one_of: settings of this name exclude each other: a flag takes the place of all that file and preset say.
        bounds: of a number: ``least=``, ``most=``, ``above=``, ``below=``.
    """
    about = {
        "help": help,
        "metavar": metavar,
        "group": group,
        "positional": positional,
        "one_of": one_of,
        "bounds": bounds,
    }
    return dataclasses.field(default=default, metadata=about, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What every verb understands."""

    json: bool = option(False, "print a machine-readable summary as the last line of stdout", group="common")
    debug: bool = option(False, "show tracebacks of errors", group="common")

    def __post_init__(self) -> None:
        """Refuse a number outside the bounds of its option, by its flag; None is no number."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for kind, bound in field.metadata["bounds"].items():
                holds, words = _BOUNDS[kind]
                if value is not None and not holds(value, bound):
                    flag = f"--{field.name.replace('_', '-')}"
                    raise InvalidArgument(f"must be {words.format(bound)}", argument=flag, given=value)


@dataclass(frozen=True, kw_only=True)
class Computation(Listing):
    """What every verb that computes something understands."""

    resume = False  # no flag: see `Work`
    config: str | None = option(None, "YAML file of settings; flags win over it", metavar="FILE", group="common")
    preset: str | None = option(None, "packaged settings; file and flags win over it", metavar="NAME", group="common")
    out: str | None = option(None, "run folder to write (default: a new one in runs/)", metavar="DIR", group="common")
    seed: int = option(0, "seed of everything random", group="common", least=0, most=MOST_SEED)
    device: str = option("auto", "auto, cpu, cuda, cuda:N, mps", metavar="NAME", group="common")
    overwrite: bool = option(False, "replace the run folder --out if it is one", group="common")

    def __post_init__(self) -> None:
        """Refuse ``--overwrite`` where nothing is overwritten."""
        super().__post_init__()
        if self.overwrite and self.out is None:
            raise InvalidArgument("there is nothing to overwrite", argument="--overwrite", hint="add --out")
        if self.overwrite and self.resume:
            rule, hint = "a run goes on or is replaced", "leave one of them out"
            raise InvalidArgument(rule, argument="--resume --overwrite", hint=hint)


@dataclass(frozen=True, kw_only=True)
class Work(Computation):
    """What every verb understands that can be interrupted and goes on later."""

    resume: bool = option(False, "go on in --out where its last checkpoint stands", group="common")


def parse(verb: str, arguments: type[A], argv: Sequence[str], program: str = "convsmith") -> A:
    """Return ``arguments`` filled from the flags in ``argv``, over the file, over the preset, over the defaults.

    Raises `InvalidArgument` for wrong flags and a bad file or preset.
    """
    command = f"{program} {verb}"
    given = flags.read(command, arguments, argv)
    values = given
    if issubclass(arguments, Computation):
        kinds = {field.name: field.metadata["one_of"] for field in dataclasses.fields(arguments)}
        replaced = {kinds[name] for name in given} - {None}
        layers = settings.layers(verb, arguments, given)
        values = {name: value for name, value in layers.items() if kinds[name] not in replaced} | given
    flags.refuse_missing(command, arguments, values)
    return arguments(**values)


def show_help(arguments: type[Listing], *, prog: str, full: bool) -> None:
    """Print what a verb does and its flags: the common ones, or all."""
    import tyro

    hidden = frozenset() if full else _rare(arguments)
    more = f"\n\n{len(hidden)} more flags: --help shows them." if hidden else ""
    about = (arguments.__doc__ or "").strip() + more
    with contextlib.suppress(SystemExit):
        how = (tyro.conf.OmitArgPrefixes,)
        tyro.cli(_form(arguments, hidden), prog=prog, description=about, args=["--help"], config=how)


def _rare(arguments: type[Listing]) -> frozenset[str]:
    """Return the flags that ``-h`` leaves to ``--help``: of a verb with many, those few people change."""
    fields = dataclasses.fields(arguments)
    if len(fields) <= SHORT:
        return frozenset()
    rare = [f for f in fields if f.metadata["group"] != "options" and f.name not in COMMON and f.default is not MISSING]
    return frozenset(field.name for field in rare)


def _form(arguments: type[Listing], hidden: frozenset[str] = frozenset()) -> type[Any]:
    """Return the dataclass that tyro shows: the verb's own fields, and one box a group, without help on ``hidden``."""
    import tyro

    groups: dict[str, list[Any]] = {}
    hints = get_type_hints(arguments)
    for field in _verb_fields_first(arguments):
        text, metavar = field.metadata["help"], field.metadata["metavar"]
        plain = field.default in (None, (), "") or field.name in settings.SOURCES
        shown = tyro.conf.arg(help=text, metavar=metavar, help_behavior_hint="" if plain else None)
        kind: Any = Annotated[hints[field.name], shown, tyro.conf.DisallowNone]
        if field.metadata["positional"]:
            kind = Annotated[kind, tyro.conf.Positional]
        if field.name in settings.SOURCES:
            kind = Annotated[kind, tyro.conf.FlagCreatePairsOff]
        if field.name in hidden:
            kind = Annotated[kind, tyro.conf.Suppress]
        made = dataclasses.field(default=field.default, kw_only=True)
        groups.setdefault(field.metadata["group"], []).append((field.name, kind, made))
    own = groups.pop("options", [])
    boxes = [(name, dataclasses.make_dataclass(name.title(), members)) for name, members in groups.items()]
    return dataclasses.make_dataclass("Arguments", [*own, *boxes], kw_only=True)


def completion(program: str, verbs: Mapping[str, type[Listing]], shell: str) -> str:
    """Return tyro's completion script of a program for bash or zsh."""
    import io
    from typing import Union

    import tyro

    if shell not in ("bash", "zsh"):
        rule, hint = "completion exists for bash and zsh", close_matches(shell, ("bash", "zsh"))
        raise InvalidArgument(rule, argument="--completion SHELL", given=repr(shell), hint=hint)
    forms = [
        Annotated[_form(arguments), tyro.conf.subcommand(name=verb, prefix_name=False)]
        for verb, arguments in verbs.items()
    ]
    every: Any = Union[tuple(forms)]  # noqa: UP007  (made at run time)
    script = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(script):
        tyro.cli(every, prog=program, args=["--tyro-print-completion", shell], config=(tyro.conf.OmitArgPrefixes,))
    text = script.getvalue().rstrip()
    if shell == "zsh":  # tyro's calls itself, as a file of fpath does; read by eval it has to name itself instead
        call = text.splitlines()[-1]
        named = f"compdef {call.split()[0]} {shlex.quote(program)}"
        text = f'{text.removesuffix(call)}if [ "$funcstack[1]" = "_{program}" ]; then {call}; else {named}; fi'
    return text


def _verb_fields_first(arguments: type[Listing]) -> list[Any]:
    """Order the fields as help shows them: the verb's own, then what its base classes share, then what all share."""
    fields = list(dataclasses.fields(arguments))
    order = ["options", "images", *(field.metadata["group"] for field in fields if field.metadata["group"] != "common")]
    return sorted(fields, key=lambda field: [*order, "common"].index(field.metadata["group"]))


def resolved(verb: str, arguments: Listing) -> dict[str, Any]:
    """Return the settings as `parse` resolved them, JSON-able; a file of them given to ``--config`` repeats the run."""
    values = {
        field.name: getattr(arguments, field.name)
        for field in _verb_fields_first(type(arguments))
        if field.name not in settings.SOURCES
    }
    return {"verb": verb, **{name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}}
