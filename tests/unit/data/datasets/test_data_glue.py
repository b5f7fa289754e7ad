"""GLUE, from small tables in the formats of its own site (from memory of them) and of the datasets library."""

from pathlib import Path

import pytest

from fedsim.data.datasets.glue import PUBLISHED
from fedsim.errors import UserError
from tests.helpers import load_set
from tests.unit.data.datasets.test_data_texts import lines, write

#: A task's folder on GLUE's site, the lines of train and of the validation, and what is read: classes, first text.
SITE: dict[str, tuple[str, str, list[str], tuple[str, ...], tuple[str, ...]]] = {
    "cola": (
        "CoLA",
        "",
        ["gj04\t1\t\tOur friends won't buy \"this", "gj04\t0\t*\tThey drank the pub."],
        ("0", "1"),
        ("Our friends won't buy \"this",),
    ),
    "sst2": (
        "SST-2",
        "sentence\tlabel",
        ['hide " new secretions \t0', "contains no wit \t1"],
        ("0", "1"),
        ('hide " new secretions',),
    ),
    "mrpc": (
        "MRPC",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        ['1\t70\t71\tHe said "no.\tHe " declined.', "0\t72\t73\tA b.\tC d."],
        ("0", "1"),
        ('He said "no.', 'He " declined.'),
    ),
    "stsb": (
        "STS-B",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        [
            "0\tmain-captions\tMSRvid\t2012test\t1\tnone\tnone\tA plane.\tAn air plane.\t5.000",
            "1\tmain-captions\tMSRvid\t2012test\t4\tnone\tnone\tA man.\tA dog.\t3.800",
        ],
        ("score",),
        ("A plane.", "An air plane."),
    ),
    "qqp": (
        "QQP",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        ['1\t2\t3\tHow is "life"?\tHow\'s life?\t1', "4\t5\t6\tWhy?\tWho?\t0"],
        ("0", "1"),
        ('How is "life"?', "How's life?"),
    ),
    "mnli": (
        "MNLI",
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
        "\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        [
            f"0\t1\t1n\tfiction\t( a )\t( b )\t(A)\t(B)\tOne.\tTwo.\t{kind}\t{kind}"
            for kind in ("neutral", "entailment", "contradiction")
        ],
        ("contradiction", "entailment", "neutral"),
        ("One.", "Two."),
    ),
    "qnli": (
        "QNLI",
        "index\tquestion\tsentence\tlabel",
        ["0\tWhen?\tIn 1850.\tentailment", '1\tWho?\t"Nobody\tnot_entailment'],
        ("entailment", "not_entailment"),
        ("When?", "In 1850."),
    ),
    "rte": (
        "RTE",
        "index\tsentence1\tsentence2\tlabel",
        ["0\tA b.\tB.\tnot_entailment", "1\tC d.\tD.\tentailment"],
        ("entailment", "not_entailment"),
        ("A b.", "B."),
    ),
    "wnli": (
        "WNLI",
        "index\tsentence1\tsentence2\tlabel",
        ["0\tI stuck a pin.\tIt had a hole.\t1", "1\tC.\tD.\t0"],
        ("0", "1"),
        ("I stuck a pin.", "It had a hole."),
    ),
}


def write_site(task: str, folder: Path) -> None:
    """The tables of a task as GLUE's site has them, with what else lies beside them."""
    _, header, rows, *_ = SITE[task]
    head = [header] if header else []
    validation = "dev_matched" if task == "mnli" else "dev"
    lines(folder / "train.tsv", *head, *rows * 10)
    lines(folder / f"{validation}.tsv", *head, *rows)
    lines(folder / "test.tsv", "index\tsentence", "0\tno label")
    if task == "mnli":
        lines(folder / "dev_mismatched.tsv", *head, *rows * 7)
    if task == "mrpc":
        lines(folder / "dev_ids.tsv", "70\t71")  # left there by the script that most people fetch GLUE with


