"""``launch.py cache``: what the cache holds of downloads and prepared files, and how to be rid of it."""

from typing import Annotated

import typer

from fedsim.errors import UserError
from fedsim.machine.cache import cache_root, cached, clear
from fedsim.machine.output import show_rows
from fedsim.verbs.command_line import IS_FIRST_RANK

MIB = 2**20
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="What names begin with; all if none.")]
Clear = Annotated[bool, typer.Option("--clear", help="Remove what is listed; it is made anew where it is needed.")]


def cache(names: Names = None, remove: Clear = False) -> None:
    """List downloads and prepared files, or remove them."""
    found = [folder for folder in cached() if not names or folder.path.name.startswith(tuple(names))]
    for name in names or []:
        if not any(folder.path.name.startswith(name) for folder in found):
            raise UserError(name, f"nothing of that name in {cache_root()}", "a name that launch.py cache shows")
    if not IS_FIRST_RANK:
        return
    rows = [(folder.path.name, f"{folder.num_bytes / MIB:.1f} MiB") for folder in found]
    total = sum(folder.num_bytes for folder in found) / MIB
    if remove:
        for folder in found:
            clear(folder.path)
    show_rows([*rows, (f"{'removed from' if remove else 'in'} {cache_root()}", f"{total:.1f} MiB")])
