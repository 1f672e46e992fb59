"""Which number or colour of a mask is which class: `classes.json`, and what holds where there is none."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from vision_ssm.errors import DataError
from vision_ssm.tasks.legend import Colour, default_palette
from vision_ssm.tasks.segmentation.masks import IGNORE

__all__ = ["MOST_CLASSES", "ClassList", "ade20k", "numbered", "read_classes"]

MOST_CLASSES = 255
"""Labels are kept in bytes, and one of them is `IGNORE`."""

_HIGHEST = 65535  # of a sample of 16 bits
_FORMS = (
    'a list of names, of {"name", "id", "color"} (id: its number in the masks; color: [red, green, blue]), or '
    '{"classes": such a list, "ignore": 255, "ignore_colors": [[0, 0, 0]]}'
)


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set.

    Attributes:
        names: in the order of the class indices.
        palette: a colour for each, to show it.
        values: the number that stands for each in masks of indices.
        ignored: numbers there that stand for no class and are not counted.
        ignored_colours: colours that stand for none, in masks of colours; none without a number in ``ignored``.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = (IGNORE,)
    ignored_colours: tuple[Colour, ...] = field(default=())

    @property
    def colours(self) -> dict[Colour, int]:
        """The number that stands for each colour of a mask in RGB."""
        classes = dict(zip(self.palette, self.values, strict=True))
        return classes | dict.fromkeys(self.ignored_colours, next(iter(self.ignored), IGNORE))


@functools.cache
def ade20k() -> ClassList:
    """Return the 150 classes of ADE20K's scene parsing benchmark, in its order, with its colours.

    Number 0 in its masks is everything else and not counted. Names are the first of each class's synonyms, but for
    'television receiver', which is how published segmentors spell it. Two classes have one colour, as published.
    Source: Zhou et al. 2017, `objectInfo150.txt` and `color150.mat` of CSAILVision/sceneparsing.
    """
    listed = json.loads(files(__package__).joinpath("ade20k.json").read_text(encoding="utf-8"))
    names = tuple(str(entry["name"]) for entry in listed)
    palette = tuple(_colour(entry["color"], "ade20k.json") for entry in listed)
    return ClassList(names, palette, tuple(range(1, len(names) + 1)), ignored=(0,))


def numbered(values: Sequence[int]) -> ClassList:
    """Return classes named after the numbers in masks that nothing else describes.

    0 and 255 alone are background and foreground, as programs that draw write a mask in black and white; beside other
    numbers, 255 is `IGNORE`.

    Raises:
        DataError: fewer than two classes, or too many.
    """
    found = sorted(set(values))
    if found == [0, 255]:
        return ClassList(("background", "foreground"), default_palette(2), (0, 255), ignored=())
    classes = [value for value in found if value != IGNORE]
    if len(classes) < 2:
        raise DataError(
            f"there is nothing to learn: the masks hold {'one class' if classes else 'no labelled pixel'}, "
            f"{classes or [IGNORE]}; expected two or more, of which one may be the background."
        )
    if len(classes) > MOST_CLASSES:
        raise DataError(
            f"the masks hold {len(classes):,} different numbers, and at most {MOST_CLASSES} classes are possible; list "
            f"them in classes.json if these are indices: {_FORMS}."
        )
    return ClassList(tuple(f"class {value}" for value in classes), default_palette(len(classes)), tuple(classes))


def read_classes(path: Path) -> ClassList:
    """Read ``classes.json`` or ``palette.json``.

    Raises:
        DataError: naming the file; unreadable, of another form, a name, number or colour twice, fewer than two classes
            or more than `MOST_CLASSES`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON
        raise DataError(f"{str(path)!r} is no JSON text ({error}); expected {_FORMS}.") from error
    where = repr(str(path))
    extra: Mapping[str, Any] = {}
    if isinstance(content, dict) and "classes" in content:
        extra, content = content, content["classes"]
    entries = _entries(content, where)
    _require_classes(entries, where)
    names = tuple(name for name, _, _ in entries)
    values = tuple(position if value is None else value for position, (_, value, _) in enumerate(entries))
    given = [colour for _, _, colour in entries if colour is not None]
    free = (colour for colour in default_palette(2 * len(entries)) if colour not in given)
    palette = tuple(next(free) if colour is None else colour for _, _, colour in entries)
    ignored = _ignored(extra.get("ignore"), values, where)
    colours = tuple(_colour(colour, where) for colour in _list(extra.get("ignore_colors", []), "ignore_colors", where))
    if colours and not ignored:
        ignored = (next(value for value in range(_HIGHEST, 0, -1) if value not in values),)  # they need a number
    for kind, items in (("name", names), ("id", (*values, *ignored)), ("color", (*palette, *colours))):
        twice = next((item for position, item in enumerate(items) if item in items[:position]), None)
        if twice is not None:
            raise DataError(f"{where} has the {kind} {twice!r} twice; each must stand for one class.")
    return ClassList(names, palette, values, ignored, colours)


