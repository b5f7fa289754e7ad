"""What becomes of bad inputs: configs, data, partitions and weights, counted by family and by how they end.

    python -m benchmarks.bad.inputs

Good inputs are damaged one at a time, by a scheme that ``configs``, ``data`` and ``models`` spell out and
by places that a seed draws. What ``launch.py check`` does is done with each; where it ends well and the config is
small, a round is run as well. Each ends as

    refused     a UserError of one line, and nothing else on standard error: exit code 2
    harmless    checked and run: what was damaged is not looked at, or is an input like any other; all are named
    untidy      a UserError of several lines, or lines of libraries beside it
    traceback   any other exception
"""

import argparse
import contextlib
import io
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np

from benchmarks.bad.configs import bad_configs
from benchmarks.bad.damage import how_it_ends
from benchmarks.bad.data import bad_data
from benchmarks.bad.files import UNDAMAGED, Bad, bad_files
from benchmarks.bad.models import bad_models
from benchmarks.bad.tables import bad_tables
from fedsim import server
from fedsim.machine.output import show_rows
from fedsim.runfolder.trust import load_own
from fedsim.verbs import check

ENDS = ("refused", "harmless", "untidy", "traceback")
NO_NETWORK = "http://127.0.0.1:9"


class Tried(NamedTuple):
    """How a bad input ended, what was said, and how many seconds it took."""

    bad: Bad
    end: str
    said: str
    seconds: float


def try_out(bad: Bad, folder: Path) -> Tried:
    """Do with a bad input what launch.py does."""
    folder.mkdir()
    (folder / "config.yaml").write_bytes(bad.make(folder))

    # What is prepared from a bad input is not to stay; the packaged sets, which configs name, lie in the user's cache.
    cache = {} if bad.family == "configs" else {"FEDSIM_CACHE": str(folder.parent / "cache")}

    def act() -> bool:
        config = load_own(folder / "config.yaml", [])
        show_rows(check.describe(config))
        if bad.family != "configs":
            server.run(config, folder / "run", resume=False)
        return True

    start = time.perf_counter()
    with (
        patch.dict(os.environ, cache),
        _standard_error(folder / "stderr"),
        contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")),
    ):
        end, said = how_it_ends(act)
    beside = (folder / "stderr").read_text(errors="replace").strip()
    if end == "refused" and (beside or len(said.splitlines()) != 1 or not said.isprintable()):
        end, said = "untidy", f"{said!r} {beside!r}"
    shutil.rmtree(folder)
    return Tried(bad, end, said.replace(f"{folder}/", ""), time.perf_counter() - start)


@contextlib.contextmanager
def _standard_error(file: Path) -> Iterator[None]:
    """Lead standard error into a file, that of C code too."""
    kept = os.dup(2)
    with file.open("wb") as stream:
        os.dup2(stream.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def bad_inputs(folder: Path, seed: int) -> Iterator[Bad]:
    """All of them; the good ones are written into ``folder``."""
    stream = np.random.default_rng(seed)
    yield from bad_configs(stream)
    yield from bad_files([*bad_data(stream), *bad_models(), *bad_tables()], folder, stream)


def table(tried: list[Tried]) -> str:
    """How many of each family ended in which way."""
    families = list(dict.fromkeys(one.bad.family for one in tried))
    counts = Counter((family, one.end) for one in tried for family in (one.bad.family, "all"))
    rows = [("family", ENDS), *((family, [counts[family, end] for end in ENDS]) for family in [*families, "all"])]
    return "\n".join(f"{name:16}" + "".join(f"{cell:>10}" for cell in cells) for name, cells in rows)


def main() -> None:
    """Print the counts, and every end that is not refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the families, or those whose label has this in it")
    parser.add_argument("--share", type=float, default=1.0, help="try this share of them, drawn")
    parser.add_argument("--said", action="store_true", help="print what was said of those refused")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["https_proxy"] = NO_NETWORK
    stream = np.random.default_rng(options.seed)
    tried = []
    with tempfile.TemporaryDirectory(prefix="fedsim-") as name:
        folder = Path(name)
        for bad in bad_inputs(folder / "good", options.seed):
            is_drawn = stream.random() < options.share or bad.label.endswith(UNDAMAGED)
            if is_drawn and options.only in f"{bad.family}: {bad.label}":
                tried.append(try_out(bad, folder / "tried"))
    for one in tried:
        assert one.end == "harmless" or not one.bad.label.endswith(UNDAMAGED), f"{one.bad.label}: {one.said}"
        if one.end != "refused" or options.said:
            print(f"{one.end}: {one.bad.family}: {one.bad.label}: {one.said}")
    print(table([one for one in tried if not one.bad.label.endswith(UNDAMAGED)]))
    slowest = max(tried, key=lambda one: one.seconds)
    print(f"the longest took {slowest.seconds:.0f} s: {slowest.bad.family}: {slowest.bad.label}")


if __name__ == "__main__":
    main()
