"""Tables from run folders that are written by hand, so that every number is known."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from fedsim.errors import UserError
from fedsim.results.comparing import Comparison, Wish, compare
from fedsim.results.figures.curves import score_figure
from fedsim.results.reading import load
from fedsim.results.tables import csv, latex, markdown, shown, web

DIGESTS = {"data": "d", "validation": "v", "test": "t", "clients": "c", "cohorts": "o"}


def write_run(
    folder: Path,
    method: str,
    seed: int,
    scores: list[float],
    per_round: tuple[int | None, int | None] = (1_000_000, 10),
    status: str = "finished",
    digests: Mapping[str, str | None] | None = None,
    **config: Any,
) -> Path:
    """A run whose validation is its test; ``per_round``: bytes each way, and client steps."""
    folder.mkdir(parents=True)
    words = {"name": folder.name, "seed": seed, "algorithm": {"name": method}, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(words))
    rows, timings = [], []
    for number, score in enumerate(scores, start=1):
        measured = {"accuracy": score, "loss": 1 - score}
        row = {"round": number, "train_loss": 0.5, "val": measured, "test": measured, "bytes_up": per_round[0]}
        rows.append(
            {
                **row,
                "bytes_down": per_round[0],
                "client_steps": per_round[1],
                "diagnostics": {"train": {"aggregation_deviation": score}},
            }
        )
        timings.append({"round": number, "phases": [], "seconds": 2.0})
    for name, lines in (("metrics", rows), ("timings", timings), ("clients", [])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    best = {"accuracy": max(scores), "loss": 1 - max(scores)}
    results = {"status": status, "best_round": 1, "best_by": "accuracy", "val": best, "test": best}
    if status != "unfinished":
        (folder / "results.json").write_text(json.dumps(results))
    (folder / "partition.json").write_text(json.dumps({"sha256": {**DIGESTS, **(digests or {})}}))
    return folder


def write_runs(folder: Path, scores: dict[str, list[float]], **words: Any) -> list[Path]:
    """A run of two rounds for each method and seed, the second round as good as it gets."""
    return [
        write_run(folder / f"{method}_{seed}", method, seed, [score - 0.1, score], **words)
        for method, own in scores.items()
        for seed, score in enumerate(own)
    ]


def one_table(paths: list[Path], **words: Any) -> Comparison:
    (found,) = compare(load(*paths), Wish(**words))
    return found


CLEAR = {"fedavg": [0.50, 0.52, 0.51, 0.49, 0.50], "deer": [0.80, 0.83, 0.80, 0.79, 0.81]}


def test_the_best_is_bold_where_it_is_the_best(tmp_path: Path) -> None:
    table = one_table(write_runs(tmp_path, CLEAR))
    assert (table.best, table.holds) == ("deer", True)
    text = markdown([shown(table, Wish())])
    assert "| **0.806 ± 0.015** |" in text
    assert "| fedavg | 5 | 0.504 ± 0.011 | -0.302 [" in text
    assert "corrected for all 1 pairs (Holm)" in text


def test_no_one_is_bold_where_the_difference_may_be_chance(tmp_path: Path) -> None:
    table = one_table(write_runs(tmp_path, {"fedavg": [0.5, 0.6, 0.7], "deer": [0.6, 0.7, 0.7]}))
    assert (table.best, table.holds) == ("deer", False)
    assert "**0" not in markdown([shown(table, Wish())])


def test_sums_over_the_rounds(tmp_path: Path) -> None:
    row = one_table(write_runs(tmp_path, {"fedavg": [0.5, 0.6]})).numbers.iloc[0]
    assert (row["bytes_up"], row["bytes_down"], row["seconds"], row["client_steps"]) == (2e6, 2e6, 4.0, 20.0)
    assert row["mean"] == pytest.approx(0.55)
    assert row["deviation"] == pytest.approx((0.4 + 0.5 + 0.5 + 0.6) / 4)


def test_scores_at_equal_bytes_and_steps(tmp_path: Path) -> None:
    """The dear method sends twice as much in a round, so what the cheap one spends in all is one round of its."""
    runs = write_runs(tmp_path / "cheap", {"fedavg": [0.5, 0.6]})
    runs += write_runs(tmp_path / "dear", {"deer": [0.7, 0.8]}, per_round=(2_000_000, 30))
    numbers = one_table(runs).numbers.set_index("contender")
    assert numbers["budget_bytes"].tolist() == [4e6, 4e6]
    assert numbers["mean_at_equal_bytes"].tolist() == pytest.approx([0.55, 0.65])
    # 20 steps in all are not a single round of 30.
    assert numbers["budget_client_steps"].tolist() == [20.0, 20.0]
    assert numbers.loc["fedavg", "mean_at_equal_client_steps"] == pytest.approx(0.55)
    assert pd.isna(numbers.loc["deer", "mean_at_equal_client_steps"])


def test_a_seed_without_a_score_within_the_budget_is_not_left_out_of_the_mean(tmp_path: Path) -> None:
    """Seed 0 of the cheap method stopped early: its budget is less than a round of the dear one."""
    runs = [write_run(tmp_path / "cheap_0", "fedavg", 0, [0.5], status="stopped early")]
    runs += [write_run(tmp_path / f"cheap_{seed}", "fedavg", seed, [0.5, 0.6]) for seed in (1, 2)]
    runs += write_runs(tmp_path / "dear", {"deer": [0.2, 0.5, 0.8]}, per_round=(2_000_000, 10))
    numbers = one_table(runs).numbers.set_index("contender")
    assert pd.isna(numbers.loc["deer", "mean_at_equal_bytes"])
    assert numbers.loc["fedavg", "mean_at_equal_bytes"] == pytest.approx((0.5 + 0.6 + 0.6) / 3)


def test_who_sends_nothing_sets_no_budget(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "one", {"local": [0.5]}, per_round=(0, 10)) + write_runs(tmp_path, {"fedavg": [0.6]})
    numbers = one_table(runs).numbers
    assert numbers["budget_bytes"].tolist() == [4e6, 4e6]
    assert numbers["mean_at_equal_bytes"].tolist() == pytest.approx([0.5, 0.6])


def test_bytes_to_reach_a_score(tmp_path: Path) -> None:
    table = one_table(write_runs(tmp_path, {"fedavg": [0.5, 0.65], "deer": [0.7, 0.8]}), reach=0.6)
    numbers = table.numbers.set_index("contender")
    assert numbers["bytes_to_reach"].tolist() == [4e6, 2e6]
    assert numbers["bytes_seeds_that_reach"].tolist() == [1, 2]
    assert "| 4 (1 of 2) |" in markdown([shown(table, Wish(reach=0.6))])


def test_a_score_is_reached_in_the_table_s_own_metric(tmp_path: Path) -> None:
    """A loss of 0.4 takes fedavg's second round, an accuracy of 0.4 its first."""
    runs = write_runs(tmp_path, {"fedavg": [0.6, 0.65], "deer": [0.7, 0.8]})
    numbers = one_table(runs, metrics=["loss"], reach=0.4).numbers.set_index("contender")
    assert numbers["bytes_to_reach"].tolist() == [4e6, 2e6]


