"""``launch.py watch``: a run that goes on somewhere else, from its folder alone."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.live import Live

from fedsim.errors import UserError
from fedsim.machine.files import naming_files
from fedsim.machine.output import showing
from fedsim.runfolder.lock import STILL_SECONDS
from fedsim.verbs.watch.looking import Look, Watcher
from fedsim.verbs.watch.view import WIDTH, view

LOOK_SECONDS = 2.0


def watch(folder: Path, *, once: bool) -> bool:
    """Show a run until it ends, or ``once``, and return whether it is at work or has come to its end.

    UserError for a folder that is no run's, and for a live view that no terminal shows.
    """
    console = Console(highlight=False)
    if not (once or console.is_terminal):
        raise UserError("watch", "no terminal to draw on", "a terminal, or --once for a file or a pipe")
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    watcher = Watcher(folder)
    with naming_files(folder), showing():
        if once:
            look = watcher.look()
            console.print(view(look, console))
            return not look.is_lost
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            last = follow(watcher, lambda look: live.update(view(look, console), refresh=True))
    return not last.is_lost


def follow(watcher: Watcher, show: Callable[[Look], object]) -> Look:
    """Show one look after the other, and return the last one.

    A run that is lost without a word may only look so: another machine's files come late, and a job may start again.
    """
    look, lost_since = watcher.look(), None
    while True:
        show(look)
        now = time.monotonic()
        lost_since = (lost_since or now) if look.is_lost else None
        if look.has_ended or look.cause or (lost_since and now - lost_since >= STILL_SECONDS):
            return look
        time.sleep(LOOK_SECONDS)
        try:
            look = watcher.look()
        except OSError as error:  # a shared file system that hiccups; a folder that is gone is another matter
            if not watcher.folder.is_dir():
                raise
            look = replace(look, troubles=[f"cannot be read at this moment: {error.strerror or error}"])
