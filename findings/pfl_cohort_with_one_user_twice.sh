#!/usr/bin/env bash
# pfl 0.6.0 (numpy 2.4.6, Python 3.11): a cohort that is drawn at random holds some users several times, and each of their
# updates is clipped for itself, while the accountant's sampling probability stands for users who come once at most.
#
# Expected: get_cohort(50) of 100 users gives 50 different ones, or each with probability 0.5; one user changes the sum of a
# round by the clipping bound, which is what GaussianMechanism's noise is made for.
# Seen with get_user_sampler("random", users), 1000 cohorts of 50 from 100 users:
#     different users in a cohort, mean   39.4
#     cohorts in which nobody comes twice none
#     times that one user came, at most   5: with a bound of 1 that user's updates add up to 5
# get_user_sampler (pfl/data/sampling.py) draws each user anew, and FederatedDataset.get_cohort takes them as they come; the
# noise of GaussianMechanism is still that of a bound of 1. With "minimize_reuse" nobody comes twice, but the order of the
# users is fixed, and so no sampling amplifies the privacy. Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet pfl==0.6.0 numpy==2.4.6
HOME="$place" "$place/venv/bin/python" - <<'PROGRAM'
from collections import Counter

import numpy as np
from pfl.context import UserContext
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.internal.ops import numpy_ops
from pfl.internal.ops.selector import set_framework_module
from pfl.privacy import CentrallyAppliedPrivacyMechanism, GaussianMechanism
from pfl.stats import MappedVectorStatistics

set_framework_module(numpy_ops)
np.random.seed(0)
users = FederatedDataset(lambda user: Dataset((np.zeros(1),), user_id=user), get_user_sampler("random", list(range(100))))
cohorts = [[data.user_id for data, _ in users.get_cohort(50)] for _ in range(1000)]
different = [len(set(cohort)) for cohort in cohorts]
most = max((max(Counter(cohort).values()), number) for number, cohort in enumerate(cohorts))
often, number = most
user = Counter(cohorts[number]).most_common(1)[0][0]

mechanism = CentrallyAppliedPrivacyMechanism(GaussianMechanism(clipping_bound=1.0, relative_noise_stddev=1.0))
moved = np.zeros(1)
for seed, member in enumerate(cohorts[number]):
    update = MappedVectorStatistics({"weight": np.array([5.0 if member == user else 0.0])}, weight=1)
    context = UserContext(num_datapoints=1, seed=seed, user_id=member)
    clipped, _ = mechanism.postprocess_one_user(stats=update, user_context=context)
    moved += clipped["weight"]
print(np.mean(different), max(different), often, moved)
assert all(len(cohort) == 50 for cohort in cohorts)
assert 39 < np.mean(different) < 40 and max(different) < 50
assert often == 5 and abs(moved[0] - often) < 1e-6
PROGRAM
