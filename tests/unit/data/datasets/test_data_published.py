"""Small files with the names, headers and folders of published sets, read by the rows that docs/own_images.md shows."""

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from fedsim.errors import UserError
from tests.docs.pages import blocks
from tests.helpers import load_set

pytestmark = pytest.mark.usefixtures("cache")
PAGE = Path(__file__).resolve().parents[4] / "docs" / "own_images.md"
#: Enough rows of each for three splits: their number is what differs from one row to the next.
ROWS = range(48)


def write(root: Path, table: str, header: str, rows: list[str], files: list[str]) -> None:
    """A table, and images whose grey tells the row."""
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 8), 5 * number).save(root / file, quality=100)
    (root / table).parent.mkdir(parents=True, exist_ok=True)
    (root / table).write_text("\n".join([header, *rows]) + "\n")


def ham10000(root: Path) -> None:
    """Ten thousand images in two folders; a lesion has up to six; no suffix in the table."""
    rows = [
        f"HAM_{n // 2:07},ISIC_{24306 + n:07},{('bkl', 'nv')[n // 4 % 2]},histo,80.0,male,scalp,"
        f"{('vidir_modern', 'rosendahl')[n // 2 % 2]}"
        for n in ROWS
    ]
    files = [f"HAM10000_images_part_{n % 2 + 1}/ISIC_{24306 + n:07}.jpg" for n in ROWS]
    write(root, "HAM10000_metadata.csv", "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset", rows, files)


def fed_isic2019(root: Path) -> None:
    """FLamby's table, without suffix, beside the folder of resized images; six centres."""
    rows = [
        f"ISIC_{53453 + n:07},{','.join('1.0' if n % 3 == c else '0.0' for c in range(9))},{n % 3},{n % 4},"
        f"{'test' if n % 6 > 4 or n > 40 else 'train'},x"
        for n in ROWS
    ]
    files = [f"ISIC_2019_Training_Input_preprocessed/ISIC_{53453 + n:07}.jpg" for n in ROWS]
    header = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK,target,center,fold,fold2"
    write(root, "train_test_split", header, rows, files)


def isic2019(root: Path) -> None:
    """The challenge's two tables, merged by the page's script; many lesions and ages are not told."""
    truths = [f"ISIC_{n:07},{','.join('1.0' if n % 3 == c else '0.0' for c in range(9))}" for n in ROWS]
    write(root, "ISIC_2019_Training_GroundTruth.csv", "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK", truths, [])
    rows = [f"ISIC_{n:07},55.0,,{f'MSK4_{n // 3:07}' if n % 4 else ''},female" for n in reversed(ROWS)]
    files = [f"ISIC_2019_Training_Input/ISIC_{n:07}.jpg" for n in ROWS]
    write(root, "ISIC_2019_Training_Metadata.csv", "image,age_approx,anatom_site_general,lesion_id,sex", rows, files)
    with contextlib.chdir(root):
        exec(next(block.text for block in blocks(PAGE.read_text()) if block.file == "merge_isic2019.py"), {})


def chestxray14(root: Path) -> None:
    """NIH's table, whose header names two columns with commas in brackets and ends in a comma, as its rows do."""
    rows = [
        f"{n // 2 + 1:08}_{n % 2:03}.png,{('Cardiomegaly|Emphysema', 'No Finding')[n // 2 % 2]},{n % 2},{n // 2 + 1},"
        "058Y,M,PA,2682,2749,0.143,0.143,"
        for n in ROWS
    ]
    files = [f"images_{n % 12 + 1:03}/images/{n // 2 + 1:08}_{n % 2:03}.png" for n in ROWS]
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    )
    write(root, "Data_Entry_2017.csv", header, rows, files)


def chexpert(root: Path) -> None:
    """CheXpert's paths begin with the set's own folder and tell the patient; most findings are empty."""
    paths = [f"CheXpert-v1.0-small/train/patient{n // 2 + 1:05}/study1/view{n % 2 + 1}_frontal.jpg" for n in ROWS]
    rows = [
        f"{path},Male,68,Frontal,AP,,,{('1.0', '-1.0', '0.0', '')[n // 2 % 4]},,,0.0,,,1.0,,,,,1.0"
        for n, path in enumerate(paths)
    ]
    header = (
        "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,"
        "Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,"
        "Support Devices"
    )
    write(root, "CheXpert-v1.0-small/train.csv", header, rows, paths)


