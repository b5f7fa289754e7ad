"""An audit from outside: how well a canary client can be told from the noisy sums bounds epsilon from below.

Two neighbouring cohorts, with a canary and without. A test at a threshold has false positives a and false negatives b;
(epsilon, delta) privacy allows no test with 1 - b > exp(epsilon) a + delta, so Clopper-Pearson bounds of both rates
give an epsilon that the mechanism does not stay below, with a confidence of 99.9 percent.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim.algorithms.base import PARAMS, Aggregate, Payload, Phase, ServerState
from fedsim.config.privacy import ClientLevel
from fedsim.models.specs import ParamSpec
from fedsim.privacy.accounting import exact_epsilon
from fedsim.privacy.client_level import STEPS, ClientLevelLayer, Noise
from tests.helpers import facts_of, update_of

SPECS = {"x": ParamSpec((3,), "body")}
STATE = ServerState(0, {"x": torch.zeros(3)})
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
RELEASES, DELTA, CONFIDENCE = 4_000, 1e-3, 0.999


def scores(with_canary: bool, multiplier: float, clip: bool = True) -> np.ndarray:
    """What the server reads along the canary's direction, release after release; the canary has the largest weight."""
    bound = 0.1 if clip else 10.0
    layer = ClientLevelLayer(
        facts_of(SPECS), 7 + with_canary, ClientLevel(name="client", bound=bound), Noise(multiplier, WEIGHTS, 3, 3)
    )
    if not clip:
        # The noise of a bound of 0.1, beside changes that nothing holds within it.
        layer.noise = replace(layer.noise, multiplier=multiplier * 0.1 / bound)
    after = torch.zeros(3, 3)
    after[0, 0] = 5.0 * with_canary
    update = update_of((0, 1, 2), STATE.params, {"x": after}, weights=WEIGHTS)
    sent = layer.pre_aggregate(STATE, update, Payload(mean={PARAMS: update.delta})).total[STEPS]
    sums = Aggregate(update.clients, total={STEPS: {key: value.sum(0) for key, value in sent.items()}})
    found = [
        layer.post_aggregate(replace(STATE, round=round), Phase(), sums)[1].mean[PARAMS]["x"][0].item()
        for round in range(RELEASES)
    ]
    return np.array(found)


def least_epsilon(absent: np.ndarray, present: np.ndarray) -> float:
    """The largest epsilon that the rates at any of some thresholds refute; thresholds come from half of the data."""
    half = len(absent) // 2
    best = 0.0
    for threshold in np.quantile(present[:half], np.linspace(0.01, 0.99, 25)):
        seen, missed = (absent[half:] > threshold).sum(), (present[half:] <= threshold).sum()
        tail = (1 - CONFIDENCE) / 50
        false_positives = stats.beta.ppf(1 - tail, seen + 1, half - seen)
        false_negatives = stats.beta.ppf(1 - tail, missed + 1, half - missed)
        if (excess := 1 - false_negatives - DELTA) > 0:
            best = max(best, math.log(excess / false_positives))
    return best


@pytest.mark.parametrize("multiplier", [0.5, 2.0])
def test_a_canary_never_shows_more_than_the_ledger_says(multiplier: float) -> None:
    claimed = exact_epsilon(1 / multiplier, DELTA)
    found = least_epsilon(scores(False, multiplier), scores(True, multiplier))
    assert found <= claimed
    # The audit is not blind: it sees a good part of what there is.
    assert found > 0.3 * claimed


def test_the_audit_catches_noise_without_clipping() -> None:
    found = least_epsilon(scores(False, 2.0, clip=False), scores(True, 2.0, clip=False))
    assert found > exact_epsilon(1 / 2.0, DELTA)
