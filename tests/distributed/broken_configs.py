"""A program for torchrun: every rank starts launch.py's ``run`` with every broken config, in the same order.

    torchrun --nproc-per-node 2 -m tests.distributed.broken_configs FOLDER

Writes FOLDER/<rank>.json: exit code, standard output and standard error of each.
"""

import json
import os
import sys
from pathlib import Path

from typer.testing import CliRunner

import launch
from tests.unit.config.test_config_mutations import CASES


def main(folder: Path) -> None:
    rank = os.environ["RANK"]
    del os.environ["TORCHELASTIC_USE_AGENT_STORE"]  # whose ranks would wait for torchrun to end them
    outcomes = []
    for number, case in enumerate(CASES):
        file = folder / f"{rank}-{number}.yaml"
        file.write_bytes(case.content)
        done = CliRunner().invoke(launch.app, ["run", str(file), *case.overrides, "--out", str(folder / "out")])
        outcomes.append((done.exit_code, done.stdout, done.stderr))
    (folder / f"{rank}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
