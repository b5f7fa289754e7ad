"""What a run folder says at one moment, and whether somebody is at work in it."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.config.plain_yaml import read_mapping
from fedsim.errors import UserError
from fedsim.runfolder.lock import STILL_SECONDS, last_sign
from fedsim.runfolder.messages import ENDED, last_messages
from fedsim.verbs.watch.tail import Row, Tail

#: How far from its end the table of clients is read: the last round's rows are wanted.
MOST_BYTES = 4_000_000
#: A round that takes so many times the usual is worth a word.
SLOW = 5.0
RECENT = 10


@dataclass(frozen=True)
class Look:
    """One look. ``clients``: rows of the last round that has some. ``holder``: who is at work, None for nobody.

    ``silent``: seconds since the holder's last sign; ``since_round``: since the last round's end, None before the
    first. ``results``: what the run has left at its end. ``messages``: its last lines; ``troubles``: what cannot be
    read.
    """

    folder: Path
    words: dict[str, Any]
    rounds: list[Row]
    timings: list[Row]
    clients: list[Row]
    results: dict[str, Any] | None
    holder: str | None
    silent: float
    since_round: float | None
    messages: list[str]
    troubles: list[str] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        """Whether the run has come to its end."""
        return self.results is not None

    @property
    def is_lost(self) -> bool:
        """Whether the run is over without having come to its end, as far as one can see from outside."""
        return not self.has_ended and (self.holder is None or self.silent > STILL_SECONDS)

    @property
    def cause(self) -> str | None:
        """What ended the run before its time, where it could still say so."""
        last = self.messages[-1].partition(" ")[2] if self.messages else ""
        return last.removeprefix(ENDED) if self.is_lost and last.startswith(ENDED) else None

    @property
    def round(self) -> int:
        """The last finished round."""
        return int(self.rounds[-1]["round"]) if self.rounds else 0

    @property
    def num_rounds(self) -> int:
        """Rounds that the config asks for."""
        return int(self.words["rounds"])

    @property
    def seconds_per_round(self) -> float | None:
        """Mean of the last rounds, which are those of this start's machines."""
        recent = [float(row["seconds"]) for row in self.timings[-RECENT:]]
        return sum(recent) / len(recent) if recent else None

    @property
    def seconds_left(self) -> float | None:
        """About how long it takes from now on; None before the first round's end."""
        each, now = self.seconds_per_round, self.since_round or 0.0
        return None if each is None else max(0.0, (self.num_rounds - self.round) * each - min(now, each))

    @property
    def warnings(self) -> list[str]:
        """What a person should know."""
        found = list(self.troubles)
        last = self.rounds[-1] if self.rounds else {}
        if last.get("client_steps") and last.get("train_loss") is None:
            found.append(f"round {self.round}: the training loss is no number")
        if lost := {row["client"] for row in self.clients if row.get("lost")}:
            found.append(f"round {self.round}: messages of {len(lost)} of the clients were lost")
        each = self.seconds_per_round
        if self.holder and not self.has_ended and each and (self.since_round or 0.0) > SLOW * each:
            found.append(f"round {self.round + 1} takes more than {SLOW:g} times the usual")
        return found


class Watcher:
    """Looks at a run folder again and again, and reads what is new."""

    def __init__(self, folder: Path) -> None:
        """UserError for a folder that is not a run's."""
        self.folder = folder
        if not (folder / "config.yaml").is_file():
            found = "no config.yaml in it" if folder.is_dir() else "no folder"
            raise UserError(str(folder), found, "the folder of a run that has begun")
        self._words = read_mapping(folder / "config.yaml")
        if type(self._words.get("rounds")) is not int:
            raise UserError(str(folder / "config.yaml"), "no rounds", "the config of a run")
        self._rounds = Tail(folder / "metrics.jsonl")
        self._timings = Tail(folder / "timings.jsonl")
        self._clients = Tail(folder / "clients.jsonl", MOST_BYTES)
        self._sign, self._round = Moment(), Moment()

    def look(self) -> Look:
        """Read what is new; OSError where the folder is gone or cannot be read."""
        sign = last_sign(self.folder)
        tables = self._rounds, self._timings, self._clients
        rounds, timings, clients = self._rounds.look(), self._timings.look(), self._clients.of_last_round()
        troubles = [table.trouble for table in tables if table.trouble]
        # Results are looked for last: what they are about has been read then.
        results = self._results(troubles)
        ended = None if not timings else self._round.since((self.folder / "timings.jsonl").stat().st_mtime)
        return Look(
            self.folder,
            self._words,
            list(rounds),
            list(timings),
            list(clients),
            results,
            None if sign is None else sign[0],
            0.0 if sign is None else self._sign.since(sign[1]),
            ended,
            last_messages(self.folder),
            troubles,
        )

    def _results(self, troubles: list[str]) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / "results.json").read_bytes())
            if isinstance(found, dict):
                return found
            troubles.append("results.json: no object")
        except FileNotFoundError:
            pass
        except ValueError as error:
            troubles.append(f"results.json: {error}")
        return None


class Moment:
    """How long ago a file was touched. Two machines' clocks may differ, so a change that is seen counts from there."""

    def __init__(self) -> None:
        self._stamp: float | None = None
        self._seen = 0.0

    def since(self, stamp: float) -> float:
        """Return the seconds since ``stamp``, a file's time that each look gives anew."""
        if stamp != self._stamp:
            age = 0.0 if self._stamp is not None else max(0.0, time.time() - stamp)
            self._stamp, self._seen = stamp, time.monotonic() - age
        return time.monotonic() - self._seen
