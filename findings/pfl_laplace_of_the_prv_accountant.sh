#!/usr/bin/env bash
# pfl 0.6.0 (prv-accountant 0.2.0, dp-accounting 0.5.1, numpy 2.4.6, Python 3.11): by one of pfl's three accountants Laplace
# noise costs the more privacy the more of it there is.
#
# Expected: noise of scale b about a sum that one user changes by 1 has epsilon 1 / b, and the three accountants, which take
# the same arguments, agree to their precision.
# Seen, epsilon at delta 1e-6 of one release with mechanism="laplace" and noise_parameter=b:
#     b                        0.25     0.5     1       2       4
#     PLDPrivacyAccountant     4        2       1       0.5     0.25
#     RDPPrivacyAccountant     4.005    2.005   1.005   0.505   0.255
#     PRVPrivacyAccountant     0.254    0.508   1.000   2.000   3.999
# and of ten releases with b = 5: 2.0, 2.0 and 50. PRVPrivacyAccountant (pfl/privacy/privacy_accountant.py) hands the scale
# on as prv-accountant's mu, which is the sensitivity over the scale; with b = 1 the two are the same. So noise of scale 0.25
# looks sixteen times as private as it is. Asked for the noise of an epsilon, as of 2 for ten releases, the search for it
# ends in an error. Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet pfl==0.6.0 prv-accountant==0.2.0 dp-accounting==0.5.1 numpy==2.4.6
HOME="$place" "$place/venv/bin/python" -W ignore - <<'PROGRAM'
from pfl.privacy.privacy_accountant import PLDPrivacyAccountant, PRVPrivacyAccountant, RDPPrivacyAccountant

SCALES = 0.25, 0.5, 1.0, 2.0, 4.0


def spent(accountant, scale, releases=1):
    return float(
        accountant(
            num_compositions=releases, sampling_probability=1.0, mechanism="laplace", delta=1e-6, noise_parameter=scale
        ).epsilon
    )


seen = {}
for accountant in (PLDPrivacyAccountant, RDPPrivacyAccountant, PRVPrivacyAccountant):
    seen[accountant] = [spent(accountant, scale) for scale in SCALES]
    print(accountant.__name__, [round(value, 3) for value in seen[accountant]], round(spent(accountant, 5.0, 10), 2))
for accountant in (PLDPrivacyAccountant, RDPPrivacyAccountant):
    assert all(abs(value - 1 / scale) < 0.02 for value, scale in zip(seen[accountant], SCALES))
    assert 1.9 < spent(accountant, 5.0, 10) < 2.1
assert all(abs(value - scale) < 0.02 for value, scale in zip(seen[PRVPrivacyAccountant], SCALES))
assert 49 < spent(PRVPrivacyAccountant, 5.0, 10) < 51
try:
    PRVPrivacyAccountant(num_compositions=10, sampling_probability=1.0, mechanism="laplace", delta=1e-6, epsilon=2.0)
except ValueError:
    pass
else:
    raise AssertionError("PRVPrivacyAccountant finds a scale for epsilon 2")
PROGRAM
