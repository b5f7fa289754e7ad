#!/usr/bin/env bash
# diffprivlib 0.6.6 (scikit-learn 1.7.2, scipy 1.17.1, numpy 2.4.6, Python 3.11): along an axis the private mean of whole
# numbers is a whole number, so that every finding has a prevalence of 0.
#
# Expected: tools.mean(table, axis=0) has the mean of each column, with noise, as numpy.mean has it, whose results of
# integers are floats, and as tools.mean has it of a single column.
# Seen, 2,000 patients with three findings of prevalence 0.1, 0.45 and 0.9, epsilon 3 and so 1 for each column:
#     columns of                mean, axis=0             std, axis=0           mean of each column
#     float64               0.10  0.45  0.90         0.30  0.50  0.30         0.10  0.45  0.90
#     int64, bool              0     0     0            0     0     0         0.10  0.45  0.90
# and of ages as uint8, of a mean of 54.8 and a standard deviation of 18.1, mean gives 54 and var 327. What is cut is lost
# after the budget has been spent for it. _wrap_axis (diffprivlib/tools/utils.py) collects the results in an array of
# the type of numpy's sum. var, std, nanmean, nanvar and nanstd do the same, also with keepdims. There is no warning.
# Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet diffprivlib==0.6.6 scikit-learn==1.7.2 scipy==1.17.1 numpy==2.4.6
HOME="$place" "$place/venv/bin/python" -W ignore - <<'PROGRAM'
import numpy as np
from diffprivlib import tools

chance = np.random.default_rng(0)
findings = (chance.random((2000, 3)) < [0.1, 0.45, 0.9]).astype(int)
ages = chance.uniform(24, 86, (2000, 1)).round()


def private(measure, values, top=1, **options):
    return np.asarray(measure(values, epsilon=3, bounds=(0, top), random_state=0, **options))


for kind in (float, int, bool):
    table = findings.astype(kind)
    mean, std = private(tools.mean, table, axis=0), private(tools.std, table, axis=0)
    single = np.array([tools.mean(column, epsilon=1, bounds=(0, 1), random_state=0) for column in table.T])
    print(kind.__name__, mean.round(2), std.round(2), single.round(2))
    assert np.abs(single - findings.mean(0)).max() < 0.02
    if kind is float:
        assert np.abs(mean - findings.mean(0)).max() < 0.02 and np.abs(std - findings.std(0)).max() < 0.05
    else:
        assert not mean.any() and not std.any()
        assert not private(tools.nanmean, table, axis=0, keepdims=True).any()
whole = [float(private(measure, ages.astype(np.uint8), 100, axis=0)[0]) for measure in (tools.mean, tools.var)]
print(whole, ages.mean().round(1), ages.std().round(1))
assert all(value == int(value) for value in whole) and abs(whole[0] - ages.mean()) < 2
PROGRAM
