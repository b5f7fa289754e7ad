"""Configs as earlier versions of fedsim have written them."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import TypeAdapter

from fedsim.config.base import Words
from fedsim.config.experiment import Config

PLAIN = (bool, int, float, str, tuple, dict, Words)
_JSON = TypeAdapter(Any)


def completed(words: Mapping[str, Any], section: type[Words] = Config) -> dict[str, Any]:
    """Return the words of a recorded config, or of a section, with the default of each key that there was not yet."""
    found = dict(words)
    for key, field in section.model_fields.items():
        if key not in found and isinstance(field.default, PLAIN):
            found[key] = _JSON.dump_python(field.default, mode="json")
        elif isinstance(found.get(key), dict) and (own := _of_name(field.annotation, found[key].get("name"))):
            found[key] = completed(found[key], own)
    return found


def _of_name(annotation: Any, name: object) -> type[Words] | None:
    """Return the section that a key takes; of several the one that is called by its name."""
    kinds = list(_sections(annotation))
    if len(kinds) > 1:
        kinds = [kind for kind in kinds if name in get_args(kind.model_fields["name"].annotation)]
    return kinds[0] if kinds else None


def _sections(annotation: Any) -> Iterator[type[Words]]:
    if isinstance(annotation, type) and issubclass(annotation, Words):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)
