"""What a run folder names is not run: somebody else may have written it, and to find code is to import its module.

A config on the command line is the user's own, and may name a method, a data set and a model by their import paths, as
long as these do not lead into the run folder itself. Both limits go with ``--trust``.
"""

import contextlib
import sys
from collections.abc import Collection, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from fedsim.catalogue.data import import_data
from fedsim.catalogue.functions import is_import_path
from fedsim.config.data import DataConfig
from fedsim.config.distill import DistillConfig, load_distill_config
from fedsim.config.experiment import Config
from fedsim.config.mistakes import show
from fedsim.configure import load_config, load_data, load_distillation, own_names
from fedsim.errors import UserError
from fedsim.runfolder.place import default_folder


def load_own(file: Path, overrides: Sequence[str], out: Path | None = None, *, trust: bool = False) -> Config:
    """Read the config that the user gives; code of the user's is found beside it, in the current folder, on PYTHONPATH.

    UserError where that lies in the run folder, ``out`` or what ``run`` takes without it, without ``trust``.
    """
    config = load_config(file, overrides, imports=False)
    if not own_names(config):
        return config
    with importing([file.parent, Path.cwd()], None if trust else out or default_folder(config.name)):
        return load_config(file, overrides)


def load_own_distillation(file: Path, overrides: Sequence[str], out: Path | None = None) -> DistillConfig:
    """Read the config of a distillation that the user gives, as ``load_own`` does."""
    config = load_distill_config(file, overrides)
    if not own_names(config):
        return config
    with importing([file.parent, Path.cwd()], out or default_folder(config.name)):
        return load_distillation(file, overrides)


def load_recorded(file: Path, *, trust: bool = False, known: Collection[str] = ()) -> Config:
    """Read the config that a run folder holds.

    UserError where it names code by its import path, without ``trust``, but for names that are ``known``: imported.
    """
    config = load_config(file, imports=False)
    own = own_names(config)
    if not own:
        return config
    unknown = {key: name for key, name in own.items() if name not in known}
    if unknown and not trust:
        key, name = next(iter(unknown.items()))
        raise UserError(f"{file}: {key}", f"{show(name)}, code that the run folder names", "--trust to import it")
    with importing([Path.cwd()], None):
        return load_config(file)


def load_outside_data(file: Path, like: DataConfig, run_dir: Path, *, trust: bool = False) -> DataConfig:
    """Read which set the user wants a run measured on; code of the user's is found as by ``load_own``."""
    words = load_data(file, like)
    if is_import_path(words.name):
        with importing([file.parent, Path.cwd()], None if trust else run_dir):
            import_data(words.name)
    return words


@contextlib.contextmanager
def importing(places: Sequence[Path], forbidden: Path | None) -> Iterator[None]:
    """Let the user's own modules be found in ``places`` too, from here on, but none in the folder ``forbidden``.

    Inside the ``with`` UserError for an import from there, wherever else the path to it comes from.
    """
    for place in map(str, places):
        if place not in sys.path and (forbidden is None or not _is_inside(Path(place), forbidden)):
            sys.path.append(place)
    if forbidden is None:
        yield
        return
    guard = _Guard(forbidden)
    sys.meta_path.insert(0, guard)
    try:
        yield
    finally:
        sys.meta_path.remove(guard)


class _Guard:
    """Finds nothing itself, but looks at what would be found, before any of it runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            origins = [spec.origin] if spec.has_location else []
            for place in [*origins, *(spec.submodule_search_locations or [])]:
                if place is not None and _is_inside(Path(place), self._folder):
                    raise UserError(f"module {name}", f"{place}, in the run folder", "--trust to run code from there")
        return None


def _is_inside(place: Path, folder: Path) -> bool:
    """Whether a path leads into a folder, or from it elsewhere by a link."""
    inner, outer = (path.resolve() for path in (place, folder))
    return inner.is_relative_to(outer) or (place.parent.resolve() / place.name).is_relative_to(outer)