def chexpert_and_valid(root: Path) -> None:
    """The same, whose last quarter is the table of patients that three readers have seen: all is known of them."""
    chexpert(root)
    table = root / "CheXpert-v1.0-small/train.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *rows[:36]]) + "\n")
    seen = [row.replace("small/train/", "small/valid/").replace(",-1.0", ",0.0") for row in rows[36:]]
    (root / "CheXpert-v1.0-small/valid.csv").write_text("\n".join([header, *seen]) + "\n")
    for row in rows[36:]:
        old = root / row.split(",")[0]
        new = Path(str(old).replace("small/train/", "small/valid/"))
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)


#: The name in the page's table, what writes it, and its classes, sites and groups.
SETS: dict[str, tuple[Any, int, int, int | None]] = {
    "HAM10000": (ham10000, 2, 2, 24),
    "Fed-ISIC2019 (FLamby)": (fed_isic2019, 3, 4, None),
    "ISIC 2019, lesions of HAM10000 and BCN20000": (isic2019, 3, 0, 28),
    "NIH ChestX-ray14": (chestxray14, 2, 0, 24),
    "CheXpert": (chexpert, 5, 0, 24),
    "CheXpert with its own validation": (chexpert_and_valid, 5, 0, 24),
}


def words_on_the_page(name: str) -> dict[str, Any]:
    """The rows of a config that the page shows for a set."""
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {name} |"))
    shown = re.search(r"`(\{.*\})`", row)
    assert shown is not None
    words: dict[str, Any] = yaml.safe_load(shown[1])
    return words


def test_every_table_on_the_page_is_tried() -> None:
    tables = [line for line in PAGE.read_text().splitlines() if "`{name: table" in line and line.startswith("| ")]
    assert [line.split(" | ")[0][2:] for line in tables] == list(SETS)


@pytest.mark.parametrize("name", SETS)
def test_a_published_layout_is_read(tmp_path: Path, name: str) -> None:
    make, num_classes, num_sites, num_groups = SETS[name]
    make(tmp_path)
    words = words_on_the_page(name)
    words["root"] = str(tmp_path / words.get("root", "").removeprefix(".../"))
    data = load_set(**{"image_size": 8, **words})
    assert len(data.class_names) == num_classes
    assert len(data.site_names) == num_sites
    # JPEG may move a value by one or two; the rows are five apart.
    assert ((data.images[:, 0, 0, 0].long() + 2) // 5).tolist() == list(ROWS)
    if num_groups is None:
        assert data.groups is None
        assert data.drawn == ("val",)
    else:
        assert len(set(data.groups.tolist())) == num_groups
        parts = [set(data.groups[part].tolist()) for part in (data.train, data.val, data.test)]
        assert parts[0].isdisjoint(parts[1] | parts[2])
        assert parts[1].isdisjoint(parts[2])
    if make is chexpert_and_valid:
        assert data.drawn == ("test",)
        assert data.val.tolist() == list(range(36, 48))


def test_findings_are_those_of_the_tables(tmp_path: Path) -> None:
    chexpert(tmp_path / "a")
    words = words_on_the_page("CheXpert") | {"root": str(tmp_path / "a"), "image_size": 8}
    data = load_set(**words)
    assert data.has_findings
    assert data.class_names[0] == "Cardiomegaly"
    # 1, -1, 0 and nothing, a patient each; what is not sure counts as there, and nothing as not there.
    assert data.targets[:8, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert data.targets[:2, 1:].tolist() == [[0, 0, 1, 0]] * 2
    words["columns"] |= {"unsure": "ignored", "blank": "ignored"}
    assert load_set(**words).targets[:8, 0].tolist() == [1, 1, -1, -1, 0, 0, -1, -1]
    chestxray14(tmp_path / "b")
    data = load_set(**words_on_the_page("NIH ChestX-ray14") | {"root": str(tmp_path / "b"), "image_size": 8})
    assert data.class_names == ("Cardiomegaly", "Emphysema")
    assert data.targets[:4].tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
    table = tmp_path / "a/CheXpert-v1.0-small/train.csv"
    table.write_text(table.read_text().replace("-1.0", "perhaps", 1))
    with pytest.raises(UserError, match=r"row 3, column Cardiomegaly: found 'perhaps'; expected 1, 0, -1 or nothing"):
        load_set(**words)
