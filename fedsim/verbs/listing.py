"""What ``launch.py list`` shows: rows of a name and a line about it."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from fedsim.catalogue.data import DATA, OWN_DATA
from fedsim.catalogue.models import MODELS, OWN_MODEL

#: In a checkout a link to the folder at its top.
CONFIGS = (Path(__file__).parents[1] / "configs").resolve()
Rows = list[tuple[str, str]]
Listing = Literal["algorithms", "models", "data", "assets", "configs"]

SEARCHES: Rows = [
    (
        "search timm",
        "python -c \"import timm; print(*timm.list_models('vit*dino*', pretrained=True), sep='\\n')\"",
    ),
    ("search open_clip", "python -c \"import open_clip; print(*open_clip.list_models(), sep='\\n')\""),
]


def list_algorithms() -> Rows:
    """The known methods."""
    from fedsim.algorithms import METHODS, resolve

    mine = ("package.module.Class", "your own method, by its import path")
    return [*((name, method.summary) for name, method in ((name, resolve(name)) for name in METHODS)), mine]


def list_models() -> Rows:
    """The forms of a model name, with examples, and how to search for more."""
    return [*((row.name, row.about) for row in (*MODELS.values(), OWN_MODEL)), *SEARCHES]


def list_data() -> Rows:
    """The data sets."""
    return [(row.name, row.about) for row in (*DATA.values(), OWN_DATA)]


def list_assets() -> Rows:
    """The packaged images and weights, with their source and licence."""
    from fedsim.data.assets import ASSETS

    return [(name, f"{asset.requirement}; {asset.source}; {asset.licence}") for name, asset in ASSETS.items()]


def list_configs() -> Rows:
    """The experiments that come with fedsim, by their paths, each with the comment on its first line."""
    files = sorted(CONFIGS.rglob("*.yaml"))
    firsts = [(file.read_text().splitlines() or [""])[0] for file in files]
    here = Path.cwd()
    shown = [file.relative_to(here) if file.is_relative_to(here) else file for file in files]
    return [
        (path.as_posix(), first.lstrip("# ") if first.startswith("#") else "")
        for path, first in zip(shown, firsts, strict=True)
    ]


LISTINGS: dict[str, Callable[[], Rows]] = {
    "algorithms": list_algorithms,
    "models": list_models,
    "data": list_data,
    "assets": list_assets,
    "configs": list_configs,
}
