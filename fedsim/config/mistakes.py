"""From what pydantic says about a config to one line for a person: key, found, allowed, nearest name."""

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

ALLOWED = {
    "bool_type": "true or false",
    "dict_type": "a section of keys and values",
    "finite_number": "a finite number",
    "float_type": "a finite number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "int_type": "an integer",
    "less_than": "a number below {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "string_too_long": "a text of at most {max_length} characters",
    "string_too_short": "a text that is not empty",
    "string_type": "a text",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "tuple_type": "a list",
}
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80
SHORT.maxdict, SHORT.maxlist, SHORT.maxlevel = 4, 6, 3


class KeyedError(ValueError):
    """A combination of keys that cannot be run; carries the key to blame, relative to its section."""

    def __init__(self, key: str, found: str, expected: str) -> None:
        super().__init__(f"{key}: found {found}; expected {expected}")
        self.key, self.found, self.expected = key, found, expected


@dataclass(frozen=True)
class Mistake:
    """One wrong key: its dotted path, what was found there, and what is allowed."""

    key: str
    found: str
    expected: str


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name closest to ``word`` first, then all of them; only the list when nothing is close."""
    names = list(known)
    close = get_close_matches(word, names, n=1, cutoff=0.5)
    if not names:
        return "no key here"
    listing = ", ".join(names)
    return f"{close[0]} (nearest; known: {listing})" if close else f"one of: {listing}"


def refuse_idle(section: BaseModel, keys: Iterable[str], cause: str, path: str = "") -> None:
    """Raise KeyedError for the first key of a section that is not at its default, since ``cause`` leaves it unused.

    A default may stand there: a run's own config.yaml names every key. ``path`` stands in front of the key.
    """
    for key in keys:
        field, value = type(section).model_fields[key], getattr(section, key)
        default = field.get_default(call_default_factory=True, validated_data=vars(section))
        if value != default:
            shown = show(value.model_dump(mode="json") if isinstance(value, BaseModel) else value)
            raise KeyedError(path + key, f"{shown} with {cause}", "no such key: nothing would use it")


def show(value: object) -> str:
    """A value in YAML's words on one short line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return SHORT.repr(value)


def mistakes(error: ValidationError, data: Mapping[str, Any], model: type[BaseModel]) -> list[Mistake]:
    """All mistakes behind ``error``, unknown keys first; the branches of a union count as one mistake."""
    groups: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        # a default that depends on a wrong key is no mistake of its own
        if detail["type"] != "default_factory_not_called":
            groups.setdefault(_path(detail, data), []).append(detail)
    ordered = sorted(groups.items(), key=lambda item: item[1][0]["type"] != "extra_forbidden")
    return [_mistake(path, details, data, model) for path, details in ordered]


def _path(detail: ErrorDetails, data: Any) -> tuple[str, ...]:
    """The keys in the user's file that lead to the mistake, without pydantic's names of union branches."""
    path: list[str] = []
    for step in detail["loc"]:
        if isinstance(data, Mapping) and step in data:
            data = data[str(step)]
        elif isinstance(data, list | tuple) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            continue
        path.append(str(step))
    if detail["type"] == "missing":
        path.append(str(detail["loc"][-1]))
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, KeyedError):
        path.extend(cause.key.split("."))
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append("name")
    return tuple(path)


def _mistake(
    path: tuple[str, ...], details: list[ErrorDetails], data: Mapping[str, Any], model: type[BaseModel]
) -> Mistake:
    first = details[0]
    context = first.get("ctx", {})
    cause = context.get("error")
    key = ".".join(step if step.isprintable() else repr(step) for step in path)
    if isinstance(cause, KeyedError):
        return Mistake(key, cause.found, cause.expected)
    if first["type"] == "extra_forbidden":
        return Mistake(key, "an unknown key", nearest(path[-1], section_at(path[:-1], data, model).model_fields))
    if first["type"] == "missing":
        field = section_at(path[:-1], data, model).model_fields.get(path[-1])
        return Mistake(key, "nothing", (field and field.description) or "a value")
    if first["type"].startswith("union_tag"):
        name = first["input"].get("name", "nothing")
        field = section_at(path[:-2], data, model).model_fields[path[-2]]
        known = [str(word) for one in _models(field.annotation) for word in _names(one)]
        return Mistake(key, name if name == "nothing" else show(name), nearest(str(name), known))
    allowed = dict.fromkeys(_allowed(detail) for detail in details)
    return Mistake(key, show(first["input"]), " or ".join(allowed))


def _allowed(detail: ErrorDetails) -> str:
    template = ALLOWED.get(detail["type"])
    return template.format(**detail.get("ctx", {})) if template else detail["msg"]


def section_at(path: Iterable[str], data: Any, model: type[BaseModel]) -> type[BaseModel]:
    """The model class of the section at ``path``; a section chosen by its name is looked up in ``data``."""
    for step in path:
        data = data.get(step) if isinstance(data, Mapping) else None
        field = model.model_fields.get(step)
        choices = _models(field.annotation) if field else []
        name = data.get("name") if isinstance(data, Mapping) else None
        named = [choice for choice in choices if name in _names(choice)]
        if not choices:
            return model
        model = (named or choices)[0]
    return model


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _names(model: type[BaseModel]) -> tuple[Any, ...]:
    """The names by which a section is chosen, such as ("dirichlet",)."""
    field = model.model_fields.get("name")
    return get_args(field.annotation) if field else ()
