"""The tables of docs/ that follow from the code: keys of the config and of the methods, and what ``list`` shows.

``python -m fedsim.verbs.tables`` writes them anew, between the lines ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedsim.algorithms import METHODS, resolve
from fedsim.catalogue.functions import is_import_path
from fedsim.config.clock import ClockConfig
from fedsim.config.data import ClientsConfig, DataConfig
from fedsim.config.distill import DistillConfig
from fedsim.config.experiment import Config
from fedsim.config.mistakes import nearest, show
from fedsim.config.track import TrackConfig
from fedsim.config.train import CheckpointConfig, EvaluateConfig, StoreConfig, TrainConfig
from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.machine.files import write_atomic
from fedsim.verbs.listing import LISTINGS

ROOT = Path(__file__).resolve().parents[2]
PLACE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "clients": ClientsConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "clock": ClockConfig,
    "checkpoint": CheckpointConfig,
    "store": StoreConfig,
    "track": TrackConfig,
}
Row = tuple[str, ...]


def filled(page: str) -> str:
    """Return a page with all its tables as the code has them now."""
    return PLACE.sub(lambda place: place[1] + table(place[2]) + place[3], page)


def table(name: str) -> str:
    """Return a table by its name, such as "config train" or "list data"; KeyError for another."""
    kind, _, what = name.partition(" ")
    if kind == "list":
        return listing(what)
    rows = {"config": config_rows, "method": method_rows, "distill": distill_rows}[kind](what)
    lines = ["| key | values | default | what it is |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def listing(what: str) -> str:
    """Return what ``launch.py list`` shows, as a table."""
    lines = ["| name | what it is |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {cell(text)} |" for name, text in LISTINGS[what]())]) + "\n"


def config_rows(section: str) -> Iterator[Row]:
    """The keys of a section of a run's config; of the whole without one."""
    if section != "run":
        yield from keys(SECTIONS[section])
        return
    for name, field in Config.model_fields.items():
        if name not in SECTIONS and name != "algorithm":
            yield row(name, field)


def method_rows(what: str) -> Iterator[Row]:
    """The keys of all known methods that have some, behind the method's name."""
    assert what == "keys"
    for method in METHODS:
        for key, *others in keys(resolve(method).Config):
            yield (f"`{method}`: {key}", *others)


def keys_of(what: str, name: str) -> list[tuple[str, str]]:
    """What ``launch.py list algorithms NAME`` shows: the method's line, and its own keys with values and defaults.

    UserError for an unknown method, and for a name behind ``list`` of something else.
    """
    if what != "algorithms":
        raise UserError(f"list {what}", show(name), "no name; one goes with list algorithms alone")
    if not is_import_path(name) and name not in METHODS:
        raise UserError("list algorithms", show(name), nearest(name, METHODS))
    method = resolve(name)
    own = [
        (key.strip("`"), f"{taken}; {usual} if not given. {text}") for key, taken, usual, text in keys(method.Config)
    ]
    return [(name, method.summary), *(own or [("no keys", "of its own")])]


def distill_rows(what: str) -> Iterator[Row]:
    """The keys of a distillation's config that are no run's."""
    assert what == "keys"
    for name in ("submodel", "distill"):
        model = models_in(DistillConfig.model_fields[name].annotation)[0]
        yield from keys(model, f"{name}.")


def keys(model: type[BaseModel], above: str = "") -> Iterator[Row]:
    """The keys of a section, those of the sections in it behind their own."""
    for name, field in model.model_fields.items():
        yield row(above + name, field)
        inner = models_in(field.annotation)
        for one in inner:
            for key, *others in keys(one, f"{above}{name}."):
                if len(inner) > 1 and key == f"`{above}{name}.name`":
                    continue
                yield (f"{key} ({name_of(one)})" if len(inner) > 1 else key, *others)


def name_of(model: type[BaseModel]) -> str:
    """The word that chooses a section among several."""
    return str(get_args(model.model_fields["name"].annotation)[0])


def row(name: str, field: FieldInfo) -> Row:
    """One key."""
    text = field.description or ""
    if text.startswith("One of: "):
        text = "See `launch.py list`."
    return (f"`{name}`", cell(values(field.annotation, field.metadata)), cell(default(field)), cell(text))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a key may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def values(annotation: Any, metadata: Any = ()) -> str:
    """What a key takes, in words."""
    if models := models_in(annotation):
        names = [name_of(one) for one in models if len(models) > 1]
        section = f"a section; name: {', '.join(names)}" if names else "a section"
        others = [part for part in get_args(annotation) if NoneType in get_args(annotation) and not models_in(part)]
        return ", ".join([section, *(values(part) for part in others)])
    if get_origin(annotation) is Literal:
        return ", ".join("true" if value is True else str(value) for value in get_args(annotation))
    if hasattr(annotation, "__metadata__"):  # Annotated, which carries the limits
        return values(annotation.__origin__, annotation.__metadata__)
    if get_origin(annotation) in (tuple, list):
        inner = [part for part in get_args(annotation) if part is not Ellipsis]
        return f"list: {values(inner[0])}" if Ellipsis in get_args(annotation) else f"{len(inner)} numbers"
    if get_origin(annotation) is dict:
        return "a mapping"
    if get_args(annotation):
        return ", ".join(values(part) for part in get_args(annotation))
    words: dict[Any, str] = {int: "whole number", float: "number", bool: "true, false", str: "text", NoneType: "null"}
    return words.get(annotation, "text") + limits(metadata)


def limits(metadata: Any) -> str:
    """The smallest and the largest number, as an interval's condition."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = []
    for one in metadata:
        for part in getattr(one, "metadata", [one]):
            found += [f"{sign} {getattr(part, name):g}" for name, sign in signs.items() if hasattr(part, name)]
    shown = [text for text in found if not text.endswith(("e+06", "e+09"))]
    return f" {' and '.join(shown)}" if shown else ""


def default(field: FieldInfo) -> str:
    """What a key is without being given."""
    if field.default_factory is not None:
        return "depends"
    if field.is_required():
        return "none: must be given"
    value = field.default
    if isinstance(value, BaseModel):
        return "its own defaults"
    plain = {None: "null", True: "true", False: "false"}
    if isinstance(value, tuple | dict):
        return str(list(value)).replace("'", "") if value or isinstance(value, tuple) else "{}"
    return plain.get(value, str(value)) if isinstance(value, bool | None) else f"{value}"


def cell(text: str) -> str:
    """Text that stays in its cell."""
    return text.replace("|", "\\|")


def rewrite() -> None:
    """Write the tables of all pages anew."""
    for page in (ROOT / "docs").glob("*.md"):
        before = page.read_text()
        if (after := filled(before)) != before:
            write_atomic(page, after.encode())


if __name__ == "__main__":
    rewrite()
