"""A program for torchrun: launch.py with a mistake that one rank is late to meet, or that one rank alone meets.

    torchrun --nproc-per-node 2 -m tests.distributed.uneven late|alone CONFIG OUT

``late``: rank 0 begins seconds after the others. ``alone``: rank 0's config is right.
"""

import os
import sys
import time

from fedsim import launch
from fedsim.verbs import command_line


def main(kind: str, config: str, out: str) -> None:
    is_first = os.environ["RANK"] == "0"
    if kind == "late" and is_first:
        time.sleep(5)
    if kind == "alone":
        command_line.TELLING_SECONDS = 3.0
    mistake = [] if kind == "alone" and is_first else ["train.lrr=1"]
    sys.argv[:] = ["launch.py", "run", config, *mistake, "--out", out]
    launch.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
