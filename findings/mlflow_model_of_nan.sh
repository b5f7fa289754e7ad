#!/usr/bin/env bash
# mlflow-skinny 3.17.2 (sqlalchemy 2.1.9, alembic 1.20.1, Python 3.11): a metric that is nan is 0 for the model that it
# belongs to.
#
# Expected: log_metric(run, "loss", nan, model_id=...) leaves nan with the run and with the logged model, and no search
# takes the run that diverged for the best one.
# Seen with a database as store and three models, of losses 0.4, 0.9 and nan:
#     the run's metric    nan                 the model's metric    0.0
#     search_runs, loss < 0.5: good           search_logged_models, loss < 0.5: good and diverged
#     search_runs by loss: good, bad, diverged    search_logged_models by loss: diverged, good, bad
# Databases hold 0 for nan; the table of runs' metrics has a column that says so, that of models' metrics has none.
# Exit code 1 if any of this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet mlflow-skinny==3.17.2 sqlalchemy==2.1.9 alembic==1.20.1
MLFLOW_DISABLE_TELEMETRY=true PLACE="$place" "$place/venv/bin/python" - <<'PROGRAM'
import math
import os

from mlflow.tracking import MlflowClient

client = MlflowClient(f"sqlite:///{os.environ['PLACE']}/store.db")
home = client.create_experiment("models")
for name, loss in (("good", 0.4), ("bad", 0.9), ("diverged", math.nan)):
    run = client.create_run(home, run_name=name).info.run_id
    model = client.create_logged_model(home, name=name, source_run_id=run).model_id
    client.log_metric(run, "loss", loss, model_id=model)
of_run = client.get_run(run).data.metrics["loss"]
of_model = client.get_logged_model(model).metrics[0].value
low = "metrics.loss < 0.5"
upwards = [{"field_name": "metrics.loss", "ascending": True}]
seen = {
    "low runs": [run.info.run_name for run in client.search_runs([home], low)],
    "low models": sorted(model.name for model in client.search_logged_models([home], low)),
    "runs": [run.info.run_name for run in client.search_runs([home], order_by=["metrics.loss ASC"])],
    "models": [model.name for model in client.search_logged_models([home], order_by=upwards)],
}
print(of_run, of_model, seen)
assert math.isnan(of_run)
assert of_model == 0
assert seen["low runs"] == ["good"]
assert seen["low models"] == ["diverged", "good"]
assert seen["runs"] == ["good", "bad", "diverged"]
assert seen["models"] == ["diverged", "good", "bad"]
PROGRAM
