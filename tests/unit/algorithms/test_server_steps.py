"""FedNova, FedAdam, FedYogi and MOON against numbers worked out by hand."""

import math

import pytest
import torch

from fedsim.algorithms.base import PARAMS, Aggregate, Phase, ServerState
from fedsim.algorithms.fedadam import FedAdam
from fedsim.algorithms.fednova import FedNova, training_length
from fedsim.algorithms.fedyogi import FedYogi
from fedsim.algorithms.moon import PREVIOUS, contrastive
from fedsim.algorithms.parts.server_optimizer import ServerOptimizer
from fedsim.comm.exact import ExactSum
from fedsim.models.specs import ParamSpec
from fedsim.phase import flattened, regrouped
from tests.helpers import cohort_of, facts_of, play, same_bits, simulate, update_of

SPECS = {"x": ParamSpec((2,), "body"), "mean": ParamSpec((), "buffer"), "own": ParamSpec((), "local")}
START = {"x": torch.tensor([1.0, 2.0]), "mean": torch.tensor(0.0), "own": torch.tensor(9.0)}


def test_length_of_a_training_by_hand() -> None:
    steps = torch.tensor([1, 2, 3])
    assert training_length(steps, 0.0).tolist() == [1, 2, 3]
    # The first of three gradients counts 1 + 0.5 + 0.25 times, the second 1.5 times, the third once.
    assert training_length(steps, 0.5).tolist() == pytest.approx([1, 2.5, 4.25])


@pytest.mark.parametrize(("momentum", "lengths"), [(0.0, (1, 3)), (0.5, (1, 4.25))])
def test_fednova_by_hand(momentum: float, lengths: tuple[float, float]) -> None:
    method = FedNova(FedNova.Config(), facts_of(SPECS))
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    after = {
        "x": torch.tensor([[2.0, 2.0], [1.0, 8.0]]),
        "mean": torch.tensor([4.0, 8.0]),
        "own": torch.tensor([1.0, 2.0]),
    }
    steps = torch.tensor([1, 3])
    payload = method.pre_aggregate(update_of((0, 1), START, after, weights=weights, num_steps=steps, momentum=momentum))
    total = ExactSum(2)
    total.add_mean(flattened(payload.mean), weights, (0, 1))
    end = method.post_aggregate(
        ServerState(0, START), Aggregate((0, 1), regrouped(payload.mean, total.read(total.flat)))
    ).params
    mean_length = 0.25 * lengths[0] + 0.75 * lengths[1]
    expected = [1 + mean_length * 0.25, 2 + mean_length * 0.75 * 6 / lengths[1]]
    assert end["x"].tolist() == pytest.approx(expected)
    assert end["mean"].item() == 7
    assert end["own"].item() == 9


def test_fednova_hears_of_the_steps_and_of_the_momentum() -> None:
    sim = simulate([40, 6], 2, algorithm={"name": "fednova"}, train={"batch_size": 16, "momentum": 0.5, "epochs": 2})
    update, _ = sim.trainer.train((0, 1), cohort_of(0, 1), sim.initial_state(), Phase(), [{}, {}])
    assert update.num_steps.tolist() == [6, 2]
    assert update.momentum == 0.5


@pytest.mark.parametrize("method", [FedAdam, FedYogi])
def test_adaptive_servers_by_hand(method: type[ServerOptimizer]) -> None:
    config = method.Config(lr=0.5, beta1=0.9, beta2=0.75, tau=0.5)
    server = method(config, facts_of(SPECS))
    state = ServerState(0, START, server.init_server(START))
    first, second, x = 0.0, 0.25, 1.0
    for change in (2.0, -0.1):
        mean = {"x": torch.tensor([change, 0.0], dtype=torch.float64), "mean": torch.tensor(3.0).double()}
        state = server.post_aggregate(state, Aggregate((0,), {PARAMS: mean}))
        first = 0.9 * first + 0.1 * change
        if method is FedAdam:
            second = 0.75 * second + 0.25 * change**2
        else:
            second += 0.25 * change**2 * (1 if change**2 > second else -1)
        x += 0.5 * first / (math.sqrt(second) + 0.5)
        assert state.params["x"].tolist() == pytest.approx([x, 2])
        assert state.extra["second/x"][0].item() == pytest.approx(second, rel=1e-12)
    assert state.params["mean"].item() == 6
    assert state.params["own"].item() == 9
    assert set(state.extra) == {"first/x", "second/x"}


def test_contrast_by_hand() -> None:
    own = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
    server = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    previous = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    found = contrastive(own, server, previous, temperature=0.5)
    # Cosines 1 and 0, then 0.8 and 0.6.
    assert found[0].tolist() == pytest.approx([math.log(1 + math.exp(-2)), math.log(1 + math.exp(-0.4))])


def test_moon_contrasts_from_the_second_time_on() -> None:
    moon, fedavg = (
        simulate([20, 9], 2, algorithm=words) for words in ({"name": "moon", "mu": 3.0}, {"name": "fedavg"})
    )
    (state, ours), (plain, theirs) = play(moon, 1), play(fedavg, 1)
    assert ours[0].row["train_loss"] == pytest.approx(theirs[0].row["train_loss"] + 3 * math.log(2), rel=1e-5)
    for name, value in plain.params.items():
        torch.testing.assert_close(state.params[name], value, rtol=1e-5, atol=1e-6)
    kept = moon.store.read(1)
    assert {name.removeprefix(f"{PREVIOUS}/") for name in kept} == set(moon.model.specs)
    again, later = play(moon, 1, state)
    assert later[0].row["train_loss"] != pytest.approx(play(fedavg, 1, state)[1][0].row["train_loss"] + 3 * math.log(2))
    assert not same_bits(moon.store.read(1), kept)
    assert again.round == 2
