"""What a round leaves in the log. Everything but the timing is a function of the config alone."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from torch import Tensor

from fedsim.algorithms.base import Aggregate, Phase, ServerState
from fedsim.distill.distiller import Step
from fedsim.measure.client_scores import ClientScores
from fedsim.measure.diagnostics import client_drift, lora_diagnostics
from fedsim.measure.traffic import told_to_client, whole_model
from fedsim.phase import Observed, drifting
from fedsim.schedule.cohort import Cohort, num_local_steps
from fedsim.schedule.ranks import lower_bound
from fedsim.simulation import Simulation

#: Sums over a round's clients, from which follows how many and of which kind these are.
SUMS = ("bytes_up", "bytes_down", "client_steps")
#: Bytes between ranks, in timings.jsonl.
WIRE = ("wire_bytes_sent", "wire_bytes_received")
#: What no server could know of clients that are protected; null, empty or not there without ``privacy.observe``.
SIMULATION_ONLY = ("train_loss", *SUMS, "diagnostics", "clients.jsonl", "timings.jsonl")


class RoundRecord:
    """A round's ``row`` for metrics.jsonl, ``client_rows`` for clients.jsonl and ``timing`` for timings.jsonl."""

    def __init__(self, sim: Simulation, round: int) -> None:
        self._sim = sim
        self._started = time.perf_counter()
        self._wire = (sim.group.bytes_sent, sim.group.bytes_received)
        self._known_clients = frozenset(sim.store.holder)
        self._known_params: dict[str, Tensor] = {}
        self._losses: list[float] = []
        self._diverged: set[int] = set()
        self._observes = sim.config.observes
        self.row: dict[str, Any] = {"round": round, "train_loss": None, "val": None, "test": None}
        self.row |= {**dict.fromkeys(SUMS, 0 if self._observes else None), "diagnostics": {}}
        if sim.config.privacy is not None and self._observes:
            self.row["simulation_only"] = list(SIMULATION_ONLY)
        self.client_rows: list[dict[str, Any]] = []
        self.timing: dict[str, Any] = {"round": round, "phases": []}

    def add_phase(
        self,
        phase: Phase,
        cohort: Cohort,
        before: ServerState,
        after: ServerState,
        released: Aggregate,
        observed: Observed,
    ) -> None:
        """Take in a phase: ``before`` and ``after`` are the server's states around it."""
        self.timing["phases"].append({"name": phase.name})
        own = self._sim.algorithm.diagnostics(after, released)
        seen = self._observe(phase, cohort, before, after, released, observed) if self._observes else {}
        self.row["diagnostics"][phase.name] = {**seen, **own}

    def _observe(
        self,
        phase: Phase,
        cohort: Cohort,
        before: ServerState,
        after: ServerState,
        released: Aggregate,
        observed: Observed,
    ) -> dict[str, Any]:
        """Take in what tells of the cohort, and return the diagnostics that do."""
        row, method = self.row, self._sim.algorithm
        if cohort.clients:
            weights, losses = cohort.weights, observed.losses
            if observed.diverged:
                weights, losses = cohort.weights_among(released.clients), losses.nan_to_num(0.0)
            self._losses.append(float((weights * losses).sum()))
            row["train_loss"] = sum(self._losses) / len(self._losses)
        if self._sim.config.clients.max_diverged:
            self._diverged |= set(observed.diverged)
            row["diverged"] = len(self._diverged)
        bytes_up = observed.sent.of_all(cohort.clients, method.facts.ranks)
        row["bytes_up"] += bytes_up
        row["bytes_down"] += self._bytes_down(before, cohort, bytes_up, observed)
        steps = (num_local_steps(self._sim.config.train, self._sim.sizes[client]) for client in cohort.clients)
        row["client_steps"] += phase.models * sum(steps)
        diagnostics: dict[str, Any] = {"below_grid": observed.below_grid} if bytes_up else {}
        change = drifting(released.mean, method.specs)
        if change:
            mean_square = float((cohort.weights_among(released.clients) * observed.squared_norms).sum())
            diagnostics["client_drift"] = client_drift(mean_square, change)
        if observed.factors.layers:
            diagnostics |= lora_diagnostics(observed.factors, before.params, after.params, change)
        arrived = set(released.clients)
        rows = zip(cohort.clients, cohort.weights.tolist(), observed.losses.tolist(), strict=True)
        for client, weight, loss in rows:
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
            if client in observed.diverged:
                self.client_rows[-1] |= {"train_loss": None, "diverged": True}
            elif client not in arrived:
                self.client_rows[-1]["lost"] = True
        seconds = dict(zip(cohort.clients, observed.seconds.tolist(), strict=True))
        self.timing["phases"][-1]["train_seconds_per_client"] = seconds
        if observed.secured is not None:
            self.timing["phases"][-1]["secure_aggregation"] = asdict(observed.secured)
        return diagnostics

    def add_schedule(self, plan: Sequence[Sequence[range]], observed: Observed) -> None:
        """Take in how well a phase's blocks were shared out, in measured seconds; ``plan``: each rank's blocks.

        ``makespan``: of the rank that was at work longest; ``lower_bound``: what no plan for these blocks is below.
        """
        if not self._observes:
            return
        seconds, blocks = observed.seconds, [block for own in plan for block in own]
        costs = {block: float(seconds[block.start : block.stop].sum()) for block in blocks}
        works = [first + sum(costs[block] for block in own) for first, own in zip(observed.busy, plan, strict=True)]
        self.timing["phases"][-1] |= {
            "makespan": max(works),
            "lower_bound": lower_bound(list(costs.values()), observed.busy),
        }

    def _bytes_down(self, before: ServerState, cohort: Cohort, bytes_up: int, observed: Observed) -> int:
        """Bytes that the server sends all clients of a phase.

        Each gets what the method shares of the server's parameters, at a round's start all and then what has changed,
        and the phase's context; or the aggregate, and before that, in its first round, the whole model.
        """
        method = self._sim.algorithm
        if method.returns_aggregate:
            newcomers = set(cohort.clients) - self._known_clients
            self._known_clients |= newcomers
            return bytes_up + whole_model(before.params, method.specs).of_all(sorted(newcomers), method.facts.ranks)
        told = told_to_client(method, before.params, self._known_params, observed.context)
        self._known_params = before.params
        return told.of_all(cohort.clients, method.facts.ranks)

    def add_scores(self, scores: ClientScores) -> None:
        """Take in the clients' own scores, with the last phase's rows."""
        rows = scores.rows()
        for row, own in zip(self.client_rows[-len(rows) :] if rows else [], rows, strict=True):
            row |= own
        self.row["diagnostics"] |= scores.diagnostics()

    def add_alignment(self, steps: Sequence[Step], seconds: float) -> None:
        """Take in an alignment of the sub-model."""
        first, last = steps[0].loss, steps[-1].loss
        self.row["diagnostics"]["alignment"] = {"steps": len(steps), "first_loss": first, "last_loss": last}
        self.timing["alignment_seconds"] = seconds

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Take the time of an evaluation."""
        started = time.perf_counter()
        yield
        self.timing["evaluation_seconds"] = time.perf_counter() - started

    def measure(self, metrics: dict[str, dict[str, float]], chosen: Mapping[str, int]) -> None:
        """Take in the round's evaluation, and what validation chose of the method's models."""
        self.row |= metrics
        self.row["diagnostics"] |= chosen

    def close(self) -> None:
        """Stop the clock."""
        group = self._sim.group
        self.timing["seconds"] = time.perf_counter() - self._started
        wire = (group.bytes_sent - self._wire[0], group.bytes_received - self._wire[1])
        # A client of the cohort adds to what ranks tell each other.
        self.timing |= dict(zip(WIRE, wire if self._observes else (None, None), strict=True))
