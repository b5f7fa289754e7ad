"""What a round leaves in the log. Everything but the timing is a function of the config alone."""

import time
from collections.abc import Sequence
from typing import Any

from algorithms.base import TRAINED_KINDS, Phase, ServerState
from fedsim.cohort import Cohort
from fedsim.diagnostics import client_drift, lora_diagnostics
from fedsim.distill import Step
from fedsim.figures import ClientFigures
from fedsim.phase import Outcome, of_parameters
from fedsim.simulation import Simulation


class RoundRecord:
    """A round's ``row`` for metrics.jsonl, ``client_rows`` for clients.jsonl and ``timing`` for timings.jsonl."""

    def __init__(self, sim: Simulation, round: int) -> None:
        self._sim = sim
        self._started = time.perf_counter()
        self._wire = (sim.group.bytes_sent, sim.group.bytes_received)
        self._known = frozenset(sim.store.holder)
        self._losses: list[float] = []
        self._changed_kinds = TRAINED_KINDS | {"proxy"}
        self.row: dict[str, Any] = {"round": round, "train_loss": None}
        self.row |= {"val": None, "test": None, "bytes_up": 0, "bytes_down": 0, "diagnostics": {}}
        self.client_rows: list[dict[str, Any]] = []
        self.timing: dict[str, Any] = {"round": round, "phases": []}

    def add_phase(
        self, phase: Phase, cohort: Cohort, before: ServerState, after: ServerState, outcome: Outcome
    ) -> None:
        """Take in a phase: ``before`` and ``after`` are the server's states around it."""
        row = self.row
        self._losses.append(float((cohort.weights * outcome.losses).sum()))
        row["train_loss"] = sum(self._losses) / len(self._losses)
        row["bytes_up"] += outcome.bytes_up
        row["bytes_down"] += self._bytes_down(before, after, cohort, outcome)
        # A phase that sends nothing leaves the server nothing new to give.
        self._changed_kinds = phase.kinds if outcome.bytes_up else frozenset()
        diagnostics: dict[str, Any] = {"below_grid": outcome.below_grid} if outcome.bytes_up else {}
        if mean_delta := of_parameters(self._sim, outcome.aggregate.mean):
            diagnostics["client_drift"] = client_drift(outcome.squared_norm, mean_delta)
        if outcome.gathered:
            diagnostics |= lora_diagnostics(outcome.gathered, before.params, cohort.weights)
        diagnostics |= self._sim.algorithm.diagnostics(after, outcome.aggregate)
        row["diagnostics"][phase.name] = diagnostics
        for client, weight, loss in zip(cohort.clients, cohort.weights.tolist(), outcome.losses.tolist(), strict=True):
            self.client_rows.append(
                {
                    "round": row["round"],
                    "phase": phase.name,
                    "client": client,
                    "n": self._sim.sizes[client],
                    "weight": weight,
                    "train_loss": loss,
                }
            )
        seconds = dict(zip(cohort.clients, outcome.seconds.tolist(), strict=True))
        self.timing["phases"].append({"name": phase.name, "train_seconds_per_client": seconds})

    def _bytes_down(self, before: ServerState, after: ServerState, cohort: Cohort, outcome: Outcome) -> int:
        """Bytes that the server sends all clients of a phase.

        Each gets what the method trains and the cut parts of a sub-model at a round's start, then what the last phase
        changed; or the aggregate, and before that, in its first round, the whole model.
        """
        if self._sim.algorithm.returns_aggregate:
            newcomers = set(cohort.clients) - self._known
            self._known |= newcomers
            return outcome.bytes_up + len(newcomers) * sum(value.nbytes for value in before.params.values())
        specs = self._sim.held.specs
        changed = {name: after.params[name] for name in specs if specs[name].kind in self._changed_kinds}
        given = [value for name, value in changed.items() if specs[name].kind == "proxy"]
        received = [*self._sim.algorithm.sent(changed).values(), *given]
        return len(cohort.clients) * sum(value.nbytes for value in received)

    def add_figures(self, figures: ClientFigures) -> None:
        """Take in the clients' own figures, the last phase's rows with them."""
        rows = figures.rows()
        for row, own in zip(self.client_rows[-len(rows) :], rows, strict=True):
            row |= own
        self.row["diagnostics"] |= figures.diagnostics()

    def add_alignment(self, steps: Sequence[Step], seconds: float) -> None:
        """Take in an alignment of the sub-model."""
        first, last = steps[0].loss, steps[-1].loss
        self.row["diagnostics"]["alignment"] = {"steps": len(steps), "first_loss": first, "last_loss": last}
        self.timing["alignment_seconds"] = seconds

    def measure(self, metrics: dict[str, dict[str, float]]) -> None:
        """Take in the round's evaluation."""
        self.row |= metrics

    def close(self) -> None:
        """Stop the clock."""
        group = self._sim.group
        self.timing["seconds"] = time.perf_counter() - self._started
        self.timing["wire_bytes_sent"] = group.bytes_sent - self._wire[0]
        self.timing["wire_bytes_received"] = group.bytes_received - self._wire[1]
