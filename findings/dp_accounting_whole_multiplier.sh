#!/usr/bin/env bash
# dp-accounting 0.6.0 (numpy 2.4.6, scipy 1.17.1, Python 3.11): a noise multiplier of 2 is not one of 2.0, where several
# Gaussian sums are released of one Poisson sample.
#
# Expected: RdpAccountant adds the sums of one sample up to one with less noise, 2 / sqrt(100) for 100 of them, whatever
# the type of the number 2 is.
# Seen, PoissonSampledDpEvent(0.01, SelfComposedDpEvent(GaussianDpEvent(z), 100)), delta 1e-5:
#     z = 2.0, np.float64(2)   epsilon 24.8689
#     z = 2, np.float32(2)     epsilon  0.1936, that of a single sum
# The search for the joint multiplier takes what is no Python float for an event it cannot handle and hands it up as it
# is; there it is no event, and so is taken for the answer. Without sampling both types give the same.
# Exit code 1 if any of this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet dp-accounting==0.6.0 numpy==2.4.6 scipy==1.17.1
"$place/venv/bin/python" - <<'PROGRAM'
import numpy as np
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant


def epsilon(event):
    return RdpAccountant().compose(event).get_epsilon(1e-5)


def sampled(multiplier, count):
    return epsilon(PoissonSampledDpEvent(0.01, SelfComposedDpEvent(GaussianDpEvent(multiplier), count)))


sums = {kind.__name__: sampled(kind(2), 100) for kind in (float, np.float64, int, np.float32)}
single = sampled(2.0, 1)
print(sums, "a single sum:", single)
assert sums["float"] == sums["float64"] > 10 * single
assert sums["int"] == single
assert abs(sums["float32"] - single) < 1e-6
assert epsilon(SelfComposedDpEvent(GaussianDpEvent(2), 100)) == epsilon(SelfComposedDpEvent(GaussianDpEvent(2.0), 100))
PROGRAM
