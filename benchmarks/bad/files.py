"""Inputs that are good until a file of theirs is damaged, which ``data`` and ``models`` make.

What a file of any kind suffers is in ``damaged_bytes``; what only one kind can suffer comes with the input.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from benchmarks.bad.damage import CHANGES, CONFIG, Damage, instead

Words = dict[str, Any]
BASE: Words = yaml.safe_load(CONFIG) | {"rounds": 1}
CUTS, OVERWRITTEN = 4, 4
UNDAMAGED = "undamaged"


class Bad(NamedTuple):
    """A bad input: ``make`` leaves it in an empty folder and returns the config that names it."""

    family: str
    label: str
    make: Callable[[Path], bytes]


class Good(NamedTuple):
    """What is damaged: ``write`` leaves it in a folder, and ``words`` are the sections of a config that names it.

    ``files`` are damaged byte by byte, ``overwritten`` too; ``more`` are damages of this kind alone.
    """

    family: str
    name: str
    write: Callable[[Path], object]
    words: Callable[[Path], Words]
    files: Sequence[str]
    more: dict[str, Damage]
    overwritten: bool = True


def bad_files(goods: Iterable[Good], folder: Path, stream: np.random.Generator) -> Iterator[Bad]:
    """Each good input, which is written into ``folder``, undamaged first and then with each damage."""
    for good in goods:
        template = folder / good.name
        template.mkdir(parents=True)
        good.write(template)
        damages: dict[str, Damage] = {UNDAMAGED: lambda _: None}
        for file in good.files:
            whole = (template / file).read_bytes()
            news = [*damaged_bytes(whole, stream, good.overwritten), ("removed", None), ("a folder", ())]
            damages |= {f"{file}: {how}": instead(file, new) for how, new in news}
        for how, damage in (damages | good.more).items():
            yield Bad(good.family, f"{good.name}: {how}", partial(_copy, template, good.words, damage))


def _copy(template: Path, words: Callable[[Path], Words], damage: Damage, folder: Path) -> bytes:
    copy = folder / "input"
    shutil.copytree(template, copy)
    damage(copy)
    return yaml.safe_dump(BASE | words(copy), sort_keys=False).encode()


def damaged_bytes(whole: bytes, stream: np.random.Generator, overwritten: bool = True) -> Iterator[tuple[str, bytes]]:
    """What can happen to any file, by a name: ``CHANGES``, cut or overwritten at places that ``stream`` draws."""
    yield from ((how, change(whole)) for how, change in CHANGES.items())
    for place in stream.integers(len(whole), size=CUTS):
        yield f"cut at {place}", whole[:place]
    for place in stream.integers(len(whole), size=OVERWRITTEN if overwritten else 0):
        yield f"overwritten at {place}", whole[:place] + stream.bytes(8) + whole[place + 8 :]
