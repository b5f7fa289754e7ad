#!/usr/bin/env bash
# flwr 1.42.0 (numpy 2.4.6, Python 3.11): the smaller the changes of a model are beside its weights, the less MultiKrum tells
# clients apart, until it takes those that it is there to leave out.
#
# Expected: Krum chooses by the distances between the clients' models, and distances do not depend on where the models lie.
# Seen, two million weights of norm 71 in float32; seven clients moved by one step, three by the same step backwards, each
# with noise of half the step; MultiKrum(num_malicious_nodes=3, num_nodes_to_select=5), three draws:
#     length of the step              1        0.1      0.03     0.01
#     backward ones among the 5     0 0 0    0 0 0    0 2 2    2 3 3
#     of the changes alone          0 0 0    0 0 0    0 0 0    0 0 0     without the weights that they are changes of
#     error of the distances         1 %      80 %     700 %   6700 %    at most, relative to the largest
# compute_distances (flwr/serverapp/strategy/multikrum.py) adds the squared norms of two models and takes twice their product
# away, in float32: of a fine-tuned encoder what is left is rounding, and often negative. Krum and Bulyan use it too. The old
# flwr.server.strategy of the same package takes the norm of the difference. Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet flwr==1.42.0 numpy==2.4.6
HOME="$place" FLWR_TELEMETRY_ENABLED=0 OMP_NUM_THREADS=1 "$place/venv/bin/python" - <<'PROGRAM'
import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.multikrum import compute_distances, select_multikrum

SIZE, FORWARD, BACKWARD = 2_000_000, 7, 3


def draw(chance, length):
    values = chance.normal(size=SIZE).astype(np.float32)
    return values * np.float32(length / np.linalg.norm(values))


def chosen(base, changes):
    """How many of the five chosen moved backwards, and the error of the distances."""
    contents = [
        RecordDict({"arrays": ArrayRecord({"weight": Array(base + change)}), "metrics": MetricRecord({"client": number})})
        for number, change in enumerate(changes)
    ]
    distances = compute_distances([content["arrays"] for content in contents])
    exact = np.stack([np.square(changes.astype(np.float64) - one).sum(1) for one in changes])
    picked = select_multikrum(contents, BACKWARD, 5)
    return sum(int(one["metrics"]["client"]) >= FORWARD for one in picked), np.abs(distances - exact).max() / exact.max()


seen = {}
for length in (1.0, 0.1, 0.03, 0.01):
    rows = []
    for seed in range(3):
        chance = np.random.default_rng(seed)
        base, step = draw(chance, 71), draw(chance, length)
        sides = [step] * FORWARD + [-step] * BACKWARD
        changes = np.stack([side + draw(chance, length / 2) for side in sides])
        rows.append([*chosen(base, changes), chosen(np.float32(0), changes)[0]])
    seen[length] = np.array(rows)
    print(length, seen[length][:, 0].astype(int), seen[length][:, 1].round(2), seen[length][:, 2].astype(int))
assert not any(rows[:, 2].any() for rows in seen.values())
assert not seen[1.0][:, 0].any() and seen[1.0][:, 1].max() < 0.05
assert seen[0.03][:, 0].any() and seen[0.01][:, 0].sum() >= 3
assert seen[0.01][:, 1].min() > 10
PROGRAM
