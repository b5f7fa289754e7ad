"""A data set that is named by the import path of a function: found, called, and looked at."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config.data import DataConfig
from fedsim.data import Dataset, Source, load_dataset, rarest_findings
from fedsim.errors import UserError


@pytest.fixture(autouse=True)
def _path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_set.py").write_text(
        "number = 3\ndef ends(config):\n    raise SystemExit(0)\ndef none():\n    pass\n"
    )
    (tmp_path / "own_end.py").write_text("raise SystemExit(4)\n")
    (tmp_path / "own_lack.py").write_text("import no_such_library\n")
    for name in ("own_set", "own_end", "own_lack"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def source(count: int = 30) -> Source:
    labels = np.arange(count) % 3
    images = np.zeros((count, 1, 8, 8), np.uint8) + labels[:, None, None, None].astype(np.uint8)
    return Source(images, labels, ("a", "b", "c"), sites=np.arange(count) % 2, site_names=("x", "y"))


def texts(**changes: Any) -> Source:
    rows = tuple((f"text {number}",) for number in range(30))
    return replace(source(), images=np.empty((30, 0), np.uint8), texts=rows, **changes)


def load(returned: Any, monkeypatch: pytest.MonkeyPatch, **words: Any) -> Dataset:
    import own_set

    make: Callable[..., Any] = returned if callable(returned) else lambda _: returned
    monkeypatch.setattr(own_set, "wards", make, raising=False)
    return load_dataset(DataConfig.model_validate({"name": "own_set.wards", "image_size": 8, **words}))


def test_it_becomes_a_dataset_with_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DataConfig] = []

    def make(config: DataConfig) -> Source:
        seen.append(config)
        return source()

    data = load(make, monkeypatch, root=".")
    assert seen[0].root == "."
    assert data.images.shape == (30, 3, 8, 8)
    assert data.site_names == ("x", "y")
    assert len(data.train) + len(data.val) + len(data.test) == 30
    again, other = load(source(), monkeypatch), load(replace(source(), labels=source().labels[::-1]), monkeypatch)
    assert data.arrays is not None
    assert again.arrays == data.arrays
    assert other.arrays is not None
    differing = [key for key, digest in other.arrays["each"].items() if digest != data.arrays["each"][key]]
    assert differing == ["labels"]


def test_its_own_split_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = np.repeat([0, 1, 2], 10)
    data = load(replace(source(), fixed=fixed), monkeypatch)
    assert (data.train.tolist(), data.val.tolist()) == ([*range(10)], [*range(10, 20)])
    assert data.drawn == ()


def test_texts_and_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = np.linspace(0, 1, 30, dtype=np.float32)
    data = load(
        texts(labels=np.zeros(30, np.int64), class_names=("grade",), targets=targets), monkeypatch, image_size=28
    )
    assert data.unit == "texts"
    assert data.targets is not None


def test_findings_and_grades(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = np.stack([np.arange(30) % 2, np.arange(30) % 3 - 1, np.zeros(30)], 1).astype(np.float32)
    data = load(changed(labels=rarest_findings(targets), targets=targets), monkeypatch)
    assert data.has_findings
    assert data.label_names == ("a", "b", "c", "no finding")
    assert data.labels.max() == 3
    grades = load(changed(is_graded=True), monkeypatch)
    assert grades.is_graded
    plain = load(source(), monkeypatch)
    assert plain.arrays is not None
    assert "is_graded" not in plain.arrays["each"], "the digests of sets without grades stay what they were"


def changed(**changes: Any) -> Source:
    return replace(source(), **changes)


ZEROS = np.zeros(30, np.int64)
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (None, {}, r"data.name own_set.wards: found a function that returns None; expected a fedsim.data.Source"),
    ([1], {}, r"a function that returns an object of type list"),
    (changed(labels=[0] * 30), {}, r"labels: found an object of type list; expected int64 \(N,\)"),
    (changed(labels=np.zeros(30)), {}, r"labels: found float64 \(30,\); expected int64 \(30,\)"),
    (changed(labels=ZEROS - 1), {}, r"labels: found -1; expected at least 0"),
    (changed(labels=ZEROS + 3), {}, r"labels: found 3; expected at most 2"),
    (changed(labels=ZEROS[:29]), {}, r"images: found uint8 \(30, 1, 8, 8\); expected uint8 \(29, 1, 8, 8\)"),
    (changed(images=np.zeros((30, 1, 8, 8))), {}, r"images: found float64 .*; expected uint8"),
    (changed(images=np.zeros((30, 8, 8, 3), np.uint8)), {}, r"expected uint8 \(30, 3, 8, 8\)"),
    (changed(images=None), {}, r"images: found None; expected uint8"),
    (source(), {"image_size": 16}, r"images: found uint8 \(30, 1, 8, 8\); expected uint8 \(30, 1, 16, 16\)"),
    (changed(class_names=["a", "b", "c"]), {}, r"class_names: found an object of type list; expected a tuple of str"),
    (changed(class_names=("a",)), {}, r"class_names: found 1 names; expected at least 2"),
    (changed(class_names=("a", "a", "b")), {}, r"class_names: found 3 names, 2 of them different"),
    (changed(site_names=()), {}, r"site_names: found sites without site_names; expected both or neither"),
    (changed(sites=ZEROS + 2), {}, r"sites: found 2; expected at most 1"),
    (changed(groups=ZEROS[:3]), {}, r"groups: found int64 \(3,\); expected int64 \(30,\)"),
    (changed(fixed=ZEROS + 3), {}, r"fixed: found 3; expected at most 2"),
    (changed(strata=ZEROS - 1), {}, r"strata: found -1; expected at least 0"),
    (changed(masks=np.zeros((30, 8, 8), bool)), {}, r"masks: found bool .*; expected uint8 \(30, 8, 8\)"),
    (changed(masks=np.full((30, 8, 8), 3, np.uint8)), {}, r"masks: found 3; expected at most 2"),
    (
        changed(targets=np.zeros((30, 2), np.float32)),
        {},
        r"targets: found float32 \(30, 2\); expected float32 \(30, 3\)",
    ),
    (
        changed(targets=np.full((30, 3), 0.5, np.float32)),
        {},
        r"targets: found other numbers; expected 1 present",
    ),
    (changed(targets=np.zeros((30, 3))), {}, r"targets: found float64 \(30, 3\); expected float32"),
    (changed(targets=np.zeros((30, 3), np.float32), labels=ZEROS + 4), {}, r"labels: found 4; expected at most 3"),
    (changed(is_graded=1), {}, r"is_graded: found an object of type int; expected true or false"),
    (
        changed(is_graded=True, masks=np.zeros((30, 8, 8), np.uint8)),
        {},
        r"is_graded: found true with masks, targets or texts; expected false",
    ),
    (changed(files=("a.png",)), {}, r"files: found an object of type tuple; expected a tuple of Path"),
    (texts(targets=np.full(30, np.nan, np.float32)), {"image_size": 28}, r"targets: found nan or inf"),
    (texts(targets=np.zeros(30)), {"image_size": 28}, r"targets: found float64 .*; expected float32"),
    (
        replace(texts(), texts=("a",) * 30),
        {"image_size": 28},
        r"texts: found other rows; expected a tuple of one string",
    ),
    (replace(texts(), texts=(("a",),)), {"image_size": 28}, r"texts: found a tuple of 1; expected a tuple of 30"),
    (texts(), {}, r"data.image_size: found 8 with name: own_set.wards, which has no images"),
    (texts(), {"image_size": 28, "augment": ["flip"]}, r"data.augment: .*; expected none: only images are augmented"),
    (source(), {"max_tokens": 5}, r"data.max_tokens: .*; expected null: only texts have tokens"),
    (source(0), {}, r"an empty set; expected images or texts"),
]


@pytest.mark.parametrize(("returned", "words", "message"), REFUSED)
def test_what_it_returns_is_looked_at(
    returned: Any, words: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message):
        load(returned, monkeypatch, **words)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_such.wards",
            r"data.name: found 'no_such.wards' \(No module named 'no_such'\); expected a name that launch.py",
        ),
        ("own_set.absent", r"'own_set.absent' \(no absent in own_set\); expected .*, or the import path of a function"),
        ("own_set.number", r"'own_set.number', which is no function; expected a function that returns a data set"),
        ("own_set.ends", r"'own_set.ends', which ends the program \(code 0\)"),
        ("own_set.none", r"'own_set.none', which cannot be called so .*; expected a function of \(DataConfig\)"),
        ("own_end.wards", r"'own_end.wards', whose module ends the program \(code 4\); expected a module that only"),
        ("own_set..wards", r"'own_set..wards'"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_dataset(DataConfig.model_validate({"name": name}))


def test_what_the_module_raises_is_its_authors_to_read() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        load_dataset(DataConfig.model_validate({"name": "own_lack.wards"}))


@pytest.mark.parametrize("key", ["columns", "split"])
def test_keys_of_single_sets_are_refused(key: str) -> None:
    value = {"columns": {"label": "y"}, "split": "released"}[key]
    with pytest.raises(ValueError, match=rf"{key}: found .* with name: own_set.wards"):
        DataConfig.model_validate({"name": "own_set.wards", key: value})
