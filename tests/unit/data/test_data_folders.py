"""What is found in a folder, and below it."""

from pathlib import Path

import pytest

from fedsim.data.folders import subfolders, visible, walked
from fedsim.errors import UserError


def make(root: Path) -> Path:
    for name in ("b.png", "a/c.png", "a/deep/d.png", ".hidden/e.png", "__MACOSX/f.png", "a/._c.png", "z.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_all_below_a_folder_by_name_deeper_ones_behind(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    assert [path.relative_to(root).as_posix() for path in walked(root)] == ["b.png", "z.txt", "a/c.png", "a/deep/d.png"]
    assert [path.name for path in visible(root)] == ["a", "b.png", "z.txt"]
    assert [path.name for path in subfolders(root)] == ["a"]


def test_links_are_followed_and_lead_round_no_circle(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    (root / "a/deep/up").symlink_to(root)
    (root / "linked").symlink_to(root / "a/deep")
    names = [path.relative_to(root).as_posix() for path in walked(root)]
    assert names == ["b.png", "z.txt", "a/c.png", "a/deep/d.png", "linked/d.png"]


def test_a_link_to_nothing_and_no_folder_are_one_line(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    (root / "a/lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"a/lost: found a link to nothing; expected a file or folder"):
        list(walked(root))
    with pytest.raises(UserError, match=r"found No such file or directory; expected a folder that can be read"):
        list(walked(tmp_path / "gone"))
