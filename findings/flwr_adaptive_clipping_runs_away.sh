#!/usr/bin/env bash
# flwr 1.42.0 (numpy 2.4.6, Python 3.11): adaptive clipping moves its norm away from the quantile that it is to find.
#
# Expected: after Andrew et al. (NeurIPS 2021) the norm C grows while too many updates are clipped and shrinks while too
# few are, C <- C exp(-rate (b - quantile)) with b the share that is NOT clipped, until it stands at the quantile.
# Seen, DifferentialPrivacyServerSideAdaptiveClipping about FedAvg, no noise, quantile 0.5, rate 0.2, ten clients whose
# updates have the norms 0.55, 0.65, ... 1.45 in every round, so that C should end near 1:
#     round               0       1      10      25       50
#     started at 0.1    0.1    0.0905  0.0368  0.0082   0.0007
#     started at 10     10     11.05   27.18   121.8    1484
# adaptive_clip_inputs_inplace (flwr/supercore/differential_privacy.py) returns True for what it did clip, and
# _geometric_update (flwr/serverapp/strategy/dp_adaptive_clipping.py) has the sign for the other share. The default start
# of 0.1 lies below the updates of most models: they are clipped to nothing, and training stands still. The strategy that
# clips at the clients reads the same bit. Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet flwr==1.42.0 numpy==2.4.6
HOME="$place" FLWR_TELEMETRY_ENABLED=0 "$place/venv/bin/python" - <<'PROGRAM'
import logging

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideAdaptiveClipping, FedAvg
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.ERROR)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # what a running server app has
NORMS = [0.55 + 0.1 * client for client in range(10)]


class Grid:
    def get_node_ids(self):
        return range(1, 1 + len(NORMS))


def weights(values):
    return ArrayRecord({"weight": Array(np.array(values))})


def answer(values):
    content = RecordDict({"arrays": weights(values), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, dst_node_id=1, message_type="train")


def course(start):
    strategy = DifferentialPrivacyServerSideAdaptiveClipping(
        FedAvg(), noise_multiplier=0, num_sampled_clients=len(NORMS), initial_clipping_norm=start
    )
    norms = [start]
    for number in range(1, 51):
        strategy.configure_train(number, weights([0.0, 0.0]), ConfigRecord(), Grid())
        strategy.aggregate_train(number, [answer([norm, 0.0]) for norm in NORMS])
        norms.append(strategy.clipping_norm)
    return norms


low, high = course(0.1), course(10.0)
for norms in (low, high):
    print([round(norms[number], 4) for number in (0, 1, 10, 25, 50)])
assert (np.diff(low) < 0).all() and low[-1] < 0.001
assert (np.diff(high) > 0).all() and high[-1] > 1000
PROGRAM
