"""SCAFFOLD and FedDyn: a step of two clients worked out by hand, and what a layer does around any method."""

import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import PARAMS, Aggregate, Algorithm, Payload, Phase, ServerState, Start, Step
from fedsim.algorithms.feddyn import MOVED, FedDyn
from fedsim.algorithms.feddyn import OWN as OWN_GRADIENT
from fedsim.algorithms.scaffold import OWN, SERVER, Scaffold
from fedsim.config.mistakes import KeyedError
from fedsim.config.train import TrainConfig
from fedsim.models.specs import ParamSpec
from tests.helpers import facts_of, play, simulate, step_of, update_of

SPECS = {"x": ParamSpec((), "body")}
#: Both clients minimise (x - target)^2 / 2, so that a gradient is x - target.
TARGETS = torch.tensor([1.0, 5.0])


def train(method: Algorithm, state: ServerState, start: Start, num_steps: list[int], lr: float) -> Tensor:
    """The clients' x (2,) after plain gradient descent with the method's gradient."""
    step = Step(**step_of(start=state.params, context=start.context, lr=lr))
    ends = []
    for client, steps in enumerate(num_steps):
        at = state.params["x"].expand(2).clone()
        for _ in range(steps):
            grads = method.gradient({"x": at}, lambda params: {"x": params["x"] - TARGETS}, step)
            at = at - lr * grads["x"]
        ends.append(at[client])
    return torch.stack(ends)


def round_of(
    method: Algorithm, state: ServerState, kept: list[dict[str, Tensor]], lr: float, num_steps: list[int]
) -> tuple[ServerState, Payload]:
    start = method.begin(state, Phase(), kept)
    ends = train(method, state, start, num_steps, lr)
    steps = torch.tensor(num_steps)
    update = update_of((0, 1), state.params, {"x": ends}, context=start.context, kept=kept, num_steps=steps, lr=lr)
    payload = method.pre_aggregate(update)
    mean = {PARAMS: {"x": payload.mean[PARAMS]["x"].mean(0)}}
    total = {group: {name: value.sum(0) for name, value in part.items()} for group, part in payload.total.items()}
    return method.post_aggregate(state, Aggregate((0, 1), mean, total)), payload


def test_two_rounds_of_scaffold_by_hand() -> None:
    """Four clients in all, two take part. From x = 0 the gradients are -1 and -5; with lr 0.1 one step and two."""
    method = Scaffold(Scaffold.Config(), facts_of(SPECS, num_clients=4))
    kept: list[dict[str, Tensor]] = [{}, {}]
    params = {"x": torch.tensor(0.0)}
    state = ServerState(0, params, dict(method.init_server(params)))
    state, _ = round_of(method, state, kept, 0.1, [1, 2])
    # Client 0: 0.1. Client 1: 0.5, then 0.5 + 0.45 = 0.95; its mean gradient is -0.95 / (2 * 0.1) = -4.75.
    assert state.params["x"].item() == pytest.approx((0.1 + 0.95) / 2)
    assert [own[f"{OWN}/x"].item() for own in kept] == pytest.approx([-1, -4.75])
    assert state.extra["x"].item() == pytest.approx((-1 - 4.75) / 4)
    x, c = state.params["x"].item(), state.extra["x"].item()
    state, payload = round_of(method, state, kept, 0.1, [1, 1])
    # Steps follow g - c_i + c.
    ends = [x - 0.1 * (x - target - own + c) for target, own in ((1.0, -1.0), (5.0, -4.75))]
    assert state.params["x"].item() == pytest.approx(sum(ends) / 2)
    # One step's new c_i is the gradient itself: c_i - c + (g - c_i + c).
    assert [own[f"{OWN}/x"].item() for own in kept] == pytest.approx([x - 1, x - 5], abs=1e-6)
    assert payload.total[SERVER]["x"].tolist() == pytest.approx([x - 1 + 1, x - 5 + 4.75], abs=1e-6)
    assert state.extra["x"].item() == pytest.approx(c + (2 * x - 6 + 5.75) / 4, abs=1e-6)


def test_two_rounds_of_feddyn_by_hand() -> None:
    method = FedDyn(FedDyn.Config(alpha=0.5), facts_of(SPECS, num_clients=4))
    kept: list[dict[str, Tensor]] = [{}, {}]
    params = {"x": torch.tensor(0.0)}
    state = ServerState(0, params, dict(method.init_server(params)))
    state, payload = round_of(method, state, kept, 0.1, [1, 1])
    # At the start the pull is zero: 0.1 and 0.5. g_i falls by alpha times these, h by alpha (0.1 + 0.5) / 4.
    assert payload.total[MOVED]["x"].tolist() == pytest.approx([0.1, 0.5])
    assert [own[f"{OWN_GRADIENT}/x"].item() for own in kept] == pytest.approx([-0.05, -0.25])
    assert state.extra["x"].item() == pytest.approx(-0.075)
    assert state.params["x"].item() == pytest.approx(0.3 + 0.075 / 0.5)
    x = state.params["x"].item()
    state, _ = round_of(method, state, kept, 0.1, [2, 1])
    first = x - 0.1 * (x - 1 + 0.05)
    ends = [first - 0.1 * (first - 1 + 0.5 * (first - x) + 0.05), x - 0.1 * (x - 5 + 0.25)]
    h = -0.075 - 0.5 * (sum(ends) - 2 * x) / 4
    assert state.extra["x"].item() == pytest.approx(h, rel=1e-5)
    assert state.params["x"].item() == pytest.approx(sum(ends) / 2 - h / 0.5, rel=1e-5)


def test_scaffold_wants_plain_steps() -> None:
    for train_words in ({"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "adamw"}):
        config = TrainConfig.model_validate({"lr": 0.1, "batch_size": 4, **train_words})
        with pytest.raises(KeyedError):
            Scaffold.Config().check_training(config)
    Scaffold.Config().check_training(TrainConfig.model_validate({"lr": 0.1, "batch_size": 4, "momentum": 0.0}))


def test_what_the_server_tells_is_counted() -> None:
    """SCAFFOLD's variate goes down beside the model, MOON's previous model is the client's own."""
    rows = {}
    for name in ("fedavg", "scaffold", "moon"):
        sim = simulate([8, 8], 2, algorithm={"name": name}, train={"momentum": 0.0})
        rows[name] = play(sim, 1)[1][0].row
    assert rows["scaffold"]["bytes_up"] == rows["scaffold"]["bytes_down"] == 2 * rows["fedavg"]["bytes_down"]
    assert rows["moon"]["bytes_down"] == rows["fedavg"]["bytes_down"]
