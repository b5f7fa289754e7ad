"""``launch.py import``: what it is asked, handed to the importer."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedsim.errors import one_line
from fedsim.machine.output import showing


def import_set(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="DICOM, NIfTI, PNG, TIFF and JPEG files, in any folders.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the set that is made; an import that ended early goes on.")],
    labels: Annotated[
        Path | None, typer.Option(help="CSV: path, and any of label, site, patient, split; only its files are taken.")
    ] = None,
    window: Annotated[
        str, typer.Option(help="file, a name such as lung, CENTRE/WIDTH, LOW%-HIGH%, or file,OTHER.")
    ] = "file",
    size: Annotated[
        int | None, typer.Option(min=8, max=4096, help="Longest that a picture's shorter side may be.")
    ] = None,
    bits: Annotated[Literal["8", "16"], typer.Option(help="Of grey pictures; 16 is for other programs.")] = "8",
    volumes: Annotated[
        Literal["slices", "slabs", "whole"], typer.Option(help="What becomes of several frames.")
    ] = "slices",
    slices: Annotated[int, typer.Option(min=1, help="Slices or slabs of a volume, evenly spaced.")] = 8,
    salt: Annotated[
        Path | None, typer.Option(help="File with the secret of the pseudonyms; <out>.salt if not given.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes at work.")] = 2,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be read.")] = False,
) -> None:
    """Make a set, with a manifest, of a folder of clinical files."""
    from fedsim.data.clinic.importer import Order, import_folder  # late: other verbs need none of it
    from fedsim.data.clinic.render import Settings

    settings = Settings(window, 16 if bits == "16" else 8, volumes, slices, size)
    order = Order(folder, out, settings, labels, salt, processes, skip_bad)
    said = import_folder(order, lambda text: print(text, file=sys.stderr, flush=True))
    with showing():
        print(one_line(said))
