"""What stands in the page, without a browser; ``test_page_in_a_browser.py`` uses it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import UserError
from fedsim.results.comparing import Wish
from fedsim.results.page import charts
from fedsim.results.page.clients import MOST_CLIENTS
from fedsim.results.page.grids import Cell, Grid, cell_of, leading, shared_and_differing
from fedsim.results.reading import load
from fedsim.verbs.compare import report
from tests.unit.results.made import CLASSES, HOSTILE, write_whole_run, write_whole_runs
from tests.unit.results.test_comparing import write_run, write_runs


class Reader(HTMLParser):
    """Collects a page's elements, their attributes, and all text outside of style and program."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.data: dict[str, Any] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = "data" if dict(attrs).get("id") == "data" else tag

    def handle_data(self, text: str) -> None:
        if self._inside == "data" and text.strip():
            self.data = json.loads(text)
        elif self._inside not in ("style", "script") and text.strip():
            self.words.append(text.strip())

    def handle_endtag(self, tag: str) -> None:
        del tag
        self._inside = ""


def read(paths: list[Path], out: Path, **words: Any) -> Reader:
    return Reader(report(paths, Wish(**words), out).read_text())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("page")
    return read(write_whole_runs(folder / "runs"), folder / "deep" / "page.html")


def test_the_tables_are_those_of_compare(page: Reader) -> None:
    assert f"mine.{HOSTILE} is best, with accuracy 0.725 ± 0.019 on the test. Its difference" in " ".join(page.words)
    place = next(i for i, (tag, _) in enumerate(page.tags) if tag == "strong")
    assert [tag for tag, _ in page.tags].count("strong") == 1
    assert page.tags[place - 1] == ("td", {"class": "number", "data-value": "0.725"})


def test_no_one_is_bold_where_the_difference_may_be_chance(tmp_path: Path) -> None:
    found = read(
        write_runs(tmp_path / "runs", {"fedavg": [0.5, 0.6, 0.7], "deer": [0.6, 0.7, 0.7]}), tmp_path / "a.html"
    )
    assert "strong" not in [tag for tag, _ in found.tags]
    assert any("That it is better than all others is not shown." in words for words in found.words)


def test_names_from_outside_never_become_markup(page: Reader) -> None:
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert not [attribute for _, attributes in page.tags for attribute in attributes if attribute.startswith("on")]
    assert page.data["clients"]["runs"][0]["classes"] == CLASSES
    assert page.data["parts"][0]["names"][2] == f"mine.{HOSTILE}"


