#!/usr/bin/env bash
# lifelines 0.30.3 (pandas 2.3.3, scipy 1.17.1, numpy 2.4.6, Python 3.11): the concordance of a Cox model of several hospitals'
# tables is near that of chance where the tables were put one under the other with their row numbers.
#
# Expected: the labels of rows do not matter to a fit; or they are refused where they repeat, as WeibullAFTFitter does.
# Seen, three hospitals of 300 patients, each table numbered from 0, true coefficients 1 and 0.3:
#     pandas.concat(tables)                     coefficients     concordance_index_     score(concordance_index)
#     ignore_index=True                         1.13  0.35            0.77                    0.77
#     as they are                               1.13  0.35            0.57                    0.77
#     a bootstrap sample of the pooled rows     1.19  0.37            0.53                    0.79
# CoxPHFitter.fit (lifelines/fitters/coxph_fitter.py) sorts the patients by time, has the hazards predicted in the order of
# the table and puts them into the other order by their labels, which does nothing where these repeat: each patient gets
# another one's hazard. print_summary shows that figure. Coefficients, errors and tests are right. A pooled model seems worse
# than each hospital's own, and bootstrapped intervals of the concordance are those of chance; no warning.
# Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet lifelines==0.30.3 pandas==2.3.3 scipy==1.17.1 numpy==2.4.6
HOME="$place" "$place/venv/bin/python" -W ignore - <<'PROGRAM'
import numpy as np
import pandas
from lifelines import CoxPHFitter, WeibullAFTFitter

chance = np.random.default_rng(0)


def hospital(patients):
    stage, age = chance.normal(size=(2, patients))
    death, end = chance.exponential(np.exp(-stage - 0.3 * age)), chance.exponential(1.5, patients)
    return pandas.DataFrame({"time": np.minimum(death, end), "died": death <= end, "stage": stage, "age": age})


def fitted(table):
    model = CoxPHFitter().fit(table, "time", "died")
    right = model.score(table, scoring_method="concordance_index")
    print(model.params_.round(2).tolist(), round(model.concordance_index_, 2), round(right, 2))
    return model.params_, model.concordance_index_, right


tables = [hospital(300) for _ in range(3)]
numbered = pandas.concat(tables, ignore_index=True)
plain, repeated = fitted(numbered), fitted(pandas.concat(tables))
drawn = fitted(numbered.sample(900, replace=True, random_state=0))
assert np.allclose(plain[0], repeated[0])
assert abs(plain[1] - plain[2]) < 1e-9 and min(plain[2], repeated[2], drawn[2]) > 0.75
assert max(repeated[1], drawn[1]) < 0.6
try:
    WeibullAFTFitter().fit(pandas.concat(tables), "time", "died")
except ValueError:
    pass
else:
    raise AssertionError("WeibullAFTFitter takes labels that repeat")
PROGRAM
