"""What ``launch.py plan`` works out, on machines whose numbers are known, and that it measures what it says."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.comm.group import open_group
from fedsim.errors import UserError
from fedsim.verbs.planning import describe as verb
from fedsim.verbs.planning import measure as measuring
from fedsim.verbs.planning.calibration import Calibration, PhaseCosts, features, fitted
from fedsim.verbs.planning.gpus import GPUS, LAUNCH_SECONDS
from fedsim.verbs.planning.measure import measure
from fedsim.verbs.planning.prediction import busiest, predict, shared
from tests.helpers import LORA, TINY_VIT, make_config, make_dataset, make_simulation, simulate

#: Four blocks of two clients, of a second each: 10 images at 0.1 s. Two ranks at once take 1.5 times as long.
KNOWN = Calibration(
    phases=[PhaseCosts("train", 0.0, 0.1, 0.0)],
    fit=0.0,
    cohorts=[[(1, 5.0)] * 8],
    num_clients=8,
    per_block=2,
    serial_seconds=0.5,
    evaluation_seconds=2.0,
    processes=2,
    processors=2,
    threads=1,
    slowdown=1.5,
    latency_seconds=0.01,
    meeting_seconds=0.12,
    sent_bytes=1000,
    up_bytes=80,
    down_bytes=80,
    rank_bytes=10**9,
    device_bytes=0,
    state_bytes=100,
    model_bytes=2 * 10**9,
    data_bytes=10**9,
    activation_bytes=10**8,
    operations=1000,
    precision="fp32",
    rate=67e9,
)


def test_works_that_share_processors() -> None:
    assert shared([3, 1], 2) == 3
    assert shared([2, 2, 1, 1], 2) == 3  # at half speed for two seconds, then the longer two alone
    assert shared([4, 4, 4, 4], 1) == 16
    assert shared([], 2) == 0
    # Two of six blocks of a second on each of three ranks; and on nodes with a processor for each pair.
    assert busiest([1.0] * 6, 3, 3, 3) == 2
    assert busiest([1.0] * 4, 4, 2, 1) == 2


def test_one_rank_two_and_more_than_there_are_processors() -> None:
    one, two, four, eight = (predict(KNOWN, ranks) for ranks in (1, 2, 4, 8))
    assert (one.training, one.bound, one.serial, one.meeting, one.evaluation) == (4, 4, 0.5, 0, 2)
    assert one.sent_bytes == 0
    assert (two.training, two.serial) == (3, 0.75)
    # What was measured with two ranks comes out again: a maximum and a sum, 0.01 s each, and 0.1 s for the bytes.
    assert two.meeting == pytest.approx(0.12)
    assert two.evaluation == 1.5
    assert two.seconds == pytest.approx(3.87)
    # Four blocks side by side on two processors are no sooner done.
    assert four.training == 3
    assert four.serial == 1.5
    assert eight.training == 3
    assert eight.sent_bytes == 1000 + 6 * 8
    assert one.rank_bytes - eight.rank_bytes == 7 * 100


def test_nodes_have_processors_of_their_own_and_a_network_between() -> None:
    two, apart = predict(KNOWN, 2), predict(KNOWN, 2, nodes=2)
    assert apart.training == 2
    assert apart.serial == 0.5
    assert apart.meeting > two.meeting
    assert predict(KNOWN, 1024, nodes=512).training == 1.5
    assert predict(KNOWN, 1024, nodes=512).bound == 1.5


def test_a_gpu_is_faster_by_its_rate_and_no_faster_than_its_kernels_start() -> None:
    h200 = GPUS["h200"]  # a thousand times the rate here
    found = predict(KNOWN, 1, gpu=h200, per_block=8)
    assert found.blocks == 1
    assert found.training == pytest.approx(0.004 + 1000 * LAUNCH_SECONDS)
    assert found.device_bytes == 3 * 10**9 + 8 * 10**8
    assert predict(replace(KNOWN, operations=0), 4, gpu=h200, per_block=2).training == pytest.approx(0.001)


def test_phases_add_up() -> None:
    both = replace(KNOWN, phases=[KNOWN.phases[0], PhaseCosts("a", 0.0, 0.2, 0.0)])
    assert predict(both, 1).training == 12
    assert predict(both, 4, nodes=2).sent_bytes == 1000 + 2 * 2 * 8


def test_blocks_are_told_by_steps_images_and_clients() -> None:
    assert features([(3, 9.0), (2, 4.0), (1, 1.0)], 2).tolist() == [[3, 13, 2], [1, 1, 1]]
    rows = np.array([[3, 13, 2], [1, 1, 1], [5, 60, 2], [2, 7, 1]], dtype=np.float64)
    costs, error = fitted("train", rows, rows @ np.array([0.3, 0.02, 0.1]))
    assert (costs.step, costs.image, costs.client) == pytest.approx((0.3, 0.02, 0.1))
    assert error == pytest.approx(0, abs=1e-9)
    # One block alone tells one number.
    costs, error = fitted("train", rows[:1], np.array([26.0]))
    assert costs.of(rows[:1]) == pytest.approx([26.0])


@pytest.mark.parametrize(
    ("method", "phases"), [("deer", ["b", "a"]), ("fedavg", ["train"]), ("flora", ["train"]), ("scaffold", ["train"])]
)
def test_it_measures_and_changes_nothing(method: str, phases: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = {**TINY_VIT, "lora": LORA}
    sim = simulate([9, 9, 4, 4, 1, 0], 2, algorithm={"name": method}, model=model, train={"batch_size": 4})
    monkeypatch.setattr(measuring, "build_simulation", lambda *_: sim)
    monkeypatch.setattr(measuring, "SIDES", {"cpu": 8})
    with open_group() as group:
        found = measure(sim.config, group)
    assert [phase.name for phase in found.phases] == phases
    assert all(phase.of(np.array([[3.0, 18, 2]]))[0] > 0 for phase in found.phases)
    assert found.cohorts == [[(3, 9), (3, 9), (1, 4), (1, 4), (1, 1)]]
    assert (found.processes, found.slowdown, found.per_block) == (1, 1.0, 2)
    assert found.up_bytes > 0
    assert (found.state_bytes > 0) == (method == "scaffold")
    assert found.operations > 10
    assert min(found.serial_seconds, found.evaluation_seconds, found.rate, found.rank_bytes) > 0
    assert not sim.store.sizes()
    assert Calibration.read(json.loads(json.dumps(asdict(found)))).phases == found.phases
    assert predict(found, 2).training > 0


def test_it_counts_bytes_that_a_run_would_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    privacy = {"mechanism": {"name": "client", "bound": 1.0}, "noise_multiplier": 1.0, "delta": 1e-3, "observe": False}
    dataset, parts = make_dataset([4, 4])
    monkeypatch.setattr(measuring, "build_simulation", lambda config, _: make_simulation(config, dataset, parts))
    monkeypatch.setattr(measuring, "SIDES", {"cpu": 8})
    with open_group() as group:
        found = measure(make_config(privacy=privacy, clients={"count": 2, "per_block": 2}), group)
    assert found.up_bytes > 0


def test_whoever_is_drawn_counts_in_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = simulate([2] * 20, 2, clients={"per_round": 5})
    monkeypatch.setattr(measuring, "build_simulation", lambda *_: sim)
    monkeypatch.setattr(measuring, "SIDES", {"cpu": 8})
    with open_group() as group:
        found = measure(sim.config, group)
    assert [len(cohort) for cohort in found.cohorts] == [5] * measuring.NUM_COHORTS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"ranks": 6, "nodes": 4}, "--ranks: found 6 on 4 nodes; expected a multiple of the nodes"),
        ({"gpu": "h201"}, "--gpu: found h201; expected t4, v100, a100"),
        ({"gpu": "v100", "precision": "bf16"}, "--gpu: found v100 with model.precision: bf16; expected one of fp32"),
    ],
)
def test_what_is_refused(words: dict[str, Any], said: str) -> None:
    asked = {"ranks": 2, "nodes": 1, "gpu": None, **words}
    config = make_config(model={**TINY_VIT, "precision": asked.pop("precision", "fp32")})
    with pytest.raises(UserError, match=said):
        verb.describe(config, Path("mine.yaml"), [], **asked)


@pytest.mark.parametrize("gpu", [None, "h200"])
def test_a_line_for_each_number_of_ranks(gpu: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "calibrate", lambda *_: KNOWN)
    rows = verb.describe(make_config(clients={"count": 8}), Path("mine.yaml"), [], 24, 2, gpu)
    names = [name for name, text in rows if " s a round: " in text]
    assert names == ["1 rank", "2 ranks", "4 ranks", "8 ranks", "16 ranks, 2 nodes", "24 ranks, 2 nodes"]
    assert ("assumed" in dict(rows)) == (gpu is not None)
    assert ("of its GPU" in rows[-1][1]) == (gpu is not None)


def test_what_a_rank_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "run_ranks", lambda *_: (2, "error: data.root: found none; expected a folder\n"))
    with pytest.raises(UserError, match=r"data\.root: found none; expected a folder"):
        verb.calibrate(tmp_path / "mine.yaml", [], 2)