def test_an_epsilon_without_bound_is_not_left_out_of_the_mean(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {"fedavg": [0.5, 0.6], "deer": [0.5, 0.6]})
    for run, epsilon in zip(runs, (1.0, None, 1.0, 3.0), strict=True):
        ended = json.loads((run / "results.json").read_text())
        (run / "results.json").write_text(json.dumps({**ended, "epsilon": epsilon}))
    found = one_table(runs).numbers.set_index("contender")["epsilon"]
    assert pd.isna(found["fedavg"])
    assert found["deer"] == 2.0


def test_simulated_seconds_to_reach_a_score(tmp_path: Path) -> None:
    """A run with a clock of 5 seconds a round reaches the score in its second one; another has no clock."""
    runs = write_runs(tmp_path, {"fedavg": [0.65], "deer": [0.65]})
    rows = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    timed = [row | {"clock": {"seconds": 5.0 * row["round"], "arrived": 3}} for row in rows]
    (runs[0] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timed))
    table = one_table(runs, reach=0.6)
    numbers = table.numbers.set_index("contender")
    assert numbers.loc["fedavg", ["clock.seconds_to_reach", "clock.seconds_seeds_that_reach"]].tolist() == [10.0, 1]
    assert numbers.loc["deer", ["clock.seconds_to_reach", "clock.seconds_seeds_that_reach"]].isna().all()
    assert "| simulated seconds to validation 0.6 |" in markdown([shown(table, Wish(reach=0.6))])
    panels = [axes.get_xlabel() for axes in score_figure(load(*runs), table).axes]
    assert panels == ["round", "MB up and down", "seconds", "simulated seconds"]


@pytest.mark.parametrize("key", sorted(DIGESTS))
def test_other_data_or_splits_are_refused_unless_told(key: str, tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {"fedavg": [0.5, 0.6]})
    runs.append(write_run(tmp_path / "other", "deer", 1, [0.7], digests={key: "x"}))
    with pytest.raises(UserError, match=r"other has .* than fedavg_1 \(seed 1\)"):
        compare(load(*runs), Wish())
    assert any("not alike: other has" in note for note in one_table(runs, other_data=True).notes)
    # Another seed may have other clients: it is only compared with itself.
    alone = write_run(tmp_path / "alone", "fedavg", 7, [0.7], digests={key: "x"})
    assert len(one_table([*runs[:2], alone]).scores) == 3


