"""The FedPFT table, from figures written by hand, and the choice of its runs."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.fedpft_table import METHODS, SEEDS, TASKS, chosen_cells, seconds, table
from fedsim.config.distill import load_distill_config
from fedsim.configure import load_config

ROOT = Path(__file__).parents[3]


def run_of(accuracy: float) -> dict[str, Any]:
    held = {"parameters": 14_000_000, "bytes": 56_000_000, "bytes_sent": 442_368}
    costs = {"full_model": {"parameters": 1, "bytes": 1, "bytes_sent": 1}, "submodel": held}
    scores = {"accuracy": accuracy, "tweets": accuracy / 2}
    return {"scores": scores, "costs": costs, "bytes_received": 5.5e6}


def test_a_row_is_the_mean_over_seeds_with_its_deviation() -> None:
    rows = {"fedpft": [run_of(value) for value in (0.8, 0.9, 1.0)], "fedot": [run_of(0.5)]}
    lines = table(rows, {"fedpft": {"training": 9.0, "alignment": 2.0}, "fedot": {"training": 8.0}})
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| FedPFT | 0.900 ± 0.100 | 0.450 ± 0.050 | 14,000,000 | 56 | 0.442 | 5.5 | 9.0 | 2.0 |"
    assert lines[3] == "| FedOT (1 of 3 seeds) | 0.500 | 0.250 | 14,000,000 | 56 | 0.442 | 5.5 | 8.0 |  |"


def test_seconds_are_the_clients_own_and_those_of_an_alignment() -> None:
    phases = [{"train_seconds_per_client": {"0": 1.0, "7": 2.0}}, {"train_seconds_per_client": {"3": 4.0}}]
    rows = [{"phases": phases, "alignment_seconds": 3.0, "seconds": 99.0}, {"phases": phases[:1], "seconds": 99.0}]
    assert seconds(rows) == {"training": 5.0, "alignment": 3.0}
    assert seconds(rows[1:]) == {"training": 3.0}


def test_cells_come_seed_by_seed_and_a_strange_one_is_refused() -> None:
    assert len(chosen_cells([])) == len(TASKS) * len(METHODS) * len(SEEDS)
    assert [seed for _, _, seed in chosen_cells(["text/fedot", "text/fedpft"])] == [10, 10, 11, 11, 12, 12]
    assert chosen_cells(["vision/fedpft/11"]) == [("vision", "fedpft", 11)]
    with pytest.raises(SystemExit, match="text/fedpf: no such run"):
        chosen_cells(["text/fedpf"])


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_the_configs_of_a_table_differ_in_the_method_alone(task: Any, tmp_path: Path) -> None:
    whole, offsite = (load_config(ROOT / f"configs/{name}_{task.data}.yaml") for name in ("fedpetuning", "fedot"))
    proxy = load_config(ROOT / f"configs/fedpft_{task.data}.yaml", [f"model.submodel.folder={tmp_path}"])
    plain = []
    for config in (whole, offsite, proxy):
        words = config.model_dump(mode="json", exclude={"name", "algorithm"})
        words["model"] |= {"submodel": None, "lora": words["model"]["lora"] | {"layers": None}}
        plain.append(words)
    assert plain[0] == plain[1] == plain[2]
    distillation = load_distill_config(ROOT / f"configs/submodel_{task.model}.yaml")
    assert distillation.model == whole.model
    assert distillation.data.name != whole.data.name
