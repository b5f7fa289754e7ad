"""``launch.py submit``: a batch script for SLURM, made from one of configs/slurm, and handed to ``sbatch``.

The script is what a user would copy and edit, with the lines filled in that are there to be edited; it can be changed
and submitted again by hand. Nothing but sbatch is needed to do so, and nothing is pickled.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from fedsim.errors import UserError, one_line
from fedsim.machine.files import write_atomic
from fedsim.machine.output import show_rows
from fedsim.runfolder.trust import load_own
from fedsim.verbs.listing import CONFIGS

SCRIPTS = CONFIGS / "slurm"
#: Where what follows from the user's words is set, in every script.
HEADER = "set -uo pipefail\n"
PYTHON = "${PYTHON:-.venv/bin/python}"
SUBMIT_SECONDS = 60

Words = Annotated[
    list[str], typer.Argument(metavar="CONFIG... [KEY=VALUE]...", help="YAML files, then changes of all of them.")
]
Seeds = Annotated[
    str | None,
    typer.Option(
        "--array",
        metavar="SEEDS",
        help="Such as 1,2,5 or 1-3: a job array, each config with each seed; the folder's name gets the task's index.",
    ),
]


def submit(
    words: Words,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the job, or of each task of an array.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs of a node, each with a rank; 0: on CPUs.")] = 1,
    ranks_per_node: Annotated[int | None, typer.Option(min=1, help="Ranks of a node, if not one per GPU.")] = None,
    cpus_per_rank: Annotated[int, typer.Option(min=1, help="CPUs and threads of a rank.")] = 4,
    time: Annotated[str, typer.Option(help="Limit, as sbatch takes it; then the job is queued again.")] = "24:00:00",
    array: Seeds = None,
    out: Annotated[Path | None, typer.Option(help="Run folder, if not runs/NAME; in an array DIR_INDEX.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the script and submit nothing.")] = False,
) -> None:
    """Write a batch script for SLURM and submit it."""
    configs = [word for place, word in enumerate(words) if place == 0 or "=" not in word]
    changes = [word for word in words if word not in configs]
    seeds = [] if array is None else seeds_of(array, changes)
    if array is None and len(configs) > 1:
        raise UserError("submit", f"{len(configs)} configs", "one, or --array SEEDS, which makes a task for each")
    # A mistake is told now, not after hours in a queue.
    tried = [*changes, f"seed={max(seeds)}"] if seeds else changes
    name, *_ = [load_own(Path(config), tried).name for config in configs]
    run = out or Path("runs") / name
    options = {
        "nodes": str(nodes),
        "gpus-per-node": str(gpus_per_node) if gpus_per_node else None,
        "ntasks-per-node": str(ranks_per_node or gpus_per_node or 1),
        "cpus-per-task": str(cpus_per_rank),
        "time": time,
        "job-name": name,
        "output": f"{run}-%{'A_%a' if seeds else 'j'}.log",
    }
    if seeds:
        options["array"] = f"0-{len(configs) * len(seeds) - 1}"
        text = array_script(configs, seeds, changes, options, out)
    else:
        text = script("train", [*configs, *changes, "--out", str(run)], options)
    file = run.with_name(f"{run.name}.sbatch")
    write_script(file, text)
    show_rows([("script", str(file)), *([] if dry_run else [("job", sbatch(file))])])


def seeds_of(text: str, changes: Sequence[str]) -> list[int]:
    """Return the seeds that ``--array`` names; UserError where it does not, or where a change names one, too."""
    found = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in text.split(",")]
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in found if part is not None]
    seeds = [seed for some in ranges for seed in some]
    if None in found or not seeds or len(set(seeds)) < len(seeds):
        raise UserError("--array", repr(text), "seeds, each once, such as 1,2,5 or 1-3")
    for change in changes:
        if change.startswith("seed="):
            raise UserError("--array", f"seeds beside {change}", "one of them")
    return seeds


def script(template: str, words: Sequence[str], options: Mapping[str, str | None]) -> str:
    """Return the text of a script of configs/slurm with its options, this Python and these words filled in."""
    text = (SCRIPTS / f"{template}.sbatch").read_text()
    lines = [with_options(line, options) if line.startswith("#SBATCH") else line for line in text.splitlines()]
    # The first lines say how to submit the script by hand; here the command that made it stands in their place.
    first = next(place for place, line in enumerate(lines) if line.startswith("#SBATCH"))
    made = one_line(shlex.join(["launch.py", *(word for word in sys.argv[1:] if word != "--dry-run")]))
    lines[1:first] = [f"# {made}", f"#SBATCH --chdir={shlex.quote(str(Path.cwd()))}"]
    filled = "\n".join(lines) + "\n"
    program = shlex.quote(str(Path(sys.argv[0]).resolve()))
    for before, after in (
        (HEADER, f"{HEADER}set -- {shlex.join(words)}\n"),
        (PYTHON, f"${{PYTHON:-{shlex.quote(sys.executable)}}}"),
        (" launch.py run ", f" {program} run "),
    ):
        assert filled.count(before) == 1, before
        filled = filled.replace(before, after)
    return filled


def with_options(line: str, options: Mapping[str, str | None]) -> str:
    """Return a line of #SBATCH with the values of some options in place of its own; None takes an option away."""
    kept = []
    for word in line.split():
        name = word.removeprefix("--").partition("=")[0]
        value = options.get(name, "")
        if value:
            kept.append(f"--{name}={shlex.quote(value)}")
        elif value is not None:
            kept.append(word)
    return " ".join(kept)


def array_script(
    configs: Sequence[str],
    seeds: Sequence[int],
    changes: Sequence[str],
    options: Mapping[str, str | None],
    out: Path | None,
) -> str:
    """Return the text of a job array's script, which has lines of its own for configs and seeds."""
    lines = {"configs": f"({shlex.join(configs)})", "seeds": f"({' '.join(map(str, seeds))})"}
    if out is not None:
        lines["run"] = f"{shlex.quote(str(out))}_$SLURM_ARRAY_TASK_ID"
    text = script("array", changes, options)
    for name, value in lines.items():
        filled = f"{name}={value}".replace("\\", r"\\")
        text, count = re.subn(rf"^{name}=.*$", filled, text, flags=re.MULTILINE)
        assert count == 1, name
    return text


def write_script(file: Path, text: str) -> None:
    """Write a script; UserError where another one stands there, in which somebody may have changed lines."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and file.read_text() != text:
            expected = "no such file: submit it by sbatch, remove it, or give another --out DIR"
            raise UserError(str(file), "a script of other content", expected)
        write_atomic(file, text.encode())
    except OSError as error:
        raise UserError(str(file), error.strerror or str(error), "a folder that can be written") from None


def sbatch(file: Path) -> str:
    """Submit a script and return the job's number; UserError with what sbatch says where it does not take it."""
    if shutil.which("sbatch") is None:
        raise UserError("submit", "no sbatch here", "a machine of a SLURM cluster, or --dry-run")
    command = ["sbatch", "--parsable", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SUBMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        # It may have taken the job and not said so.
        found = f"no answer in {SUBMIT_SECONDS:g} seconds"
        raise UserError("sbatch", found, f"one; if squeue shows no such job, submit {file}") from None
    if done.returncode != 0:
        raise UserError("sbatch", one_line(done.stderr.strip())[-200:], f"options that it takes, in {file}")
    return done.stdout.strip().partition(";")[0]
