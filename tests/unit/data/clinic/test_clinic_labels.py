"""What a row of a table of labels may call a file of an import."""

from pathlib import Path

import pytest

from fedsim.data.clinic.labels import read_labels
from fedsim.errors import UserError

SOURCES = ["ct/1.2.840.113.1", "ct/1.2.840.113.2", "mr/scan.v1.nii.gz", "mr/scan.v2.nii.gz", "x/a.b.PNG", "y/1.dcm"]


def read(folder: Path, *words: str) -> set[str]:
    (folder / "labels.csv").write_text("\n".join(["path,label", *(f"{word},a" for word in words)]))
    return set(read_labels(folder / "labels.csv", SOURCES))


def test_a_file_is_called_by_its_path_or_its_name_with_or_without_its_suffix(tmp_path: Path) -> None:
    words = ("1.2.840.113.1", "ct/1.2.840.113.2", "scan.v1", "scan.v2.nii.gz", "a.b", "1")
    assert read(tmp_path, *words) == set(SOURCES)


@pytest.mark.parametrize("word", ["1.2.840.113", "scan", "scan.v1.nii", "a", "2"])
def test_what_stands_before_a_dot_of_a_name_is_no_name(tmp_path: Path, word: str) -> None:
    """Numbers of DICOM have many dots, and each of a study begins alike."""
    with pytest.raises(UserError, match=rf"row 1 '{word}': no files"):
        read(tmp_path, word)
