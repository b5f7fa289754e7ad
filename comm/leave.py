"""Ending a run before its end, in order: what a scheduler asks for by a signal, and how the ranks agree on it.

SLURM sends SIGTERM to a job that is preempted or whose time is up, or what its user chose. A rank that is asked
finishes the block of clients it trains. The ranks agree at their next meeting, which costs one more number there.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

#: The exit code of a run that is to be started again: EX_TEMPFAIL of BSD's sysexits.
LEFT = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class ToldToLeave(BaseException):
    """Every rank raises it at the same place, so that the run ends in order; it is to be resumed, and no error."""


class Leave:
    """What a rank knows of the wish that the run ends soon.

    ``is_asked``: this rank was. ``is_agreed``: all ranks know that one was. ``may_break_off``: whether nothing but the
    running round is lost where it is given up; the same on every rank.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self.is_agreed = False
        self.may_break_off = False

    def ask(self) -> None:
        """Let this rank end soon."""
        self.is_asked = True

    @property
    def breaks_off(self) -> bool:
        """Whether this rank trains no further block of the round."""
        return self.is_asked and self.may_break_off

    def agree(self, is_asked: bool) -> None:
        """Take in whether some rank was asked; every rank calls this alike. ToldToLeave where the round is given up."""
        self.is_agreed |= is_asked
        if self.is_agreed and self.may_break_off:
            raise ToldToLeave


#: Signals that are kept for ``hearing``.
_kept: list[int] = []


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """Keep signals for ``hearing``, which begins inside the ``with``; one that it has not heard ends the process then.

    For the first seconds of a run, in which it loads what it needs and could not answer yet.
    """
    try:
        with _taken(_kept.append):
            yield
    finally:
        if _kept:
            signal.raise_signal(_kept.pop())


@contextlib.contextmanager
def hearing(ask: Callable[[], None]) -> Iterator[None]:
    """Call ``ask`` where a signal would end the process, inside the ``with``, or one was kept."""
    with _taken(lambda _: ask()):
        if _kept:
            _kept.clear()
            ask()
        yield


@contextlib.contextmanager
def _taken(take: Callable[[int], None]) -> Iterator[None]:
    """Hand signals over inside the ``with``. Python hears in its main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # what signal hands over
        take(number)

    before = {number: signal.signal(number, heard) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