_Entry = tuple[str, int | None, Colour | None]


def _entries(content: object, where: str) -> list[_Entry]:
    if isinstance(content, dict):
        if content and all(str(key).lstrip("-").isdigit() for key in content):  # {"0": "sky", ...}
            content = [
                {**value, "id": int(key)} if isinstance(value, dict) else {"id": int(key), "name": value}
                for key, value in content.items()
            ]
        else:  # {"sky": [70, 130, 180], ...}
            content = [{"name": name, "color": colour} for name, colour in content.items()]
    if not isinstance(content, list) or not content:
        raise DataError(f"{where} lists no classes; expected {_FORMS}.")
    return [_entry(item, where) for item in content]


def _entry(item: object, where: str) -> _Entry:
    if isinstance(item, str):
        return item.strip(), None, None
    if not isinstance(item, dict) or not isinstance(item.get("name"), str) or not item["name"].strip():
        raise DataError(f"{where} has {item!r:.80} among its classes; expected {_FORMS}.")
    value = item.get("id")
    if value is not None and (type(value) is not int or not 0 <= value <= _HIGHEST):
        raise DataError(
            f"{where}: the id of {item['name']!r} must be a whole number from 0 to {_HIGHEST}, got {value}."
        )
    colour = item.get("color", item.get("colour"))
    return item["name"].strip(), value, None if colour is None else _colour(colour, where)


def _require_classes(entries: Sequence[_Entry], where: str) -> None:
    if len(entries) < 2:
        raise DataError(
            f"there is nothing to learn: {where} has the one class {entries[0][0]!r}; expected two or more, of which "
            "one may be the background."
        )
    if len(entries) > MOST_CLASSES:
        raise DataError(f"{where} has {len(entries)} classes, and at most {MOST_CLASSES} are possible.")
    if len({value is None for _, value, _ in entries}) > 1:
        raise DataError(f"{where} gives an id to some of its classes; give one to each, or to none.")


def _colour(given: object, where: str) -> Colour:
    if isinstance(given, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", given):
        return int(given[1:3], 16), int(given[3:5], 16), int(given[5:7], 16)
    parts = given if isinstance(given, list) else []
    if len(parts) == 3 and all(type(part) is int and 0 <= part <= 255 for part in parts):
        return parts[0], parts[1], parts[2]
    raise DataError(f'{where}: a color must be [red, green, blue] from 0 to 255, or "#80ff00", got {given!r}.')


def _ignored(given: object, values: Sequence[int], where: str) -> tuple[int, ...]:
    if given is None:
        return () if IGNORE in values else (IGNORE,)
    numbers = given if isinstance(given, list) else [given]
    if not all(type(number) is int and 0 <= number <= _HIGHEST for number in numbers):
        raise DataError(f"{where}: ignore must be a number in the masks, or a list of them, got {given!r}.")
    return tuple(numbers)


def _list(given: object, key: str, where: str) -> list[Any]:
    if not isinstance(given, list):
        raise DataError(f"{where}: {key} must be a list, got {given!r}.")
    return given
