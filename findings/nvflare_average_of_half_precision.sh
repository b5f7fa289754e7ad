#!/usr/bin/env bash
# nvflare 2.9.0 (numpy 2.4.6, Python 3.11): the average of three equal models in half precision is infinite where a weight
# times the steps of all clients passes 65,504.
#
# Expected: the mean of equal arrays is that array; sums are taken in float32 at least, or divided before they are added.
# Seen, DXOAggregator of ScatterAndGather, three hospitals that send the same float16 array after 700 steps each:
#     sent                          0.02     15.00     31.00     60.00    150.00
#     their average, float16        0.02     14.99     30.98       inf       inf
#     their average, float32        0.02     15.00     31.00     60.00    150.00
# and of 100,000 values around 0 a third come back as others than were sent. After 1,500 steps 15 is infinite, too.
# WeightedAggregationHelper.add (nvflare/app_common/aggregators/weighted_aggregation_helper.py) multiplies by the number of
# steps and sums up in the type of the message; FedAvg and Scaffold use it too, and with torch's float16 it does the same.
# Such weights are variances of batch norm, counters, scales of norms. Nothing is raised or said.
# Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet nvflare==2.9.0 numpy==2.4.6
HOME="$place" "$place/venv/bin/python" -W ignore - <<'PROGRAM'
import logging

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.aggregators.dxo_aggregator import DXOAggregator
from nvflare.app_common.app_constant import AppConstants

logging.disable(logging.CRITICAL)
FEW = np.array([0.02, 15, 31, 60, 150])


def average(values, steps):
    context = FLContext()
    context.set_prop(AppConstants.CURRENT_ROUND, 0)
    aggregator = DXOAggregator(expected_data_kind=DataKind.WEIGHTS)
    for name in ("north", "south", "west"):
        sent = DXO(DataKind.WEIGHTS, {"weight": values.copy()}, {MetaKey.NUM_STEPS_CURRENT_ROUND: steps})
        assert aggregator.accept(sent, name, 0, context)
    return aggregator.aggregate(context).data["weight"]


half, single = average(FEW.astype(np.float16), 700), average(FEW.astype(np.float32), 700)
longer = average(FEW.astype(np.float16), 1500)
many = np.random.default_rng(0).normal(0, 0.02, 100_000).astype(np.float16)
changed = (average(many, 700) != many).mean()
print(half.dtype, half, single, longer, round(changed, 2))
assert half.dtype == np.float16
assert np.allclose(single, FEW) and np.allclose(half[:3], FEW[:3], rtol=2e-3)
assert np.isinf(half[3:]).all() and np.isinf(longer[1:]).all()
assert changed > 0.1
PROGRAM
