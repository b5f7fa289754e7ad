"""Signs of life: a rank ends itself when another one has failed, is gone, or has been silent for too long.

Time is counted in the turns of each process's own loop, never by comparing clocks. So a process that was stopped, or
slept with its machine, has counted nothing meanwhile and does not take the others for dead when it wakes.
"""

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

from torch.distributed.distributed_c10d import Store

POLL_SECONDS = 0.5
BEAT_SECONDS = 5.0
# Long enough for a rank that is stopped for a minute or two, or that holds Python's lock in one long call.
SILENCE_SECONDS = 300.0
FAILURE_KEY = "failure"


class Signs:
    """How many rounds each rank's counter has stood still."""

    def __init__(self) -> None:
        self._last: dict[int, bytes] = {}
        self._still: dict[int, int] = {}

    def hear(self, signs: Mapping[int, bytes]) -> dict[int, int]:
        """Take one round of counters and return, per rank, for how many rounds its own has been the same."""
        for rank, sign in signs.items():
            self._still[rank] = self._still[rank] + 1 if self._last.get(rank) == sign else 0
            self._last[rank] = sign
        return self._still


class Watch:
    """Two threads beside the training: one talks to the store, which may not answer, and one notices when it does not.

    Rank 0 listens to all ranks and the others to rank 0, so that the traffic grows with the number of ranks only.
    ``keeper``: who keeps the store, for messages.
    """

    def __init__(self, rank: int, store: Store, keeper: str) -> None:
        self._rank = rank
        self._store = store
        self._keeper = keeper
        self._ending = threading.Event()
        self._unanswered = 0
        self._hosts: dict[int, str] = {}
        self._signs = Signs()
        store.set(_beat_key(rank), "0")
        # A connection of its own: a blocked call holds the lock of the one it uses.
        threading.Thread(target=self._talk, args=(store.clone(),), daemon=True).start()
        threading.Thread(target=self._judge, daemon=True).start()

    def follow(self, hosts: list[str]) -> None:
        """Expect signs of life from now on; ``hosts``: of every rank its host."""
        self._hosts = followed(self._rank, hosts)

    def stop(self) -> None:
        """Look away: all ranks have come to their end."""
        self._ending.set()

    def end_all(self, tell: Callable[[], None], code: int, store: Store | None = None) -> NoReturn:
        """End this process and thereby every rank: the first to fail tells its cause, the others follow silently."""
        # Or this rank's own thread would read the failure and end it with another code.
        self.stop()
        winner = str(self._rank).encode()
        first = winner
        with contextlib.suppress(RuntimeError):
            first = (store or self._store).compare_set(FAILURE_KEY, "", str(self._rank))
        if first == winner:
            tell()
            sys.stderr.flush()
        self._let_others_read(is_first=first == winner)
        os._exit(code)

    def _let_others_read(self, *, is_first: bool = False) -> None:
        """Wait where others would lose the failure with this rank: the first to fail, and rank 0 with its store."""
        if is_first or self._rank == 0:
            time.sleep(2 * POLL_SECONDS)

    def _talk(self, store: Store) -> None:
        turns_per_beat = round(BEAT_SECONDS / POLL_SECONDS)
        for turn in itertools.count():
            if self._ending.wait(POLL_SECONDS):
                return
            try:
                if store.check([FAILURE_KEY]):
                    self._let_others_read()
                    _end()
                if turn % turns_per_beat == 0:
                    self._beat(store, turn)
            except RuntimeError:
                # At a normal end rank 0 may close the store a moment before this rank is told to end.
                if self._ending.wait(2.0):
                    return
                _end(f"rank {self._rank}: {self._keeper} is gone")
            self._unanswered = 0

    def _beat(self, store: Store, sign: int) -> None:
        """Give a sign of life, and look at those of others."""
        store.set(_beat_key(self._rank), str(sign))
        hosts = self._hosts
        if not hosts:
            return
        signs = store.multi_get([_beat_key(rank) for rank in hosts])
        silent = [
            rank
            for rank, rounds in self._signs.hear(dict(zip(hosts, signs, strict=True))).items()
            if rounds * BEAT_SECONDS >= SILENCE_SECONDS
        ]
        if silent:
            who = ", ".join(f"rank {rank} on {hosts[rank]}" for rank in silent)
            self.end_all(lambda: print(_silence(who), file=sys.stderr), 1, store)

    def _judge(self) -> None:
        while not self._ending.wait(POLL_SECONDS):
            self._unanswered += 1
            if self._unanswered * POLL_SECONDS >= SILENCE_SECONDS:
                _end(f"rank {self._rank}: {_silence(self._keeper)}")


def followed(rank: int, hosts: list[str]) -> dict[int, str]:
    """The ranks whose signs of life this one looks for, with their hosts."""
    return {other: host for other, host in enumerate(hosts) if (other == 0) != (rank == 0)}


def _beat_key(rank: int) -> str:
    return f"beat/{rank}"


def _silence(who: str) -> str:
    return f"{who} has given no sign of life for {SILENCE_SECONDS:g} seconds: it is stopped, or its host hangs"


def _end(line: str | None = None) -> NoReturn:
    if line is not None:
        print(line, file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
