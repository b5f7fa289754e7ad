"""The report on a run: its files hold what the run measured, and what can be computed from each other agrees."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, roc_auc_score
from typer.testing import CliRunner

import launch
from fedsim import build
from fedsim.data import Dataset
from fedsim.errors import UserError
from fedsim.verbs.evaluate import evaluate_run
from tests.distributed.runs import reported
from tests.unit.tasks.test_findings import findings_set
from tests.unit.verbs.reports import SITES, finished, own_data, printed, table


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """What the config's digits are in these tests."""
    return own_data(monkeypatch)


@pytest.mark.usefixtures("data")
def test_the_files_hold_what_the_run_measured(tmp_path: Path) -> None:
    results = finished(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    parts = evaluate_run(tmp_path / "run", "best")
    assert {path: path.read_bytes() for path in before} == before
    folder = tmp_path / "run" / "evaluation" / "best"
    report = json.loads((folder / "evaluation.json").read_text())
    assert (report["run"], report["round"]) == ("sited", results["best_round"])
    for one in report["sets"]:
        whole = one["scores"][0]
        assert {name: found["value"] for name, found in whole["metrics"].items()} == results[one["set"]]
        assert all(found["low"] <= found["value"] <= found["high"] for found in whole["metrics"].values())
        assert whole["images"] == 12
        assert one["drawn_together"] == "groups"
        kinds = [(group["kind"], group["name"]) for group in one["scores"]]
        assert kinds == [
            ("all", "all"),
            *(("site", name) for name in SITES),
            *(("client", str(number)) for number in range(3)),
        ]
        # A client of the sites' partition has the images of its site.
        for site, client in zip(one["scores"][1:4], one["scores"][4:], strict=True):
            assert site["images"] == client["images"]
            assert site["metrics"]["accuracy"]["value"] == client["metrics"]["accuracy"]["value"]
            assert "low" not in client["metrics"]["accuracy"]
    lines = printed(parts)
    assert any("balanced accuracy" in line for line in lines)
    assert any("north" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_predictions_confusion_and_tables_agree(tmp_path: Path, data: Dataset) -> None:
    finished(tmp_path)
    evaluate_run(tmp_path / "run", "last", out=tmp_path / "there")
    folder = tmp_path / "there"
    rows = [row for row in table(folder / "predictions.csv") if row["set"] == "test"]
    assert [int(row["index"]) for row in rows] == data.test.tolist()
    truth = [data.class_names[label] for label in data.labels[torch.from_numpy(data.test)].tolist()]
    assert [row["label"] for row in rows] == truth
    assert data.sites is not None
    assert [row["site"] for row in rows] == [SITES[site] for site in data.sites[data.test]]
    chances = np.array([[float(row[f"probability/{name}"]) for name in data.class_names] for row in rows])
    assert chances.sum(1) == pytest.approx(1)
    predicted = [data.class_names[place] for place in chances.argmax(1)]
    assert [row["predicted"] for row in rows] == predicted
    counts = [
        [int(row[f"predicted/{name}"]) for name in data.class_names]
        for row in table(folder / "confusion.csv")
        if row["set"] == "test"
    ]
    assert counts == confusion_matrix(truth, predicted, labels=list(data.class_names)).tolist()
    for row in table(folder / "classes.csv"):
        if row["set"] == "test":
            place = data.class_names.index(row["class"])
            own = np.array(truth) == row["class"]
            assert float(row["auroc"]) == pytest.approx(roc_auc_score(own, chances[:, place]))
    same = json.loads((folder / "predictions.json").read_text())["test"]
    assert same["probability/class 0"] == [float(row["probability/class 0"]) for row in rows]
    curves = json.loads((folder / "curves.json").read_text())["test"]
    points = [row for row in table(folder / "roc.csv") if (row["set"], row["class"]) == ("test", "class 1")]
    assert [float(row["true_positive_rate"]) for row in points] == curves["class 1"]["roc"]["true_positive_rate"]
    thresholds = {row["threshold_from"] for row in table(folder / "operating_points.csv") if row["set"] == "test"}
    assert thresholds == {"test", "val"}


@pytest.mark.usefixtures("data")
def test_each_client_at_every_site(tmp_path: Path) -> None:
    finished(tmp_path, "evaluate.clients=true", "evaluate.every=2")
    parts = evaluate_run(tmp_path / "run", "last", crosses=True)
    folder = tmp_path / "run" / "evaluation" / "last"
    rows = json.loads((folder / "evaluation.json").read_text())["cross_site"]
    assert [(row["model"], row["place"]) for row in rows] == [
        (model, site) for model in ("global", "client 0", "client 1", "client 2") for site in SITES
    ]
    at_home = {row["model"]: row for row in rows if row.get("home")}
    assert [row["place"] for row in at_home.values()] == list(SITES)
    # What a client's own model scored in the last round on its own images, after the communication.
    logged = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    for client in range(3):
        (own,) = (row for row in logged if row["client"] == client and row["round"] == 2 and "own" in row)
        scores = own["own"]["after"]["test"]
        assert at_home[f"client {client}"]["metrics"]["f1"] == pytest.approx(scores["f1"])
        assert at_home[f"client {client}"]["metrics"]["auroc"] == pytest.approx(scores["auroc"])
    assert any(isinstance(part, str) and part.startswith("clients' own models, mean accuracy: 0.") for part in parts)
    assert len(table(folder / "cross_site.csv")) == 12 * 7


@pytest.mark.usefixtures("data")
def test_a_method_without_models_of_the_clients_is_refused(tmp_path: Path) -> None:
    finished(tmp_path, "algorithm.name=scaffold")
    with pytest.raises(UserError, match=r"--cross-site: found scaffold, whose clients go on with the server's model"):
        evaluate_run(tmp_path / "run", "last", crosses=True)


@pytest.mark.usefixtures("data")
def test_nothing_is_said_of_single_clients_where_privacy_has_it_so(tmp_path: Path) -> None:
    finished(tmp_path, "rounds=1", "privacy={secure_aggregation: {}, observe: false}")
    with pytest.raises(UserError, match=r"--cross-site: found privacy.observe: false"):
        evaluate_run(tmp_path / "run", "last", crosses=True)
    evaluate_run(tmp_path / "run", "last")
    report = reported(tmp_path / "run" / "evaluation" / "last")
    assert all(group["kind"] != "client" for one in report["sets"] for group in one["scores"])
    assert all("client" not in one["predictions"] for one in report["sets"])


def test_findings_have_a_report_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, _ = findings_set([40])
    monkeypatch.setattr(build, "load_dataset", lambda _: dataset)
    finished(tmp_path, "algorithm.name=fedavg", "clients.partition={name: dirichlet, alpha: 1.0}")
    partition = json.loads((tmp_path / "run" / "partition.json").read_text())
    assert partition["classes"] == ["mass", "nodule", "edema", "no finding"]
    assert sum(row["n"] for row in partition["clients"]) == 40
    assert dataset.targets is not None
    shown = {
        "|".join(name for name, value in zip(dataset.class_names, row, strict=True) if value == 1)
        for row in dataset.targets.tolist()
    }
    assert {row["label"] for row in table(tmp_path / "run" / "images.csv")} == shown
    lines = printed(evaluate_run(tmp_path / "run", "last"))
    assert any("edema" in line for line in lines)
    folder = tmp_path / "run" / "evaluation" / "last"
    assert not (folder / "confusion.csv").exists()
    rows = [row for row in table(folder / "predictions.csv") if row["set"] == "val"]
    assert dataset.targets is not None
    known = dataset.targets[torch.from_numpy(dataset.val), 1].tolist()
    assert [row["label/nodule"] for row in rows] == [{1: "1", 0: "0", -1: ""}[int(value)] for value in known]
    report = json.loads((folder / "evaluation.json").read_text())
    nodule = report["sets"][0]["classes"]["nodule"]
    assert nodule["images"] == sum(value >= 0 for value in known)


@pytest.mark.usefixtures("data")
def test_the_command_shows_it_and_names_the_files(tmp_path: Path) -> None:
    finished(tmp_path, "rounds=1")
    done = CliRunner().invoke(launch.app, ["evaluate", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert f"{tmp_path / 'out'}: evaluation.json and {len(names) - 1} other files" in done.stdout
    assert {"metrics.csv", "predictions.csv", "roc.csv", "evaluation.json"} <= set(names)
