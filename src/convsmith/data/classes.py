"""Choose some classes of a data set in words: "0-4", "3,5,7", "cat,dog", "first-5", "random-5@2"."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from convsmith.arguments import checked
from convsmith.data.keyed import shuffled
from convsmith.errors import InvalidArgument, close_matches, refusing

ClassSpec = str | int | Sequence[str | int]


@checked
def chosen_classes(spec: ClassSpec | None, names: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of the chosen classes, sorted.

    Args:
        spec: None for all; a list of names and numbers; or a string of these and of ranges ``a-b`` (both ends belong to
            it) with commas between, or ``first-n``, or ``random-n@seed`` (a keyed draw; the
            seed is 0 where left out).
        names: all class names, in label order. A word that is a class name means that class, also if it looks like a
            number or a range; else a number counts from 0.

    Raises:
        InvalidArgument: a name or number that does not exist, an empty choice, a class chosen twice.

    Examples:
        >>> chosen_classes("0-1", ("cat", "dog", "hare"))
        (0, 1)
    """
    if spec is None:
        return tuple(range(len(names)))
    whole = spec.strip() if isinstance(spec, str) else None
    drawn = re.fullmatch(r"(?:first-(\d+)|random-(\d+)(?:@(\d+))?)", whole or "")
    if drawn and whole not in names:
        count = int(drawn[1] or drawn[2])
        if not 1 <= count <= len(names):
            raise InvalidArgument(f"there are {len(names)} classes", argument=f"classes {spec!r}", given=count)
        every = torch.arange(len(names))
        order = every if drawn[1] else shuffled(every, int(drawn[3] or 0), 0xC1A55)
        return tuple(sorted(order[:count].tolist()))
    words: Sequence[str | int] = [spec] if isinstance(spec, int) else list(spec)
    if whole is not None:
        words = [whole] if whole in names else [word.strip() for word in whole.split(",")]
    chosen = [number for word in words for number in _word(word, names, spec)]
    if not chosen:
        raise InvalidArgument("at least one class must be chosen", argument="classes", given=repr(spec))
    twice = sorted({names[n] for n in chosen if chosen.count(n) > 1})
    if twice:
        raise InvalidArgument("a class is chosen once", argument=f"classes {spec!r}", given=", ".join(twice))
    return tuple(sorted(chosen))


def matched_classes(names: Sequence[str], known: Sequence[str], file: str | Path | None = None) -> tuple[int, ...]:
    """Return for every class of a data set its number in a network that may know more.

    Names are compared without case, "_" and "-" being spaces; where the network has ImageNet's 1,000 classes, synsets
    ("n01440764") and single names ("tench") mean them too. Each line of ``file`` is ``name=class of the network``,
    empty or a comment after ``#``.

    Raises:
        InvalidArgument: a class that the network does not know, or two classes that are one there; another line.
    """
    if file is None and tuple(names) == tuple(known):  # also where two classes share a name
        return tuple(range(len(names)))
    spoken = [[(_plain(name), number) for number, name in enumerate(known)]]
    if len(known) == 1000:
        from timm.data import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        words = [(synset, *str(info.label_name_to_description(synset)).split(",")) for synset in info.label_names()]
        spoken += [[(_plain(word), number) for number, said in enumerate(words) for word in said]]
    meaning: dict[str, int] = {}
    for pairs in spoken:  # full names before single ones; two classes are a crane, so that word means none
        often = Counter(name for name, _ in dict.fromkeys(pairs))
        meaning = {name: number for name, number in pairs if often[name] == 1} | meaning
    with refusing("the file of class names cannot be read", OSError, UnicodeError, argument="class_map"):
        lines = [] if file is None else Path(file).read_text(encoding="utf-8-sig").splitlines()
    odd = [line for line in lines if "=" not in line and line.strip() and not line.lstrip().startswith("#")]
    if odd:
        rule = "each line of the file is name=class of the network, or a comment after #"
        raise InvalidArgument(rule, argument="class_map", given=repr(odd[0]))
    said = {_plain(left): _plain(right) for left, equals, right in (line.partition("=") for line in lines) if equals}
    found = [meaning.get(said.get(_plain(name), _plain(name))) for name in names]
    unknown = [name for name, number in zip(names, found, strict=True) if number is None]
    if unknown or len(set(found)) < len(names):
        rule = "the data set has other classes than the model was trained on"
        argument = f"{len(names)} classes for a model of {len(known)}"
        given = "two classes that are one to the model"
        if unknown:
            given = f"unknown to it, or more than one class: {', '.join(unknown[:5])}"
        hint = "--class-map FILE with lines name=class; or take other data, or convsmith adapt"
        raise InvalidArgument(rule, argument=argument, given=given, hint=hint)
    return tuple(number for number in found if number is not None)


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").replace("-", " ").split())


def _word(word: str | int, names: Sequence[str], spec: ClassSpec) -> list[int]:
    if word in names:
        return [names.index(str(word))]
    text = str(word)
    if text.isascii() and text.isdigit():
        if int(text) < len(names):
            return [int(text)]
        raise InvalidArgument(f"classes count from 0 to {len(names) - 1}", argument=f"classes {spec!r}", given=text)
    for place in (n for n, letter in enumerate(text) if letter == "-" and 0 < n < len(text) - 1):
        ends = (text[:place].strip(), text[place + 1 :].strip())
        if all(end.isascii() and end.isdigit() and end in names for end in ends):  # names that are numbers: the numbers
            between = {str(n) for n in range(int(ends[0]), int(ends[1]) + 1)}
            if between:
                return [n for n, name in enumerate(names) if name in between]
        if all(end in names or (end.isascii() and end.isdigit()) for end in ends):
            low, high = (_word(end, names, spec)[0] for end in ends)
            if low > high:
                raise InvalidArgument("a range runs upwards", argument=f"classes {spec!r}", given=text)
            return list(range(low, high + 1))
    hint = close_matches(text, map(str, names))
    raise InvalidArgument("no such class", argument=f"classes {spec!r}", given=repr(text), hint=hint)
