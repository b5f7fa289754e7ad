"""A rank of test_failures.py: meets the others and waits for a file to appear; 3 seconds are silence enough."""

import os
import sys
import time
from pathlib import Path

import torch

from fedsim.comm import watch
from fedsim.comm.group import open_group

watch.POLL_SECONDS, watch.BEAT_SECONDS, watch.SILENCE_SECONDS = 0.1, 0.2, 3.0


def main(folder: Path) -> None:
    with open_group() as group:
        (folder / f"{group.rank}.pid").write_text(str(os.getpid()))
        # Signs of life come from beside the training, which may be busy for as long as it likes.
        while not (folder / "end").exists():
            time.sleep(0.1)
        assert group.sum_exact(torch.ones(1, dtype=torch.int64)).item() == group.num_ranks


if __name__ == "__main__":
    main(Path(sys.argv[1]))
