"""Bad configs: of three good ones every key is damaged, and the text as a whole."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.bad.files import UNDAMAGED, Bad, damaged_bytes
from tests.unit.config.test_config_mutations import BROKEN_FILES

CONFIGS = ("quickstart", "prrfl_lora", "harmofl_cells")
FOLDER = Path(__file__).parents[2] / "configs"
PLACES = 12
TWICE = "the_same_key_again"
VALUES = (None, True, -1, 0.5, float("nan"), float("inf"), 10**40, "nonsense", "", "a\nb", [], {})
INSERTED = {
    "no UTF-8": b"\xff",
    "a null byte": b"\0",
    "a tab": b"\t",
    "a bracket": b"[",
    "a colon": b": ",
    "a bell": b"\a",
}
Section = dict[str, Any]


def bad_configs(stream: np.random.Generator) -> Iterator[Bad]:
    """Each good config undamaged, then with each damage; ``stream`` draws the places in the text."""
    for name in CONFIGS:
        text = (FOLDER / f"{name}.yaml").read_bytes()
        yield _bad(f"{name}: {UNDAMAGED}", text)
        words = yaml.safe_load(text)
        for path in keys(words):
            for how, change in changes(at(words, path)).items():
                yield _bad(f"{name}: {'.'.join(path)} {how}", damaged(words, path, change))
        for how, data in damaged_text(text, stream):
            yield _bad(f"{name}: {how}", data)
    for how, data in BROKEN_FILES.items():
        yield _bad(f"a file: {how}", data)


def _bad(label: str, text: bytes) -> Bad:
    return Bad("configs", label, lambda _: text)


def keys(section: Section, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys."""
    for key, value in section.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from keys(value, (*above, key))


def at(words: Section, path: tuple[str, ...]) -> Any:
    """The value at a path."""
    for key in path:
        words = words[key]
    return words


def changes(value: Any) -> dict[str, Callable[[Section, str], object]]:
    """What can happen to a key with this value: called with its section and its name there."""

    def to(new: Any) -> Callable[[Section, str], object]:
        return lambda section, key: section.update({key: new})

    values = (*VALUES, str(value), [value], {"value": value}, -value if type(value) in (int, float) else {"a": {}})
    made = {f"= {repr(new)[:30]}": to(new) for new in values if new != value or type(new) is not type(value)}
    return made | {
        "left out": lambda section, key: section.pop(key),
        "misspelt": lambda section, key: section.update({f"{key}s": section.pop(key)}),
        "twice": lambda section, key: section.update({TWICE: copy.deepcopy(section[key])}),
    }


def damaged(words: Section, path: tuple[str, ...], change: Callable[[Section, str], object]) -> bytes:
    """The text of a config with a change at a path."""
    words = copy.deepcopy(words)
    change(at(words, path[:-1]), path[-1])
    return yaml.safe_dump(words, sort_keys=False).replace(TWICE, path[-1]).encode()


def damaged_text(text: bytes, stream: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """The text cut, overwritten, with something inserted, and in another encoding."""
    yield from damaged_bytes(text, stream)
    for place in stream.integers(len(text), size=PLACES):
        yield f"cut at {place} too", text[:place]
    for how, data in INSERTED.items():
        for place in stream.integers(len(text), size=PLACES // 2):
            yield f"{how} at {place}", text[:place] + data + text[place:]
    for encoding in ("utf-16", "utf-32"):
        yield encoding, text.decode().encode(encoding)
    for depth in (10, 1000):
        yield f"{depth} brackets deep", text + b"store: " + b"{a: " * depth + b"}" * depth
