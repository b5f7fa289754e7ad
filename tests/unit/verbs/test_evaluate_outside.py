"""A run's model on a set from outside."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fedsim.data import Dataset
from fedsim.errors import UserError
from fedsim.measure.report import kind_of
from fedsim.verbs.evaluate import evaluate_run
from tests.helpers import IMAGE_SIZE, make_dataset, make_masked_dataset, make_volumes
from tests.unit.tasks.test_findings import findings_set
from tests.unit.verbs.reports import finished, own_data, table


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """What the config's digits are in these tests."""
    return own_data(monkeypatch)


def write_folder(folder: Path, names: tuple[str, ...], number: int = 6) -> None:
    stream = np.random.default_rng(8)
    for name in names:
        (folder / name).mkdir(parents=True)
        for place in range(number):
            pixels = stream.integers(256, size=(IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{place}.png")


def outside(folder: Path, **words: Any) -> Path:
    path = folder / "clinic.yaml"
    path.write_text(yaml.safe_dump({"data": {"name": "image_folder", "root": str(folder / "clinic"), **words}}))
    return path


@pytest.mark.usefixtures("cache")
def test_a_set_from_outside(tmp_path: Path, data: Dataset) -> None:
    finished(tmp_path)
    write_folder(tmp_path / "clinic", data.class_names)
    parts = evaluate_run(tmp_path / "run", "best", data=outside(tmp_path))
    folder = tmp_path / "run" / "evaluation" / "best-clinic"
    (one,) = json.loads((folder / "evaluation.json").read_text())["sets"]
    assert (one["set"], one["images"], one["drawn_together"]) == ("outside", 18, "images")
    assert [group["kind"] for group in one["scores"]] == ["all"]
    assert "image_folder: all 18 images" in parts
    points = one["classes"]["class 0"]["operating_points"]
    assert [point["threshold_from"] for point in points] == ["outside"] * 3 + ["val"] * 3
    rows = table(folder / "predictions.csv")
    assert [int(row["index"]) for row in rows] == list(range(18))
    assert rows[0]["file"] == "class 0/0.png"


def test_kinds_of_sets() -> None:
    assert kind_of(make_dataset([4])[0]) == "images with classes"
    assert kind_of(make_masked_dataset([4], 16)[0]) == "images with masks"
    assert kind_of(make_volumes([4])[0]) == "volumes with classes"
    assert kind_of(findings_set([9, 9])[0]) == "images with findings"


@pytest.mark.usefixtures("cache")
def test_a_split_that_it_brings_is_kept(tmp_path: Path, data: Dataset) -> None:
    finished(tmp_path)
    for split, number in (("train", 4), ("test", 2)):
        write_folder(tmp_path / "clinic" / split, data.class_names, number)
    parts = evaluate_run(tmp_path / "run", "best", data=outside(tmp_path))
    assert "image_folder: its own test 6 images" in parts


@pytest.mark.usefixtures("cache")
def test_it_may_lack_classes_and_images_to_train_on(tmp_path: Path, data: Dataset) -> None:
    """A ward that has two of the three kinds, a table in which every row is for the test, and a single image."""
    finished(tmp_path)
    write_folder(tmp_path / "clinic", data.class_names[1:])
    report = measured(tmp_path, outside(tmp_path))
    assert (report["images"], sum(map(sum, report["confusion"]))) == (12, 12)
    assert [sum(row) for row in report["confusion"]] == [0, 6, 6]
    assert report["scores"][0]["metrics"]["auroc"]["value"] is not None
    rows = ["file,kind,part", *(f"class {n % 2 + 1}/{n // 2}.png,class {n % 2 + 1},test" for n in range(8))]
    (tmp_path / "clinic/labels.csv").write_text("\n".join(rows))
    columns = {"path": "file", "label": "kind", "split": "part"}
    words = {"name": "table", "file": "labels.csv", "columns": columns}
    assert [sum(row) for row in measured(tmp_path, outside(tmp_path, **words))["confusion"]] == [0, 4, 4]
    (tmp_path / "clinic/labels.csv").write_text("\n".join(rows[:2]).replace(",test", ",train"))
    assert [sum(row) for row in measured(tmp_path, outside(tmp_path, **words))["confusion"]] == [0, 1, 0]


def measured(folder: Path, words: Path) -> Any:
    """The report on the set from outside."""
    evaluate_run(folder / "run", "best", data=words)
    (one,) = json.loads((folder / "run/evaluation/best-clinic/evaluation.json").read_text())["sets"]
    return one


@pytest.mark.usefixtures("cache", "data")
@pytest.mark.parametrize(
    ("names", "words", "message"),
    [
        (
            ("class 0", "class 1"),
            {"classes": ["class 1", "class 0"]},
            r"the classes class 1, class 0; expected those of the run, in their order: class 0",
        ),
        (
            ("class 0", "class 1", "other"),
            {},
            r"clinic/other: found a class that is none of data.classes; expected class 0, class 1, class 2",
        ),
        (("a",), {"image_size": 28}, r"clinic.yaml: data.image_size: found 28; expected 14, as the run has it"),
        (("a",), {"root": "nowhere"}, r"clinic.yaml: data.root: found no folder 'nowhere'"),
        (("a",), {"name": "image_foldr"}, r"clinic.yaml: data.name: found 'image_foldr'; expected image_folder"),
        (("a",), {"rot": "x"}, r"clinic.yaml: data.rot"),
    ],
)
def test_a_set_from_outside_that_does_not_fit_is_one_line(
    names: tuple[str, ...], words: dict[str, Any], message: str, tmp_path: Path
) -> None:
    finished(tmp_path, "rounds=1")
    write_folder(tmp_path / "clinic", names)
    with pytest.raises(UserError, match=message) as caught:
        evaluate_run(tmp_path / "run", "best", data=outside(tmp_path, **words))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("data")
def test_a_file_without_data_is_one_line(tmp_path: Path) -> None:
    finished(tmp_path, "rounds=1")
    (tmp_path / "clinic.yaml").write_text("name: clinic\n")
    with pytest.raises(UserError, match=r"clinic.yaml: found no section data; expected data: \{name: ...\}"):
        evaluate_run(tmp_path / "run", "best", data=tmp_path / "clinic.yaml")
