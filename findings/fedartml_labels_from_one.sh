#!/usr/bin/env bash
# fedartml 0.1.34 (numpy 2.4.6, pandas 3.1.1, scikit-learn 1.9.0, Python 3.11): its Dirichlet split loses the highest
# class where labels do not begin at 0, and the "completed" split makes up for it with one sample that every client gets.
#
# Expected: labels are names of classes, as they are for its own table of classes per client, so that 1 to 5 are split as 0
# to 4 are, every sample going to one client.
# Seen, five classes of 200 samples, four clients, alpha 1000, number of samples given out (different ones in brackets):
#     labels                        0 to 4               1 to 5
#     without_class_completion    1000 (1000)           800 (800), nobody has class 5
#     with_class_completion       1000 (1000)           804 (801), each has the same single sample of class 5
# dirichlet_method (fedartml/fl_split_as_federated_data.py) looks for samples of class k for k below the number of classes.
# Grades, BI-RADS and tumour types are counted from 1, and a test set split likewise hides it. There is no warning.
# Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet fedartml==0.1.34 numpy==2.4.6 pandas==3.1.1 scikit-learn==1.9.0
MPLCONFIGDIR="$place" "$place/venv/bin/python" - <<'PROGRAM'
import numpy as np
from fedartml import SplitAsFederatedData


def split(first):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(first, first + 5), 200)).tolist()
    images = [[float(number)] for number in range(1000)]
    data, places, _, _ = SplitAsFederatedData(random_state=0).create_clients(
        image_list=images, label_list=labels, num_clients=4, method="dirichlet", alpha=1000
    )
    seen = {}
    for kind in ("without_class_completion", "with_class_completion"):
        samples = [image[0] for client in data[kind].values() for image, _ in client]
        top = [[image[0] for image, label in client if label == first + 4] for client in data[kind].values()]
        seen[kind] = len(samples), len(set(samples)), top
    return seen


zero, one = split(0), split(1)
for seen in (zero, one):
    print({kind: (given, different, [len(client) for client in top]) for kind, (given, different, top) in seen.items()})
assert [zero[kind][:2] for kind in zero] == [(1000, 1000)] * 2
assert one["without_class_completion"] == (800, 800, [[], [], [], []])
given, different, top = one["with_class_completion"]
assert (given, different) == (804, 801)
assert len(top[0]) == 1 and top == [top[0]] * 4
PROGRAM
