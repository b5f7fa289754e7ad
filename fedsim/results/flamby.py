"""Runs as rows of FLamby's result files (Ogier du Terrail et al., NeurIPS 2022; flamby/results in its repository)."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from fedsim.errors import UserError
from fedsim.results.comparing import Comparison, labels
from fedsim.results.reading import CLIENTS, UNFINISHED, Results, best_rounds

OWN = "own.after.test."
POOLED = "Pooled Test"
#: FLamby's columns beside Test, Metric, Method and seed, each with the key of the config that says the same.
SETTINGS = {
    "learning_rate": "config.train.lr",
    "optimizer_class": "config.train.optimizer",
    "mu": "config.algorithm.mu",
    "server_learning_rate": "config.algorithm.lr",
    "beta1": "config.algorithm.beta1",
    "beta2": "config.algorithm.beta2",
    "tau": "config.algorithm.tau",
    "deterministic_cycle": "",
}


def flamby(results: Results, found: Sequence[Comparison]) -> str:
    """Return the rows of a table's runs as CSV, of each run's best round.

    A run has a row for the whole test, but for a metric of the clients, and one for every client that has this metric
    on test images of its own. UserError for several tables.
    """
    if len(found) > 1:
        raise UserError(
            "--format flamby", f"{len(found)} tables", "one: its rows name neither a metric nor a value of --per"
        )
    rows = list(rows_of(results, found[0]))
    text: str = pd.DataFrame(rows, columns=["Test", "Metric", "Method", "seed", *SETTINGS]).to_csv(index=False)
    return text


def rows_of(results: Results, one: Comparison) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table's runs."""
    runs = results.runs[(results.runs["status"] != UNFINISHED) & results.runs["run"].isin(one.runs)]
    runs = runs.reset_index(drop=True)
    clients = results.clients
    is_own, column = one.metric.startswith(CLIENTS), f"{OWN}{one.metric.removeprefix(CLIENTS)}"
    for (_, run), best_round, method in zip(runs.iterrows(), best_rounds(runs, one.metric), labels(runs), strict=True):
        settings = {name: run.get(key) for name, key in SETTINGS.items()}
        shared = {"Method": method, "seed": run["config.seed"], **settings}
        if column in clients:
            own = clients[(clients["run"] == run["run"]) & (clients["round"] == best_round)]
            for client, score in zip(own["client"], own[column], strict=True):
                if not pd.isna(score):
                    yield {"Test": f"client_test_{client}", "Metric": score, **shared}
        if not is_own:
            yield {"Test": POOLED, "Metric": run[f"test.{one.metric}"], **shared}
