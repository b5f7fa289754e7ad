#!/usr/bin/env bash
# dp-accounting 0.6.0 (numpy 2.4.6, scipy 1.17.1, Python 3.11): under REPLACE_ONE its two accountants mean different
# things by the noise multiplier of one and the same GaussianDpEvent.
#
# Expected: PLD is the tighter accountant, so its epsilon is at most that of RDP, whatever the neighbours are.
# Seen, 100 compositions of GaussianDpEvent(1.0), delta 1e-5:
#     ADD_OR_REMOVE_ONE  rdp  96.1163   pld  91.8173
#     REPLACE_ONE        rdp  96.1163   pld 284.3918
# The PLD accountant doubles the sensitivity for replaced records (noise multiplier 2.0 gives it the 91.8173 again); the RDP
# accountant returns the figure of added or removed ones, as if the multiplier counted for the replaced record already.
# Whoever changes the accountant under REPLACE_ONE changes the mechanism. Exit code 1 if any of this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet dp-accounting==0.6.0 numpy==2.4.6 scipy==1.17.1
"$place/venv/bin/python" - <<'PROGRAM'
from dp_accounting import GaussianDpEvent, NeighboringRelation
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant


def epsilon(accountant, relation, noise):
    ledger = accountant(neighboring_relation=relation)
    ledger.compose(GaussianDpEvent(noise), 100)
    return round(ledger.get_epsilon(1e-5), 3)


added, replaced = NeighboringRelation.ADD_OR_REMOVE_ONE, NeighboringRelation.REPLACE_ONE
seen = {
    "added, rdp": epsilon(RdpAccountant, added, 1.0),
    "added, pld": epsilon(PLDAccountant, added, 1.0),
    "replaced, rdp": epsilon(RdpAccountant, replaced, 1.0),
    "replaced, pld": epsilon(PLDAccountant, replaced, 1.0),
    "replaced, pld, twice the noise": epsilon(PLDAccountant, replaced, 2.0),
}
print(seen)
assert seen["added, pld"] < seen["added, rdp"] == seen["replaced, rdp"]
assert seen["replaced, pld"] > 2.5 * seen["replaced, rdp"]
assert abs(seen["replaced, pld, twice the noise"] - seen["added, pld"]) < 0.01
PROGRAM