def test_nothing_points_out_of_the_page(page: Reader) -> None:
    links = [value for _, attributes in page.tags for key in ("src", "href") if (value := attributes.get(key))]
    assert [link for link in links if not link.startswith("#")] == ["data:,"]
    policy = next(
        a["content"] for tag, a in page.tags if tag == "meta" and "Security-Policy" in (a.get("http-equiv") or "")
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_curves_are_means_over_seeds_with_their_spread(page: Reader) -> None:
    (part,) = page.data["parts"]
    assert list(part["topics"]) == ["scores", "diagnostics", "privacy", "costs"]
    assert list(part["topics"]["scores"])[:2] == ["test.accuracy", "val.accuracy"]
    curve = part["curves"]["test.accuracy"][1]
    assert (curve["name"], curve["round"], curve["seeds"]) == (1, [1, 2, 3, 4, 5, 6], [3] * 6)
    assert curve["mean"][0] == pytest.approx(0.635 * 0.4)
    assert curve["spread"][0] == pytest.approx(0.015 * 0.4)
    assert curve["bytes"][:2] == [4, 8]
    assert curve["seconds"][:2] == [2, 4]
    assert part["curves"]["bytes_up"][1]["mean"] == [2] * 6
    assert not [name for name in part["curves"] if "per_layer" in name]


def test_a_measure_of_some_rounds_is_drawn_at_these(tmp_path: Path) -> None:
    run = write_whole_run(tmp_path / "a", "deer", 1, [0.5, 0.6, 0.7])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[1] |= {"val": None, "test": None}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = read([run], tmp_path / "a.html").data["parts"][0]["curves"]["test.accuracy"][0]
    assert (curve["round"], curve["mean"], curve["spread"]) == ([1, 3], [0.5, 0.7], [None, None])


def test_a_seed_that_stops_early_ends_its_contenders_curve(tmp_path: Path) -> None:
    """The mean of those who are left would jump, over seconds even backwards."""
    runs = [
        write_whole_run(tmp_path / str(seed), "deer", seed, scores) for seed, scores in enumerate(([0.1], [0.5, 0.7]))
    ]
    curve = read(runs, tmp_path / "a.html").data["parts"][0]["curves"]["test.accuracy"][0]
    assert (curve["round"], curve["mean"], curve["seeds"]) == ([1], [0.3], [2])


def test_methods_of_other_phases_are_drawn_together(tmp_path: Path) -> None:
    runs = [write_whole_run(tmp_path / name, name, 1, [0.5, 0.7]) for name in ("fedavg", "deer")]
    rows = [json.loads(line) for line in (runs[1] / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["diagnostics"] = {"b": {"aggregation_deviation": 0.2}, "a": {"aggregation_deviation": 0.4}}
    (runs[1] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (part,) = read(runs, tmp_path / "a.html").data["parts"]
    assert next(iter(part["topics"]["diagnostics"])) == "diagnostics.aggregation_deviation"
    curves = part["curves"]["diagnostics.aggregation_deviation"]
    assert [curve["mean"] for curve in curves] == [[0.5, 0.7], [0.3, 0.3]]


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    places = charts.thinned(1234)
    assert len(places) <= charts.MOST_POINTS + 1
    assert (places[0], places[-1]) == (0, 1233)
    assert charts.thinned(3) == [0, 1, 2]


def test_clients_have_their_images_and_curves(page: Reader) -> None:
    first = page.data["clients"]["runs"][0]
    assert first["clients"][1] == [1, 60, [10, 20, 20]]
    assert first["curves"]["train_loss"]["2"][0] == [1, 2, 3, 4, 5, 6]
    assert list(first["curves"]["own.after.test.f1"]) == ["0", "2", "3"]
    assert first["measures"]["own.after.test.f1"] == "test f1 after communication"
    assert page.data["clients"]["left_out"] == []


def test_of_many_clients_those_with_most_images_are_shown(tmp_path: Path) -> None:
    run = write_whole_run(tmp_path / "a", "deer", 1, [0.5], num_clients=MOST_CLIENTS + 50)
    first = read([run], tmp_path / "a.html").data["clients"]["runs"][0]
    assert (len(first["clients"]), first["of"], first["clients"][0][0]) == (MOST_CLIENTS, MOST_CLIENTS + 50, 50)
    table = json.loads((run / "partition.json").read_text())
    (run / "partition.json").write_text(json.dumps({**table, "num_clients": 10**6}))  # of which those have rows
    first = read([run], tmp_path / "a.html").data["clients"]["runs"][0]
    assert (first["listed"], first["of"]) == (MOST_CLIENTS + 50, 10**6)


def test_what_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.results.page.clients.MOST_NUMBERS", 100)
    found = read(write_whole_runs(tmp_path / "runs", seeds=1), tmp_path / "a.html")
    assert [run["run"] for run in found.data["clients"]["runs"]] == ["fedavg_seed0"]
    assert "Too much for one page, and left out here: deer_seed0, mine_seed0" in found.words


def test_config_environment_and_digests_are_there_but_no_folders(page: Reader) -> None:
    words = " ".join(page.words)
    for expected in ("train.lr 0.05", "git.commit c0ffee", "versions.torch 2.15.0", "cohorts o"):
        assert expected in words
    assert "my_folder" not in words


def test_keys_that_differ_stand_in_a_table() -> None:
    runs = {"a": {"seed": 1, "lr": 0.1, "mu": 2, "v": "2.10"}, "b": {"seed": 2000, "lr": 0.1, "v": "2.9"}}
    shared, others = shared_and_differing(runs)
    assert shared == [("lr", "0.1")]
    assert others is not None
    assert others.header == ["run", "seed", "mu", "v"]
    assert [[cell.text for cell in row] for row in others.rows] == [["a", "1", "2", "2.10"], ["b", "2000", "-", "2.9"]]
    assert others.numeric == [False, True, True, False]
    _, others = shared_and_differing({"a": {"lr": 0.123456}, "b": {"lr": 0.123457}})
    assert others is not None
    assert [row[1].text for row in others.rows] == ["0.123456", "0.123457"]


def test_cells_are_sorted_by_the_number_that_they_begin_with() -> None:
    texts = ("0.806 ± 0.015", "-0.302 [-0.4, -0.2]", "< 0.001", "1,234", "-", "fedavg", "4 (1 of 2)")
    assert [leading(text) for text in texts] == [0.806, -0.302, 0.001, 1234.0, None, None, 4.0]
    assert cell_of(float("nan")).text == cell_of(None).text == "-"
    assert [cell_of(value).text for value in (3, 0.123456, 12345.6, True)] == ["3", "0.1235", "12,346", "True"]


def test_a_column_stays_one_of_numbers_where_no_seed_gets_there() -> None:
    cells = [Cell(text, leading(text)) for text in ("4.25 (1 of 2)", "4.3", "- (0 of 2)")]
    assert Grid(["MB"], [[cell] for cell in cells]).numeric == [True]


def test_a_part_for_each_value(tmp_path: Path) -> None:
    runs = []
    for alpha in (0.1, 1.0):
        words = {"clients": {"partition": {"alpha": alpha}}, "digests": {"clients": str(alpha)}}
        runs += write_runs(tmp_path / str(alpha), {"fedavg": [0.5], "deer": [0.6]}, **words)
    found = read(runs, tmp_path / "a.html", per=("clients.partition.alpha",))
    assert [part["names"] for part in found.data["parts"]] == [["fedavg", "deer"]] * 2
    assert "clients.partition.alpha 0.1" in found.words


def test_a_run_at_work_is_shown_with_what_it_has(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "deer", 3, [0.5, 0.6], status="unfinished")
    found = read([run], tmp_path / "a.html")
    assert "0 of 1 have ended" in found.words
    assert found.data["parts"][0]["curves"]["val.accuracy"][0]["mean"] == [0.5, 0.6]
    assert found.data["clients"]["runs"] == []


def test_trials_are_counted(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    write_run(sweep / "deer_seed1", "deer", 1, [0.5])
    write_run(sweep / "trials" / "deer_lr1_seed9", "deer", 9, [0.4])
    trials = [{"name": f"deer_lr{lr}_seed9", "contender": "deer", "setting": {"train.lr": lr}} for lr in (1, 2)]
    cells = [{"name": "deer_seed1", "contender": "deer", "changes": {}}]
    record = {"schema": 2, "cells": cells, "per": [], "trials": trials}
    record |= {"by": None, "chosen": {"deer": {"train.lr": 1}}, "diverged": ["deer_lr2_seed9"]}
    (sweep / "sweep.json").write_text(json.dumps(record))
    assert report([sweep], Wish(), None) == sweep / "report.html"
    words = Reader((sweep / "report.html").read_text()).words
    assert "2 trial runs, on seeds that no cell of their sweep has." in words
    at = words.index("deer_lr1_seed9")
    assert words[at : at + 6] == ["deer_lr1_seed9", "deer", "train.lr=1", "finished", "0.4", "chosen"]
    assert any("2 trial runs for each contender, 2 in all, 1 of them diverged" in line for line in words)
    # Judged by the clients' own models, a trial is shown with their score.
    (row,) = map(json.loads, (sweep / "trials" / "deer_lr1_seed9" / "metrics.jsonl").read_text().splitlines())
    row["diagnostics"] = {"clients": {split: {"f1": {"after": {"mean": 0.75}}} for split in ("val", "test")}}
    (sweep / "trials" / "deer_lr1_seed9" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (sweep / "sweep.json").write_text(json.dumps(record | {"by": "clients.f1"}))
    report([sweep], Wish(), None)
    words = Reader((sweep / "report.html").read_text()).words
    assert words[words.index("deer_lr1_seed9") :][4] == "0.75"


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {"fedavg": [0.5, 0.6]})
    with pytest.raises(UserError, match="--out: found nothing, and 2 folders"):
        report(runs, Wish(), None)
    other = write_run(tmp_path / "other", "deer", 1, [0.7], digests={"test": "x"})
    with pytest.raises(UserError, match="another split of test"):
        report([*runs, other], Wish(), tmp_path / "a.html")
    (runs[0] / "partition.json").write_text('{"classes": ["a"], "clients": [{"client": 0}]}')
    with pytest.raises(UserError, match=r"partition.json: found no table of clients"):
        report([runs[0]], Wish(other_data=True), tmp_path / "a.html")
    (runs[1] / "metrics.jsonl").write_text("")
    (runs[1] / "results.json").unlink()
    with pytest.raises(UserError, match="report: found no run with a round"):
        report([runs[1]], Wish(), tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()
    assert re.fullmatch(r"fedavg_\d", load(runs[0]).runs["run"][0])
