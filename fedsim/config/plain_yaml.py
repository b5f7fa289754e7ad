"""YAML as configs use it: plain data only, no surprises; reading a file, ``key=value`` overrides, writing.

PyYAML follows YAML 1.1, where 1e-3 is a text, 1:30 is 90, 010 is 8, no is false, 2026-01-01 is a date. Here
scalars follow the core schema of YAML 1.2. Foreign tags, aliases, duplicate keys and keys that are no texts
are refused.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from fedsim.config.mistakes import show
from fedsim.errors import UserError

MAX_BYTES = 1_000_000
MAX_DIGITS = 100
COMMAND_LINE = "command line"
SCHEMA_VERSION = "https://json-schema.org/draft/2020-12/schema"
TAG = "tag:yaml.org,2002:"
NUMBER = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
SCALARS = {
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    "float": (re.compile(rf"^(?:{NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"), list("-+.0123456789")),
}


class ConfigLoader(yaml.SafeLoader):
    """Scalars of the YAML 1.2 core schema, lists, and mappings with distinct text keys; nothing else."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases: they can make a small file expand without bound, or contain itself."""
        if self.check_event(yaml.AliasEvent):
            event: Any = self.get_event()  # type: ignore[no-untyped-call]  # yaml has no types here
            raise ConstructorError(None, None, "an alias (*name)", event.start_mark)
        return super().compose_node(parent, index)


class ConfigDumper(yaml.SafeDumper):
    """Quotes a text that either YAML 1.1 or the loader above would read as something else."""


def _mapping(loader: ConfigLoader, node: yaml.MappingNode) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise ConstructorError(None, None, f"the key {show(key)}, which is no text", key_node.start_mark)
        if key in result:
            raise ConstructorError(None, None, f"the key {key!r} twice", key_node.start_mark)
        result[key] = loader.construct_object(value_node, deep=True)
    return result


def _sequence(loader: ConfigLoader, node: yaml.SequenceNode) -> list[Any]:
    return [loader.construct_object(item, deep=True) for item in node.value]


def _scalar(loader: ConfigLoader, node: yaml.ScalarNode) -> Any:
    kind, text = node.tag.removeprefix(TAG), str(loader.construct_scalar(node))
    if kind == "str":
        return text
    if not SCALARS[kind][0].match(text):
        raise ConstructorError(None, None, f"{show(text)} tagged as {kind}", node.start_mark)
    if kind == "int":
        if len(text) > MAX_DIGITS:
            raise ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
        return int(text)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text.lower() == "true" if kind == "bool" else None


def _foreign(loader: ConfigLoader, node: yaml.Node) -> None:
    del loader
    raise ConstructorError(None, None, f"the tag {node.tag}", node.start_mark)


ConfigLoader.yaml_implicit_resolvers = {}
ConfigLoader.yaml_constructors = {}
for _kind, (_pattern, _first) in SCALARS.items():
    ConfigLoader.add_implicit_resolver(TAG + _kind, _pattern, _first)
    ConfigDumper.add_implicit_resolver(TAG + _kind, _pattern, _first)
for _kind in (*SCALARS, "str"):
    ConfigLoader.add_constructor(TAG + _kind, _scalar)
ConfigLoader.add_constructor(TAG + "map", _mapping)
ConfigLoader.add_constructor(TAG + "seq", _sequence)
ConfigLoader.add_constructor(None, _foreign)


def parse(text: str, where: str) -> Any:
    """The data in a YAML text; UserError with line and column where it is no plain YAML."""
    try:
        return yaml.load(text, ConfigLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = str(error.problem or error.context).removeprefix("found ")
        raise UserError(where, problem + position, "plain YAML (spaces, no tabs)") from None
    except yaml.YAMLError as error:
        raise UserError(where, " ".join(str(error).split()), "plain YAML") from None
    except RecursionError:
        raise UserError(where, "brackets nested too deeply", "plain YAML") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """The top-level mapping of a YAML file; UserError where there is none, with the nearest existing file."""
    where = str(path)
    require_file(path, where)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(where, f"{size} bytes", f"a config of at most {MAX_BYTES} bytes")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(where, f"an unreadable file ({error.strerror})", "a readable YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(where, f"no UTF-8 text (byte {error.start})", "a YAML file") from None
    data = parse(text, where)
    if data is None:
        raise UserError(where, "no keys", "a mapping of keys to values")
    if not isinstance(data, dict):
        raise UserError(where, f"a {type(data).__name__} at the top", "a mapping of keys to values")
    return data


def require_file(path: Path, where: str, *, folder: bool = False) -> None:
    """UserError unless ``path`` is a regular file (or a folder); names the nearest one beside it."""
    kind, fits = ("folder", Path.is_dir) if folder else ("file", Path.is_file)
    try:
        if fits(path):
            return
        exists = path.exists()
        beside = [other.name for other in path.parent.iterdir() if fits(other)] if path.parent.is_dir() else []
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise UserError(where, f"{show(str(path))} ({error})", f"a {kind} that exists") from None
    if exists:
        raise UserError(where, f"{show(str(path))}, which is no {kind}", f"a {kind}")
    close = get_close_matches(path.name, beside, n=1, cutoff=0.5)
    hint = f", such as {path.parent / close[0]}" if close else ""
    raise UserError(where, f"no {kind} {show(str(path))}", f"a {kind} that exists{hint}")


def apply_override(data: dict[str, Any], override: str) -> str:
    """Set one ``dotted.key=value`` inside ``data``, the last one winning; returns the dotted key."""
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts) or key.strip() != key:
        raise UserError(COMMAND_LINE, show(override), "key=value, such as train.lr=1e-3")
    where = f"{COMMAND_LINE}: {key}"
    if not text.strip():
        raise UserError(where, "nothing after =", "a value; null for none")
    value = parse(text, where)
    section = data
    for depth, part in enumerate(parts[:-1], start=1):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise UserError(where, f"{show(section)} at {'.'.join(parts[:depth])}", "a section there")
    section[parts[-1]] = value
    return key


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Apply all overrides in order; returns their dotted keys, to tell whose mistake a mistake is."""
    return [apply_override(data, override) for override in overrides]


def to_yaml(data: dict[str, Any]) -> str:
    """Plain data as YAML text that ``parse`` reads back to equal data."""
    text: str = yaml.dump(data, Dumper=ConfigDumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def flatten(data: Mapping[Any, Any], separator: str) -> dict[str, Any]:
    """Nested mappings as one level, their keys joined."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        inner = flatten(value, separator) if isinstance(value, Mapping) and value else {"": value}
        flat |= {separator.join(filter(None, (str(key), name))): leaf for name, leaf in inner.items()}
    return flat
