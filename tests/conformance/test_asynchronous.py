"""Every method has asynchronous rounds, or is refused for a reason."""

from typing import Any

import pytest

from fedsim.algorithms import METHODS
from fedsim.algorithms.base import PARAMS
from fedsim.buffered import asynchronous
from fedsim.errors import UserError
from tests.conformance.settings import SIZES, active
from tests.helpers import everything, furthest, play, simulate, train_alone

#: Words of the reason why a method is refused; all others run.
REFUSED = {
    **dict.fromkeys(("deer", "ditto", "feddpa", "fed_sb", "fedrep"), "several phases"),
    **dict.fromkeys(("fedex_lora", "fedmomentum", "flora"), "frozen weights"),
    **dict.fromkeys(("flexlora", "florist", "hlora", "lora_fair"), "'factors' beside changes of parameters"),
    "feddyn": "'moved' beside changes of parameters",
    "fednova": "'length' beside changes of parameters",
    "fedpft": "sub-model",
    "fedsvd": "changes the A",
    "harmofl": "changes with the round",
    "hetlora": "beside changes of parameters",
    "local": "send nothing",
    "prrfl": "aggregate of their own round",
    "raflora": "beside changes of parameters",
    "ravan": "beside changes of parameters",
    "rolora": "differ in what they train",
    "scaffold": "beside changes of parameters",
}
#: Clients of two rates, so that a buffer has updates of several ages, whatever number of images they have.
DEVICES = [{"name": "fast", "up_mbps": 25.0}, {"name": "slow", "up_mbps": 10.0}]


def clock(name: str, **words: Any) -> dict[str, Any]:
    return {"example_seconds": 0.0, "devices": DEVICES, "aggregation": {"name": name, **words}}


@pytest.mark.parametrize("method", sorted(REFUSED))
def test_a_method_that_needs_one_start_is_refused_with_the_reason(method: str) -> None:
    sim = simulate(SIZES, 2, **active(method), clock=clock("fedbuff", buffer_size=2))
    with pytest.raises(UserError, match=REFUSED[method]) as caught:
        asynchronous(sim)
    assert f"algorithm.name: found {method} with clock.aggregation: fedbuff, but " in str(caught.value)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - REFUSED.keys()))
def test_stacked_is_sequential_with_updates_of_several_ages(method: str) -> None:
    words = {**active(method), "clock": clock("fedbuff", buffer_size=2)}
    one_by_one, at_once = (simulate(SIZES, size, **words) for size in (1, 4))
    (sequential, _), (stacked, records) = (play(sim, 4) for sim in (one_by_one, at_once))
    assert furthest(everything(at_once, stacked), everything(one_by_one, sequential)) < (1e-4, "")
    assert max(record.row["clock"]["staleness"]["max"] for record in records) > 0
    assert stacked.older.keys() == sequential.older.keys()


@pytest.mark.parametrize("method", ["fedavg", "fedsa_lora", "med_duallora"])
def test_fedasync_that_mixes_all_is_the_clients_model_whatever_the_server_had(method: str) -> None:
    words = clock("fedasync", mixing=1.0, staleness={"name": "constant"})
    sim = simulate(SIZES, 2, **active(method), clock=words)
    first = sim.initial_state()
    before, (record,) = play(sim, 1)
    after, (second,) = play(sim, 1, before)
    (client,) = (row["client"] for row in second.client_rows)
    assert client != record.client_rows[0]["client"], "who comes second began from the first state, too"
    sent = sim.algorithm.pre_aggregate(train_alone(sim, client, first)).mean[PARAMS]
    start, end = (sim.algorithm.told(state.params) for state in (first, after))
    expected = {name: (start[name].double() + change[0]).float() for name, change in sent.items()}
    assert furthest({name: end[name] for name in expected}, expected)[0] < 1e-6
