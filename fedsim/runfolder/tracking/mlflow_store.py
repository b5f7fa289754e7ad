"""MLflow: a run in a store or on a server."""

import importlib
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from fedsim.errors import reading

#: The run's own id, as a tag by which it is found again.
TAG = "fedsim_id"
MOST_METRICS, MOST_PARAMS = 1000, 100
#: MLflow takes no other signs in names.
UNNAMED = re.compile(r"[^\w/.\- ]")
EXPECTED = "a store that answers, such as sqlite:///mlflow.db, or a server; --resume brings it up to date"


class MLflow:
    """The run with ``own_id``; made where there is none. ``uri``: of the store or server.

    The experiment is "fedsim", or what MLFLOW_EXPERIMENT_NAME says.
    """

    def __init__(self, uri: str, own_id: str, name: str, words: Mapping[str, Any]) -> None:
        self._where = f"track.mlflow, {uri}"
        # A simulator of hospitals calls nobody whom its user has not named.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        with reading(self._where, EXPECTED):
            entities = importlib.import_module("mlflow.entities")
            self._metric, self._param = entities.Metric, entities.Param
            for logger in ("mlflow", "alembic"):  # making a store's tables is no news
                logging.getLogger(logger).setLevel(logging.WARNING)
            self._client = importlib.import_module("mlflow").MlflowClient(tracking_uri=uri)
            run = self._find(own_id, name)
            self._run_id = run.info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            self._set_params(run, words)
            self._known = {
                (key, one.step)
                for key in run.data.metrics
                for one in self._client.get_metric_history(self._run_id, key)
            }

    def _find(self, own_id: str, name: str) -> Any:
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedsim")
        experiment = self._client.get_experiment_by_name(title)
        experiment_id = self._client.create_experiment(title) if experiment is None else experiment.experiment_id
        found = self._client.search_runs([experiment_id], f"tags.{TAG} = '{own_id}'")
        return found[0] if found else self._client.create_run(experiment_id, tags={TAG: own_id}, run_name=name)

    def _set_params(self, run: Any, words: Mapping[str, Any]) -> None:
        """Note the config; what is there stays, since a run goes on with another store at most."""
        new = [
            self._param(UNNAMED.sub("_", key), str(value))
            for key, value in words.items()
            if UNNAMED.sub("_", key) not in run.data.params
        ]
        for start in range(0, len(new), MOST_PARAMS):
            self._client.log_batch(self._run_id, params=new[start : start + MOST_PARAMS])

    def append(self, round: int, numbers: Mapping[str, float]) -> None:
        """Take a round's numbers, but for those that are there."""
        now = int(time.time() * 1000)
        new = {UNNAMED.sub("_", name): value for name, value in numbers.items()}
        metrics = [
            self._metric(key, float(value), now, round) for key, value in new.items() if (key, round) not in self._known
        ]
        with reading(self._where, EXPECTED):
            for start in range(0, len(metrics), MOST_METRICS):
                self._client.log_batch(self._run_id, metrics=metrics[start : start + MOST_METRICS])
        self._known |= {(metric.key, round) for metric in metrics}

    def close(self, *, failed: bool) -> None:
        """Note how the run has ended."""
        with reading(self._where, EXPECTED):
            self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")