@pytest.mark.parametrize("task", SITE)
@pytest.mark.parametrize("place", ["site", "name", "above"])
def test_tables_of_glues_own_site(tmp_path: Path, task: str, place: str) -> None:
    own_name, _, rows, classes, first = SITE[task]
    folder = tmp_path / "glue_data" / (task if place == "name" else own_name)
    write_site(task, folder)
    data = load_set(f"glue:{task}", root=str(folder if place == "site" else folder.parent))
    assert data.class_names == classes
    assert data.texts[0] == first
    assert len(data.test) == len(rows)
    assert len(data.train) + len(data.val) == 10 * len(rows)
    if task == "stsb":
        assert data.targets[:2].tolist() == pytest.approx([5.0, 3.8])
    assert [file.partition(".")[0].partition("_")[0] for file in data.files["each"]] == ["dev", "train"]


def test_rows_that_lack_cells_are_left_out_with_a_word(tmp_path: Path) -> None:
    """QQP's published table has some; the datasets library leaves them out as well."""
    write_site("qqp", tmp_path / "QQP")
    with (tmp_path / "QQP" / "train.tsv").open("a") as file:
        file.write("7\t8\t9\tIs it\n")
    data = load_set("glue:qqp", root=str(tmp_path))
    assert len(data.texts) == 22
    assert data.remarks[0] == f"{tmp_path}/QQP/train.tsv: 1 rows left out (the first: 21) for their number of cells"


def test_a_set_of_another_size_than_the_published_is_remarked_upon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_site("rte", tmp_path / "rte")
    where = f"{tmp_path}/rte is not the published glue:rte"
    size = "20 and 2 rows to train and test, published 2490 and 277"
    assert load_set("glue:rte", root=str(tmp_path)).remarks[0] == f"{where}: {size}"
    monkeypatch.setitem(PUBLISHED, "rte", (20, 2))
    assert all("published" not in remark for remark in load_set("glue:rte", root=str(tmp_path)).remarks)


def test_another_table_under_a_tasks_name_is_refused(tmp_path: Path) -> None:
    """News without a header under CoLA's name, which were printed at length."""
    for name in ("train", "dev"):
        lines(tmp_path / f"{name}.tsv", *["news " * 100 + "\t1"] * 3)
    with pytest.raises(UserError, match=r"no row, 3 of another number of cells aside; expected rows: source") as caught:
        load_set("glue:cola", root=str(tmp_path))
    with pytest.raises(UserError, match=r"found no column sentence1; expected one of its columns"):
        load_set("glue:rte", root=str(tmp_path))
    assert "news" not in str(caught.value)


def test_glue_in_the_cache_of_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "nyu-mll___glue" / "mnli" / "0.0.0" / "abcdef"
    rows = [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 3, "idx": i} for i in range(30)]
    write(folder / "glue-train.arrow", rows)
    write(folder / "glue-validation_matched.arrow", rows[:6])
    write(folder / "glue-validation_mismatched.arrow", rows[:5])
    write(folder / "glue-test_matched.arrow", [row | {"label": -1} for row in rows[:4]])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    for data in (load_set("glue:mnli"), load_set("glue:mnli", root=str(folder))):
        assert len(data.texts) == 36
        assert len(data.test) == 6
        assert len(data.train) + len(data.val) == 30
        assert data.texts[data.test[5]] == ("p 5", "h 5")
        assert data.class_names == ("0", "1", "2")


def test_glue_stsb_is_a_regression(tmp_path: Path) -> None:
    rows = [{"sentence1": "x", "sentence2": "y", "label": i / 4, "idx": i} for i in range(20)]
    for name in ("train", "validation"):
        write(tmp_path / "stsb" / f"{name}.parquet", rows)
    assert load_set("glue:stsb", root=str(tmp_path)).targets.max() == 4.75


def test_glue_that_is_not_there_is_refused(tmp_path: Path) -> None:
    lines(tmp_path / "MRPC" / "train.tsv", "Quality")
    with pytest.raises(UserError, match=r"no train and validation tables of glue:rte; .*folder of the task's name"):
        load_set("glue:rte", root=str(tmp_path))