def test_runs_without_digests_are_refused(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {"fedavg": [0.5]})
    (runs[0] / "partition.json").write_text("{}")
    with pytest.raises(UserError, match="no digests of its data"):
        compare(load(*runs), Wish())


def test_a_table_for_each_value(tmp_path: Path) -> None:
    runs = []
    for alpha in (0.1, 1.0):
        digests = {"clients": str(alpha)}
        words = {"clients": {"partition": {"alpha": alpha}}, "digests": digests}
        runs += write_runs(tmp_path / str(alpha), {"fedavg": [0.5 + alpha / 10], "deer": [0.6]}, **words)
    with pytest.raises(UserError, match="other images at the clients"):
        compare(load(*runs), Wish())
    found = compare(load(*runs), Wish(per=("clients.partition.alpha",)))
    assert [one.values for one in found] == [{"clients.partition.alpha": "0.1"}, {"clients.partition.alpha": "1.0"}]
    assert [one.scores["fedavg"].iloc[0] for one in found] == pytest.approx([0.51, 0.6])


def test_a_table_of_the_runs_without_the_section_is_called_null(tmp_path: Path) -> None:
    runs = []
    for name, words in (("none", {"privacy": None}), ("eight", {"privacy": {"epsilon": 8.0}})):
        runs += write_runs(tmp_path / name, {"fedavg": [0.5], "deer": [0.6]}, **words)
    found = compare(load(*runs), Wish(per=("privacy.epsilon",)))
    assert [one.values for one in found] == [{"privacy.epsilon": "null"}, {"privacy.epsilon": "8.0"}]


def test_contenders_of_one_method_are_told_by_what_differs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r{r}", "fedavg", 0, [0.5], model={"lora": {"r": r}}) for r in (4, 8)]
    runs.append(write_run(tmp_path / "deer", "deer", 0, [0.5], model={"lora": {"r": 4}}, store={"memory": 3}))
    names = list(one_table(runs).scores.columns)
    assert names == ["fedavg, model.lora.r=4", "fedavg, model.lora.r=8", "deer"]


def test_settings_that_go_with_the_method_are_told(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, name, 0, [0.5], train={"lr": lr}) for name, lr in (("fedavg", 1), ("deer", 2))]
    assert any("contenders differ in train.lr too" in note for note in one_table(runs).notes)


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {"fedavg": [0.5, 0.6]})
    for words, expected in (
        ({"metrics": ("auroc",)}, "--metric: found auroc"),
        ({"per": ("train.lr",)}, "--per: found train.lr"),
    ):
        with pytest.raises(UserError, match=expected):
            compare(load(*runs), Wish(**words))
    twice = write_run(tmp_path / "again", "fedavg", 1, [0.5])
    with pytest.raises(UserError, match="two runs of fedavg with seed 1"):
        compare(load(*runs, twice), Wish())
    early = write_run(tmp_path / "early", "fedavg", 3, [0.5], status="unfinished")
    with pytest.raises(UserError, match="no run that has ended"):
        compare(load(early), Wish())
    assert "1 runs that have not ended are left out" in one_table([*runs, early]).notes
    for path, expected in ((tmp_path / "nothing", "no folder"), (tmp_path, "neither")):
        with pytest.raises(UserError, match=expected):
            load(path)
    with pytest.raises(UserError, match="the folder twice"):
        load(runs[0], runs[0])


def test_formats_have_the_same_numbers(tmp_path: Path) -> None:
    table = one_table(write_runs(tmp_path, CLEAR))
    texts = [shown(table, Wish())]
    assert r"\textbf{0.806 $\pm$ 0.015}" in latex(texts)
    assert r"[95 \%]" in latex(texts)
    assert "<strong>0.806 ± 0.015</strong>" in web(texts)
    numbers = pd.read_csv(io.StringIO(csv([table]))).set_index("contender")
    assert numbers.loc["deer", "is_best"]
    assert numbers.loc["fedavg", "difference"] == pytest.approx(-0.302)
    assert numbers.loc["fedavg", "mean"] == pytest.approx(0.504)


def test_signs_that_a_format_reads_are_shown_as_they_are(tmp_path: Path) -> None:
    table = one_table([write_run(tmp_path / "odd", "my_<b>&|Method", 0, [0.5])])
    texts = [shown(table, Wish())]
    assert r"my\_$<$b>\&|Method" in latex(texts)
    assert "my_&lt;b&gt;&amp;|Method" in web(texts)
    assert r"my_<b>&\|Method" in markdown(texts)


def test_the_cheapest_of_a_seed_sets_its_budget(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"fedavg_{seed}", "fedavg", seed, [0.5, 0.6], per_round=(size, 10))
        for seed, size in enumerate((1_000_000, 3_000_000))
    ]
    numbers = one_table(runs).numbers
    assert numbers["budget_bytes"].tolist() == [8e6]
    assert numbers["mean_at_equal_bytes"].tolist() == pytest.approx([0.6])
