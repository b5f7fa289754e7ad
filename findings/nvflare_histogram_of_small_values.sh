#!/usr/bin/env bash
# nvflare 2.9.0 (pandas 3.1.1, numpy 2.4.6, Python 3.11): the global histogram of small values counts people more than once.
#
# Expected: the federated histogram has as many people as the hospitals have together, and "precision" of the statistics
# controller says with how many digits results are shown.
# Seen for the mean diffusivity of white matter in mm2/s, around 0.00075, 500 people in each of two hospitals, 20 bins
# over their common range, precision 10:
#     people in the hospitals' own histograms   500 and 500
#     people in the global one                  1260, in 20 bins with 14 different ranges
# and with the default precision of 4 the global standard deviation is 0 (it is 0.0001). Of one hospital the count is right.
# accumulate_hists (nvflare/app_common/statistics/numeric_stats.py) rounds the edges of bins to 4 digits whatever the
# precision is, and looks the sums up by the rounded edges: bins narrower than 0.00005 fall on one another, and each of
# them gets what the others got too. There is no warning. Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet nvflare==2.9.0 pandas==3.1.1 numpy==2.4.6
HOME="$place" "$place/venv/bin/python" - <<'PROGRAM'
import numpy as np
import pandas
from nvflare.app_common.app_constant import StatisticsConstants as Names
from nvflare.app_common.statistics.numeric_stats import get_global_stats
from nvflare.app_opt.statistics.df.df_core_statistics import DFStatisticsCore


class Hospital(DFStatisticsCore):
    def __init__(self, seed):
        super().__init__()
        values = np.random.default_rng(seed).normal(0.00075, 0.0001, 500)
        self.data = {"train": pandas.DataFrame({"diffusivity": values})}


def everyone(hospitals, measure):
    return {name: {"train": {"diffusivity": measure(hospital)}} for name, hospital in hospitals.items()}


def joint(hospitals, precision):
    where = "train", "diffusivity"
    values = np.concatenate([hospital.data["train"]["diffusivity"] for hospital in hospitals.values()])
    answers = {
        Names.STATS_VAR: everyone(hospitals, lambda one: one.variance_with_mean(*where, values.mean(), len(values))),
        Names.STATS_STDDEV: everyone(hospitals, lambda one: one.stddev(*where)),
        Names.STATS_HISTOGRAM: everyone(hospitals, lambda one: one.histogram(*where, 20, values.min(), values.max())),
    }
    result = get_global_stats({}, answers, Names.STATS_2nd_STATISTICS, {}, precision)
    own = [sum(one["train"]["diffusivity"].bins[k].sample_count for k in range(20)) for one in answers["histogram"].values()]
    bins = result[Names.STATS_HISTOGRAM]["train"]["diffusivity"].bins
    together = int(sum(one.sample_count for one in bins))
    ranges = len({(one.low_value, one.high_value) for one in bins})
    return [int(count) for count in own], together, ranges, result[Names.STATS_STDDEV]["train"]["diffusivity"]


two = {"north": Hospital(0), "south": Hospital(1)}
fine, usual, alone = joint(two, 10), joint(two, 4), joint({"north": two["north"]}, 10)
print(fine, usual, alone)
assert fine[0] == usual[0] == [500, 500]
assert fine[1] == usual[1] == 1260 and fine[2] == 14
assert 0.00009 < fine[3] < 0.00011 and usual[3] == 0
assert alone[1] == 500
PROGRAM
