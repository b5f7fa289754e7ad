#!/usr/bin/env bash
# flwr 1.42.0 (numpy 2.4.6, Python 3.11): BatchNorm's counter of batches counts in the norm that updates are clipped by.
#
# Expected: clipping is by the norm of what was learned; a model with batch norm moves as one without it.
# Seen, DifferentialPrivacyServerSideFixedClipping about FedAvg, no noise, four clients with the same update, C = 1:
#     weights moved by 0.5 each (norm 1), nothing else            they move by 0.5
#     the same beside a counter that moved by a hundred           they move by 0.005
# ArrayRecord(model.state_dict()) holds PyTorch's num_batches_tracked, and Flower takes one norm over all of a message's
# arrays: a hundred batches per round hold back a network with batch norm a hundredfold. Nothing is said. Exit code 1 if
# this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet flwr==1.42.0 numpy==2.4.6
HOME="$place" FLWR_TELEMETRY_ENABLED=0 "$place/venv/bin/python" - <<'PROGRAM'
import logging

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.ERROR)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # what a running server app has


class Grid:
    def get_node_ids(self):
        return range(1, 5)


def record(arrays):
    return ArrayRecord({name: Array(np.asarray(values)) for name, values in arrays.items()})


def answer(arrays):
    content = RecordDict({"arrays": record(arrays), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, dst_node_id=1, message_type="train")


def moved(before, after):
    strategy = DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), noise_multiplier=0, clipping_norm=1.0, num_sampled_clients=4
    )
    strategy.configure_train(1, record(before), ConfigRecord(), Grid())
    result, _ = strategy.aggregate_train(1, [answer(after) for _ in range(4)])
    return {name: array.numpy() - before[name] for name, array in result.items()}


old, new = np.zeros(4, np.float32), np.full(4, 0.5, np.float32)
plain = moved({"weight": old}, {"weight": new})
counted = moved({"weight": old, "batches": np.array(0)}, {"weight": new, "batches": np.array(100)})
for change in (plain, counted):
    print(np.round(change["weight"], 4).tolist())
assert np.allclose(plain["weight"], 0.5)
assert np.allclose(counted["weight"], 0.005, rtol=0.01)
PROGRAM
