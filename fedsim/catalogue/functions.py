"""From a row's "module:function", or from the import path of somebody's own, to what it names."""

import importlib
import inspect
from typing import Any

from fedsim.errors import UserError

#: What was imported by these names has moved into fedsim.
MOVED = ("algorithms", "comm")


def function_of(reader: str) -> Any:
    """Return what a row names as "module:function"."""
    module, _, name = reader.partition(":")
    return getattr(importlib.import_module(module), name)


def is_import_path(name: str) -> bool:
    """Whether a method, a data set or a model is named by its import path; a prefix as in timm: is none."""
    return "." in name and ":" not in name


def import_own(key: str, name: str, known: str, thing: str) -> Any:
    """Return what the dotted ``name``, the value of ``key``, leads to.

    ``known`` and ``thing`` are words for an error: what would be accepted, and what the module is to define. UserError
    for a path that leads nowhere, and for a module that ends the program. Whatever else a module raises while it is
    imported is raised here: it is its author's to read.
    """
    *package, last = name.split(".")
    if not package or not all(part and part.isprintable() for part in (*package, last)):
        raise UserError(key, repr(name), known)
    module_name = ".".join(package)
    try:
        module = importlib.import_module(module_name)
    except SystemExit as error:
        ends = f"{name!r}, whose module ends the program (code {error.code})"
        raise UserError(key, ends, f"a module that only defines {thing}") from error
    except ImportError as error:
        if error.name in MOVED:
            old = f"{name!r}, which imports {error.name}"
            raise UserError(key, old, f"fedsim.{error.name} in its place") from error
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks another one
        raise UserError(key, f"{name!r} ({error})", known) from error
    if not hasattr(module, last):
        raise UserError(key, f"{name!r} (no {last} in {module_name})", known)
    return getattr(module, last)


def import_function(key: str, name: str, known: str, thing: str) -> Any:
    """As ``import_own``; UserError also for what cannot be called."""
    found = import_own(key, name, known, thing)
    if not callable(found):
        raise UserError(key, f"{name!r}, which is no function", f"a function that returns {thing}")
    return found


def call_own(key: str, name: str, function: Any, thing: str, *given: object) -> Any:
    """Call the ``function`` that ``name`` led to; UserError where it ends the program, and where it takes others."""
    try:
        inspect.signature(function).bind(*given)
    except TypeError as error:
        taken = ", ".join(type(value).__name__ for value in given)
        raise UserError(key, f"{name!r}, which cannot be called so ({error})", f"a function of ({taken})") from error
    try:
        return function(*given)
    except SystemExit as error:
        ends = f"{name!r}, which ends the program (code {error.code})"
        raise UserError(key, ends, f"a function that returns {thing}") from error
