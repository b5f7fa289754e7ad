#!/usr/bin/env bash
# flwr 1.42.0 (numpy 2.4.6, Python 3.11): clipping leaves arrays without axes as they are, though they count in the norm.
#
# Expected: an update clipped to the norm C has a norm of C at most, and all of it is scaled by one factor.
# Seen, DifferentialPrivacyServerSideFixedClipping about FedAvg, no noise, four clients with the same update, C = 1:
#     a model with batch norm: weights moved by 0.5 each (norm 1), its counter of batches by 100
#         weights after the round    moved by 0.005     counter  moved by 100
#         the counter sent as (1,)   moved by 0.005              moved by 1.0
#         without the counter        moved by 0.5
#     a CLIP model: weights moved by 0.5 each (norm 1), its logit_scale by 3
#         weights after the round    moved by 0.158     logit_scale moved by 3: the clipped update has a norm of 3.02
# clip_inputs_inplace (flwr/supercore/differential_privacy.py) multiplies in place, but NumPy's difference of two arrays of
# shape () is a number, which is not changed so. PyTorch's num_batches_tracked and CLIP's logit_scale have that shape, and
# ArrayRecord(model.state_dict()) holds both: a hundred batches per round hold back a network with batch norm a hundredfold,
# and a logit_scale moves as far as it likes. The clipping at the clients is by the same function. Exit code 1 if this is no
# longer so.
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


def norm(change):
    return float(np.sqrt(sum(np.square(values).sum() for values in change.values())))


old, new = np.zeros(4, np.float32), np.full(4, 0.5, np.float32)
plain = moved({"weight": old}, {"weight": new})
counted = moved({"weight": old, "batches": np.array(0)}, {"weight": new, "batches": np.array(100)})
one_axis = moved({"weight": old, "batches": np.array([0.0])}, {"weight": new, "batches": np.array([100.0])})
scale = np.array(2.66, np.float32)
clip = moved({"weight": old, "logit_scale": scale}, {"weight": new, "logit_scale": scale + np.float32(3)})
for change in (plain, counted, one_axis, clip):
    print({name: np.round(values, 4).tolist() for name, values in change.items()}, round(norm(change), 3))
assert np.allclose(plain["weight"], 0.5) and norm(plain) < 1.001
assert np.allclose(counted["weight"], 0.005, rtol=0.01) and counted["batches"] == 100
assert np.allclose(one_axis["batches"], 1, rtol=0.01) and norm(one_axis) < 1.001
assert np.allclose(clip["weight"], 0.158, rtol=0.01) and abs(clip["logit_scale"] - 3) < 1e-5 and norm(clip) > 3
PROGRAM
