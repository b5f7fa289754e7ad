"""Simulated devices: how long a client takes, who is there, whose update is lost."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config.clock import ClockConfig
from fedsim.errors import UserError
from fedsim.schedule.devices import Load, devices_of, num_examples, read_trace
from tests.helpers import make_config


def clock(**words: Any) -> ClockConfig:
    return ClockConfig.model_validate({"example_seconds": 0.5, **words})


@pytest.mark.parametrize(
    ("train", "size", "examples"),
    [
        ({"batch_size": 16, "epochs": 2}, 35, 70),
        ({"batch_size": 16, "steps": 2}, 35, 32),
        # Two whole passes of 16 + 16 + 3, and a step of 16.
        ({"batch_size": 16, "steps": 7}, 35, 86),
        ({"batch_size": 16, "steps": 3}, 5, 15),
        ({"batch_size": 16, "epochs": 1}, 0, 0),
    ],
)
def test_examples_are_counted_as_often_as_they_are_seen(train: dict[str, Any], size: int, examples: int) -> None:
    assert num_examples(make_config(train=train).train, size) == examples


def test_time_is_computing_and_both_ways_on_the_network() -> None:
    words = {"name": "phone", "speed": 0.25, "down_mbps": 8.0, "up_mbps": 2.0}
    devices = devices_of(clock(devices=[words]), 2, seed=0)
    load = Load(models=2, down=np.full(2, 3e6), up=np.full(2, 1e6))
    train = make_config(train={"batch_size": 16, "epochs": 1}).train
    # 10 images, two models, half a second each at a quarter of the speed; 3 MB at 1 MB/s; 1 MB at 0.25 MB/s.
    assert devices.seconds(load, [10, 0], train, 0.5).tolist() == [2 * 10 * 0.5 / 0.25 + 3 + 4, 7]


def test_classes_by_their_shares_and_faults_by_their_probabilities() -> None:
    words = [
        {"name": "slow", "share": 3.0, "speed": 0.5, "availability": 0.3, "dropout": 0.2},
        {"name": "fast", "share": 1.0, "speed": 2.0},
    ]
    devices = devices_of(clock(devices=words), 20_000, seed=1)
    slow = devices.speed == 0.5
    assert abs(slow.mean() - 0.75) < 0.02
    here, lost = devices.available(1, 4), devices.dropping(1, 4)
    assert here[~slow].all()
    assert not lost[~slow].any()
    assert abs(here[slow].mean() - 0.3) < 0.02
    assert abs(lost[slow].mean() - 0.2) < 0.02
    assert (here == devices.available(1, 4)).all()
    assert (here != devices.available(1, 5)).any()


def trace(folder: Path, *lines: str) -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_trace_has_a_row_for_each_client(tmp_path: Path) -> None:
    path = trace(tmp_path, "client,speed,up_mbps,dropout", "1,0.5,,0.25", "0,2,10,")
    first, second = read_trace(path, 2)
    assert (first.speed, first.up_mbps, first.dropout, first.availability) == (2, 10, 0, 1)
    assert (second.speed, second.up_mbps, second.dropout) == (0.5, None, 0.25)
    devices = devices_of(clock(trace=str(path)), 2, seed=0)
    assert devices.speed.tolist() == [2, 0.5]
    assert devices.up.tolist() == [1.25e6, np.inf]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["client,speed"], "found no rows; expected the columns client"),
        (["client,velocity", "0,1"], "found client, velocity; expected the columns client"),
        (["client,speed", "0,1", "0,2"], "line 3: found client '0'; expected each number from 0 to 1 once"),
        (["client,speed", "0,1", "2,2"], "line 3: found client '2'"),
        (["client,speed", "0,1"], "found no row of client 1; expected one for each of 2 clients"),
        (["client,speed", "0,fast", "1,1"], "line 2: found speed 'fast'; expected a number"),
        (["client,speed", "0,-1", "1,1"], "line 2: found speed -1.0; expected a number above 0"),
        (["client,dropout", "0,1.0", "1,0"], "line 2: found dropout 1.0; expected a number below 1"),
        (["client,speed", "0,1", "1,1,7"], "line 3: found 3 cells; expected 2, one for each column"),
        (["client,speed", "0,1,7", "1,1"], "found client, speed, None; expected the columns"),
    ],
)
def test_a_trace_that_does_not_fit_is_one_line(lines: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_trace(trace(tmp_path, *lines), 2)
    assert message in str(caught.value)
    assert "trace.csv" in str(caught.value)
