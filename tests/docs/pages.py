"""The pages of the documentation, and how a page's commands and programs are run.

A page is run from top to bottom in a folder of its own. ``sh`` blocks are run by bash, ``python`` blocks by Python. A
``python`` or ``yaml`` block that begins with a line such as ``# mine.py`` or ``# mine/mine.yaml`` is that file, and is
written. What takes minutes is made shorter by ``REDUCED``, and by nothing else. ``sh no-run`` is for what needs several
hosts, SLURM or a GPU; the sentence before it says so.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Pages of methods from papers and of clusters; run by a test file of their own, so that two processes share the work.
PAPERS = [page for page in PAGES if page.stem in ("deer", "fedpft", "harmofl", "prrfl", "clusters")]
#: Fences that hold nothing to run: pseudocode, what a program shows, a table's or a file's content.
SHOWN = ("text", "json")
NO_RUN = "sh no-run"
#: What the sentence before a block that is not run must name.
REASONS = re.compile(r"hosts|GPU|SLURM")

#: Small jobs in place of those that the pages name, by the file behind ``run`` or ``distill``.
FEW = "rounds=1 data.max_train=40 clients.count=4 'data.fractions={val: 0.03, test: 0.03}'"
TEXTS = "rounds=1 data.max_train=100 'data.fractions={val: 0.005, test: 0.005}'"
SMALL = {
    "quickstart.yaml": f"{FEW} clients.partition.alpha=10",
    "my.yaml": f"{FEW} clients.partition.alpha=10",
    "harmofl_cells.yaml": "rounds=1 train.steps=1",
    "prrfl_brain_mri.yaml": "rounds=1 train.epochs=1 data.max_train=100 evaluate.clients=false",
    "fedpft_sentences.yaml": f"{TEXTS} 'algorithm.distill={{epochs: 0.01, batch_size: 8}}'",
    "fedot_sentences.yaml": TEXTS,
    "submodel_minilm.yaml": "distill.epochs=0.5 data.max_train=64",
}
#: Patterns in a command, each with what takes its place. Commands are on one line by then.
REDUCED = (
    # Setting up and testing everything is what these tests are part of: that the target is there is enough.
    (r"^make (\w+)\b.*$", r"grep -q '^\1:' Makefile"),
    (r"^(?:\w+=\S+ )*(?:torchrun .*-m|python -m) (benchmarks(?:\.\w+)+)\b.*$", r"python -m \1 --help"),
    # Of a tuned sweep the first trial.
    (r"^(.*launch\.py sweep tuned\.yaml --out \S+)$", r"\1 --index 0"),
    (r"^(?:\w+=\S+ )*python -m pytest (.*)$", r"python -m pytest --collect-only --quiet \1"),
    (
        r"^(.*launch\.py (?:run|distill)\s+(?:\S*/)?(\w+\.yaml).*?)(\s*#.*)?$",
        lambda found: f"{found[1]} {SMALL.get(found[2], '')}".rstrip(),
    ),
)
FENCE = re.compile(r"^```(\w*)([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE_NAME = re.compile(r"^# ([\w./-]+\.(?:py|yaml))\n")


@dataclass(frozen=True)
class Block:
    """A fenced block. ``before``: the paragraph above it."""

    kind: str
    text: str
    line: int
    before: str

    @property
    def file(self) -> str | None:
        """The file that the block is."""
        found = FILE_NAME.match(self.text)
        return found[1] if found and self.kind in ("python", "yaml") else None


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, from top to bottom."""
    for found in FENCE.finditer(page):
        before = page[: found.start()].rstrip().rpartition("\n\n")[2]
        yield Block((found[1] + found[2]).strip(), found[3], page.count("\n", 0, found.start()) + 1, before)


def make_place(folder: Path) -> Path:
    """Make a folder that looks like the repository: what may be written is a copy, all else a link."""
    folder.mkdir(parents=True)
    for name in ("fedsim", "algorithms", "comm", "launch.py", "benchmarks", "tests", "Makefile", "docs", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "requirements.txt").symlink_to(ROOT / "requirements.txt")
    return folder


def reduced(commands: str) -> str:
    """Return shell commands with what takes minutes made short."""
    lines = commands.replace("\\\n", " ").splitlines()
    for pattern, replacement in REDUCED:
        lines = [re.sub(pattern, replacement, line) for line in lines]
    return "\n".join(lines) + "\n"


def run_page(page: Path, place: Path) -> list[Block]:
    """Run a page's blocks in ``place`` and return those that were run; AssertionError for one that fails."""
    done = []
    for block in blocks(page.read_text()):
        where = f"{page.name}:{block.line}"
        if block.kind == NO_RUN:
            assert REASONS.search(block.before), f"{where}: the sentence before says what it needs"
        elif block.file is not None:
            target = place / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            assert target.resolve().is_relative_to(place.resolve()), f"{where}: {block.file} is the repository's own"
            target.write_text(block.text)
        elif block.kind == "yaml":
            assert yaml.safe_load(block.text) is not None, where
        elif block.kind in ("sh", "python"):
            run_block(block, place, where)
            done.append(block)
        else:
            assert block.kind in SHOWN, f"{where}: no block of kind {block.kind!r} is known"
    return done


def run_block(block: Block, place: Path, where: str) -> None:
    """Run one block; AssertionError with all that it showed where it fails."""
    command = ["bash", "-eo", "pipefail", "-s"] if block.kind == "sh" else [sys.executable, "-"]
    text = reduced(block.text) if block.kind == "sh" else block.text
    ended = subprocess.run(
        command, cwd=place, input=text, capture_output=True, text=True, env=environment(place), timeout=300
    )
    assert ended.returncode == 0, f"{where}: exit code {ended.returncode}\n{text}{ended.stdout}{ended.stderr}"


def environment(place: Path) -> dict[str, str]:
    """The tests' environment with Python's programs on the path, no network, and ports of its own."""
    nowhere = "http://127.0.0.1:9"
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(place),
        "OMP_NUM_THREADS": "1",
        "PET_STANDALONE": "1",
        "HF_HUB_OFFLINE": "1",
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nowhere),
    }
