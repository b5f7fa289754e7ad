"""What a sweep's file becomes, and which are refused before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim.errors import UserError
from fedsim.verbs.sweep_plan import Plan

BASE = {
    "name": "base",
    "rounds": 2,
    "model": {"name": "packaged:vit_small_dino", "lora": {}},
    "data": {"name": "digits"},
    "clients": {"count": 2, "partition": {"name": "dirichlet", "alpha": 1.0}},
    "train": {"lr": 0.1},
}


def write_sweep(folder: Path, **words: Any) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"base": "base.yaml", **words}))
    return folder / "sweep.yaml"


def plan_of(folder: Path, **words: Any) -> Plan:
    return Plan(write_sweep(folder, **words), folder / "out")


def test_cells_are_all_combinations_named_after_their_values(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        list=[
            {"algorithm": {"name": "fedprox", "mu": 0.5}},
            {"name": "deer_long", "algorithm.name": "deer", "rounds": 4},
        ],
        grid={"seed": [1, 2], "clients.partition.alpha": [0.1]},
    )
    cells = {cell.name: cell for cell in plan.cells({})}
    assert list(cells) == [
        "fedprox-mu0.5_alpha0.1_seed1",
        "fedprox-mu0.5_alpha0.1_seed2",
        "deer_long_alpha0.1_seed1",
        "deer_long_alpha0.1_seed2",
    ]
    one = cells["deer_long_alpha0.1_seed2"].config
    assert (one.algorithm.name, one.rounds, one.seed, one.clients.partition.alpha) == ("deer", 4, 2, 0.1)
    assert {cell.contender for cell in cells.values()} == {"fedprox-mu0.5_alpha0.1", "deer_long_alpha0.1"}
    assert all(cell.config.name == name for name, cell in cells.items())
    assert {cell.state for cell in cells.values()} == {"missing"}


def test_trials_are_equally_many_on_seeds_of_their_own(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        grid={"algorithm.name": ["fedavg", "deer"], "seed": [1, 2]},
        tune={"seeds": [8, 9], "grid": {"train.lr": [0.1, 0.2]}, "methods": {"deer": {"train.lr": [0.3, 0.4]}}},
    )
    assert [cell.name for cell in plan.trials] == [
        f"{method}_lr{lr}_seed{seed}"
        for method, rates in (("fedavg", (0.1, 0.2)), ("deer", (0.3, 0.4)))
        for lr in rates
        for seed in (8, 9)
    ]
    assert plan.cells({}) == []
    (first, second) = plan.cells({"deer": {"train.lr": 0.4}})
    assert (first.name, first.config.train.lr, second.config.seed) == ("deer_seed1", 0.4, 2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, "grid: found nothing"),
        ({"grid": {"seeed": [1]}}, r"sweep.yaml, cell seeed1: seeed: found an unknown key; expected seed"),
        ({"grid": {"train.lr": [-1]}}, "cell lr-1: train.lr: found -1; expected a number above 0"),
        ({"grid": {"seed": [1, 1]}}, "two cells named base_seed1"),
        ({"grid": {"seed": []}}, "grid.seed: found .*; expected a list of at least 1"),
        ({"grid": {"seed": 1}}, "grid.seed: found 1; expected a list"),
        ({"grid": {"name": ["a"]}}, "name in list alone"),
        ({"grid": {"seed": [1]}, "list": [{"seed": 2}]}, "seed, which list has too"),
        ({"grid": {"seed": [1]}, "per": ["train.lr"]}, "per: found train.lr; expected a key that varies: seed"),
        ({"gird": {"seed": [1]}}, "gird: found an unknown key; expected grid"),
        ({"grid": {"seed": [1]}, "base": "none.yaml"}, "no file"),
        ({"grid": {"rounds": [1], "algorithm.name": ["x" * 200]}}, "a name of 208 signs; expected at most 150"),
        ({"grid": {"seed": [1]}, "tune": {"seeds": [1], "grid": {"train.lr": [1]}}}, "1 is that of base_seed1"),
        ({"grid": {"seed": [1]}, "tune": {"seeds": [2]}}, "tune.grid: found nothing"),
        ({"grid": {"train.lr": [1]}, "tune": {"seeds": [2], "grid": {"train.lr": [1]}}}, "do not vary themselves"),
        (
            {"grid": {"seed": [1]}, "tune": {"seeds": [2], "grid": {"train.lr": [1]}, "methods": {"deer": {"a": [1]}}}},
            "tune.methods: found deer",
        ),
        (
            {
                "grid": {"algorithm.name": ["fedavg", "deer"]},
                "tune": {"seeds": [2], "grid": {"train.lr": [1]}, "methods": {"deer": {"train.lr": [1, 2]}}},
            },
            "numbers of trials: 1 for fedavg, 2 for deer; expected equally many",
        ),
        (
            {
                "grid": {"seed": [1]},
                "tune": {"seeds": [2], "grid": {"a": [1]}, "methods": {"fedavg": {"train.lr": [1]}}},
            },
            "every method has its own",
        ),
        (
            {
                "grid": {"algorithm.name": ["fedavg", "deer"]},
                "tune": {"seeds": [2], "methods": {"deer": {"train.lr": [1, 2]}}},
            },
            "no grid for fedavg",
        ),
    ],
)
def test_a_file_that_cannot_be_run_is_one_line(words: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected):
        _ = plan_of(tmp_path, **words).trials


def test_a_folder_with_another_config_is_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, grid={"seed": [1, 2]})
    folder = plan.cells({})[1].folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**BASE, "seed": 2, "name": "base_seed2", "rounds": 3}))
    with pytest.raises(UserError, match=r"cell base_seed2: rounds: found 2; expected 3 as in .*or another --out DIR"):
        plan.cells({})
