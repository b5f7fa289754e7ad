"""The tasks of GLUE (Wang et al., ICLR 2019), as its own site has them and as the datasets library does."""

import os
import re
from dataclasses import replace
from pathlib import Path

from fedsim.config.columns import ColumnsConfig
from fedsim.config.data import DataConfig
from fedsim.data.dataset import Source
from fedsim.data.datasets.tables import Row, Table, column_names, read_table
from fedsim.data.datasets.text_files import LAYOUT, source_of, split_of_name, tables, words_of
from fedsim.data.folders import subfolders
from fedsim.data.splits import TEST, TRAIN, VAL
from fedsim.errors import UserError

Columns = tuple[str, str | None, str]  # text, second text, class or number

SENTENCES: Columns = ("sentence1", "sentence2", "label")
#: The columns in the datasets library, and where they differ those of GLUE's own files.
COLUMNS: dict[str, tuple[Columns, ...]] = {
    "cola": (("sentence", None, "label"),),
    "sst2": (("sentence", None, "label"),),
    "mrpc": (SENTENCES, ("#1 String", "#2 String", "Quality")),
    "stsb": (SENTENCES, ("sentence1", "sentence2", "score")),
    "qqp": (("question1", "question2", "label"), ("question1", "question2", "is_duplicate")),
    "mnli": (("premise", "hypothesis", "label"), ("sentence1", "sentence2", "gold_label")),
    "qnli": (("question", "sentence", "label"),),
    "rte": (SENTENCES,),
    "wnli": (SENTENCES,),
}
#: CoLA's own files have no header.
COLA_HEADER = ("source", "label", "mark", "sentence")
#: Rows of train and of the validation that becomes the test.
PUBLISHED = {
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (3668, 408),
    "stsb": (5749, 1500),
    "qqp": (363846, 40430),
    "mnli": (392702, 9815),
    "qnli": (104743, 5463),
    "rte": (2490, 277),
    "wnli": (635, 71),
}
#: Tables beside the two: secret labels, mnli's other half, and the list that MRPC was divided by.
PASSED_OVER = {"test", "mismatched", "ids"}


def glue(config: DataConfig) -> Source:
    """Read a task's tables, those of GLUE's own site (mrpc: Quality, #1 String ...) or the library's (label ...).

    They are looked for in ``root``, in its folder of the task's name (``sst2``, ``SST-2``), and where the datasets
    library keeps them in its cache; ``root`` null means that cache. GLUE's test labels are secret: the published
    validation rows become the test, mnli's matched ones, and the validation is drawn from train. Rows that have not as
    many cells as the header are left out, which a remark tells, as one does of a set that has not the published size.
    UserError for what is missing, and as ``text_files`` for the rest.
    """
    task, root = config.name.removeprefix("glue:"), config.root
    files = _files(task, root)
    columns = _columns(task, files[0])
    rows: list[Row] = []
    fixed: list[int] = []
    remarks = []
    for file in files:
        table = _table(task, file, columns)
        rows += table.rows
        fixed += [TEST if split_of_name(file) == VAL else TRAIN] * len(table.rows)
        if table.odd:
            count, first = len(table.odd), table.odd[0]
            remarks.append(f"{file}: {count} rows left out (the first: {first}) for their number of cells")
    counts = fixed.count(TRAIN), fixed.count(TEST)
    if counts != PUBLISHED[task]:
        found, published = (f"{train} and {test}" for train, test in (counts, PUBLISHED[task]))
        remarks.append(
            f"{files[0].parent} is not the published glue:{task}: {found} rows to train and test, published {published}"
        )
    text, second, target = columns
    kind = "score" if task == "stsb" else "label"
    names = ColumnsConfig.model_validate({"text": text, "second": second, kind: target})
    source = source_of(rows, fixed, names, files)
    return replace(source, remarks=(*source.remarks, *remarks))


def _files(task: str, root: str | None) -> list[Path]:
    """Return the tables of train and validation."""
    cache = os.environ.get("HF_DATASETS_CACHE") or "~/.cache/huggingface/datasets"
    base = Path(root or cache).expanduser()
    own = [folder for folder in subfolders(base) if _task_of(folder) == task] if base.is_dir() else []
    candidates = [base, *own, *sorted(base.glob(f"*glue/{task}/*/*"))]
    found = next((files for folder in candidates if (files := tables(folder))), [])
    files = [file for file in found if not PASSED_OVER & words_of(file)]
    if {split_of_name(file) for file in files} != {TRAIN, VAL}:
        where = "it, its folder of the task's name (such as SST-2) or a cache of the datasets library"
        raise UserError(f"data.root {base}", f"no train and validation tables of glue:{task}", f"{LAYOUT} in {where}")
    return files


def _task_of(folder: Path) -> str:
    """Return a folder's name as a task's: SST-2, sst_2 and sst2 are one."""
    return re.sub("[^a-z0-9]", "", folder.name.lower())


def _columns(task: str, file: Path) -> Columns:
    """Return the columns that a file has of those that the task may have; the first of them where it has none."""
    names = set(column_names(file))
    known = COLUMNS[task]
    return next((columns for columns in known if names.issuperset(_named(columns))), known[0])


def _named(columns: Columns) -> list[str]:
    return [name for name in columns if name is not None]


def _table(task: str, file: Path, columns: Columns) -> Table:
    has_no_header = task == "cola" and file.suffix == ".tsv" and "sentence" not in column_names(file)
    table = read_table(file, _named(columns), COLA_HEADER if has_no_header else None)
    if not table.rows:
        expected = ", ".join(COLA_HEADER if has_no_header else _named(columns))
        raise UserError(str(file), f"no row, {len(table.odd)} of another number of cells aside", f"rows: {expected}")
    return table
