"""Models on the clients' own images: scores of ragged clients, macro-F1, and the figures around a communication."""

import math

import numpy as np
import pytest
import torch

from fedsim.errors import UserError
from fedsim.measure.client_scores import spread
from fedsim.tasks.task import classification_metrics
from fedsim.training.own_images import macro_f1
from tests.helpers import LORA, TINY_VIT, play, record_phases, simulate

HEAD = {**TINY_VIT, "train": "head"}
SIZES = [30, 0, 9, 1]


@pytest.mark.parametrize("num_models", [1, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_scores_are_those_of_each_client_alone(split: str, num_models: int) -> None:
    sim = simulate(SIZES, 2, model=HEAD, evaluate={"batch_size": 4})
    params = sim.initial_state().params
    clients = (0, 1, 2, 3)
    noise = torch.randn(4 * num_models, *params["head.weight"].shape, generator=torch.Generator().manual_seed(0))
    own = {**params, "head.weight": params["head.weight"] + noise}
    scores, labels = sim.trainer.own.rows(split, clients, own, num_models)
    places = sim.trainer.own.places(split)
    assert {len(part) for part in places} >= {0}
    for row in range(4 * num_models):
        part = places[clients[row // num_models]]
        truth = sim.dataset.labels[torch.from_numpy(part)]
        assert labels[row, : len(part)].tolist() == truth.tolist()
        assert (labels[row, len(part) :] == -1).all()
        if len(part):
            alone = {**params, "head.weight": own["head.weight"][row]}
            expected = sim.model.forward(alone, sim.images.evaluation_batch(part), training=False)[0]
            torch.testing.assert_close(scores[row, : len(part)], expected)


def test_macro_f1_is_that_of_sklearn() -> None:
    stream = torch.Generator().manual_seed(1)
    scores = torch.randn(5, 12, 4, generator=stream)
    labels = torch.randint(3, (5, 12), generator=stream)
    labels[1, 4:] = -1
    labels[2] = -1
    scores[3, 0, 0] = torch.nan
    scores[4, 11], labels[4, 11] = torch.nan, -1
    found = macro_f1(scores, labels)
    assert torch.isnan(found).tolist() == [False, False, True, True, False]
    for row in (0, 1, 4):
        counts = labels[row] >= 0
        expected = classification_metrics(scores[row][counts], labels[row][counts])["f1"]
        assert found[row].item() == pytest.approx(expected)


def test_a_split_that_a_client_lacks() -> None:
    sim = simulate(SIZES, 2, model=HEAD)
    sim.trainer.own.require("train")
    assert not len(sim.trainer.own.held_out["val"][3])
    with pytest.raises(UserError, match=r"algorithm\.decide_on, client 3"):
        sim.trainer.own.require("val")


def test_spread_by_hand() -> None:
    found = spread(np.array([0.0, np.nan, 1.0, 0.5]), worst=np.max)
    assert found["clients"] == 3
    assert (found["mean"], found["worst"]) == (0.5, 1.0)
    assert found["std"] == pytest.approx(math.sqrt(1 / 6))
    assert found["deciles"] == pytest.approx(np.arange(1, 10) / 10)
    assert spread(np.array([np.nan]), worst=np.min)["mean"] is None


@pytest.mark.parametrize("method", ["fedavg", "local", "fedrep", "ditto"])
def test_figures_of_a_round(method: str) -> None:
    """After: the server's model, or the client's own; before: what it had learned. Only where a round is evaluated."""
    words = {"evaluate": {"every": 2, "clients": True}, "train": {"lr": 0.5, "batch_size": 8}}
    sim = simulate(
        [30, 0, 9],
        2,
        model={**TINY_VIT, "lora": LORA} if method == "fedrep" else HEAD,
        **words,
        algorithm={"name": method},
        rounds=3,
    )
    phases = record_phases(sim)
    end, records = play(sim, 3)
    assert ["retrogress" in record.row["diagnostics"] for record in records] == [False, True, True]
    record = records[-1]
    last = [row for row in record.client_rows if "own" in row]
    assert [row["client"] for row in last] == [0, 2]
    assert last == record.client_rows[-2:]

    drops = []
    for row in last:
        own = sim.algorithm.client_params([sim.store.read(row["client"])], end.params)["own"]
        params = {**end.params, **{name: value[0] for name, value in own.items()}}
        for split in ("val", "test"):
            part = sim.trainer.own.held_out[split][row["client"]]
            scores = sim.model.forward(params, sim.images.evaluation_batch(part), training=False)[0]
            expected = classification_metrics(scores.detach(), sim.dataset.labels[torch.from_numpy(part)])
            for metric, value in row["own"]["after"][split].items():
                assert value == pytest.approx(expected[metric], nan_ok=True)
            if method in ("fedavg", "local"):
                learned = phases[-2]["after"][row["client"]]
                scores = sim.model.forward(learned, sim.images.evaluation_batch(part), training=False)[0]
                expected = classification_metrics(scores, sim.dataset.labels[torch.from_numpy(part)])
                assert row["own"]["before"][split]["f1"] == pytest.approx(expected["f1"])
        drops.append(row["own"]["before"]["test"]["f1"] - row["own"]["after"]["test"]["f1"])
    found = record.row["diagnostics"]["retrogress"]["test"]
    assert found == pytest.approx(np.mean(drops))
    if method in ("local", "ditto"):
        assert found == 0


def test_prrfl_drops_in_the_deputy_alone() -> None:
    words = {"evaluate": {"clients": True}, "train": {"lr": 0.5, "batch_size": 8, "epochs": 3}, "rounds": 1}
    method = {"name": "prrfl", "decide_on": "train", "low_freq_start": 1.0, "low_freq_end": 1.0}
    sim = simulate([30, 20, 9], 2, model={**TINY_VIT, "lora": LORA}, algorithm=method, **words)
    end, records = play(sim, 1)
    found = records[0].row["diagnostics"]
    assert found["retrogress"] == {"val": 0, "test": 0}
    drops = [found["clients_exchanged"][split]["f1"]["drop"]["std"] for split in ("val", "test")]
    assert any(drops)
    for row in records[0].client_rows:
        state = [sim.store.read(row["client"])]
        for model, own in sim.algorithm.client_params(state, end.params).items():
            params = {name: value[0] for name, value in own.items()}
            part = sim.trainer.own.held_out["test"][row["client"]]
            scores = sim.model.forward(params, sim.images.evaluation_batch(part), training=False)[0]
            expected = classification_metrics(scores.detach(), sim.dataset.labels[torch.from_numpy(part)])
            assert row[model]["after"]["test"]["f1"] == pytest.approx(expected["f1"])
