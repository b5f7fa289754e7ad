"""The FedPFT tables in docs/fedpft.md: FedPFT beside its baselines on texts and on images, three seeds each.

    .venv/bin/python -m benchmarks.fedpft_table                         # all that is not there yet, then the tables
    .venv/bin/python -m benchmarks.fedpft_table text vision/fedot/10    # these runs, then the tables
    .venv/bin/python -m benchmarks.fedpft_table --collect               # the tables of the runs that are there
    .venv/bin/python -m benchmarks.fedpft_table --clock text            # their seconds, on a quiet machine
    .venv/bin/python -m benchmarks.fedpft_table --choose vision/fedpft  # its learning rates, by validation

Every run is launch.py with one rank of one thread and the configs named fedpetuning_*, fedpft_* and fedot_*, which have
the same data, clients, rounds and steps. One sub-model, made first by ``launch.py distill``, serves all seeds. A run's
best round by validation accuracy gives its figures, on the test texts or images. Bytes are a client's in a round, means
over the rounds. Writes benchmarks/results/fedpft.json.

``--clock`` runs two rounds of each method with few validation and test inputs. The table's seconds are theirs: all
clients' training in a round, one after the other, and the server's alignment after it.
``--choose`` runs two other seeds with several learning rates and prints the best validation accuracy of each.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.machine import description
from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.configure import load_config
from fedsim.machine.files import write_json
from fedsim.measure.global_model import global_model
from fedsim.measure.scores import evaluation_rows
from fedsim.storage.checkpoint import Checkpoints

SEEDS, CHOICE_SEEDS = (10, 11, 12), (1, 2)
CLOCK = ("rounds=2", "data.fractions={val: 0.01, test: 0.01}")
RATES = (0.001, 0.002, 0.004, 0.008)
RESULTS = Path(__file__).parent / "results" / "fedpft.json"


@dataclass(frozen=True)
class Task:
    """Configs are named ``<method>_<data>`` and ``submodel_<model>``; ``metrics`` of the test stand in the table."""

    data: str
    model: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """A row of the table: its config's name, changes of the config, and those of its sub-model's distillation."""

    title: str
    config: str
    changes: tuple[str, ...] = ()
    distillation: tuple[str, ...] | None = None


TASKS = {
    "text": Task("sentences", "minilm", ("accuracy",)),
    "vision": Task("brain_mri", "vit_small", ("balanced_accuracy", "auroc")),
}
UNALIGNED = ("algorithm={name: fedpft, align_interval: null}",)
METHODS = {
    "fedpetuning": Method("FedPETuning, LoRA on the full model", "fedpetuning"),
    "fedpft": Method("FedPFT", "fedpft", distillation=()),
    "unaligned": Method("FedPFT without alignment", "fedpft", UNALIGNED, ("distill.epochs=0",)),
    "before": Method("FedPFT, aligned before the rounds alone", "fedpft", UNALIGNED, ()),
    "fedot": Method("FedOT", "fedot"),
}


def launch(*words: str) -> None:
    """Run launch.py with one thread; what it prints goes to stderr, tables to stdout."""
    command = [sys.executable, "launch.py", *words]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=sys.stderr)


def submodel(task: Task, changes: Sequence[str], parent: Path) -> Path:
    """Make, or find, the sub-model of these changes of the task's distillation and return its folder."""
    folder = parent / "-".join(["submodel", task.model, *changes])
    launch("distill", f"configs/submodel_{task.model}.yaml", *changes, "--out", str(folder), "--resume")
    return folder


def folder_of(parent: Path, task_name: str, name: str, last: str | int) -> Path:
    """Return where a run is; ``last``: its seed, or what it is there for."""
    return parent / f"{task_name}-{name}-{last}"


def run(task_name: str, name: str, seed: int, folder: Path, *changes: str) -> None:
    """Train, or resume, one run; nothing is done for a finished one."""
    task, method = TASKS[task_name], METHODS[name]
    if not (folder / "results.json").exists():
        words = [f"configs/{method.config}_{task.data}.yaml", f"seed={seed}", *method.changes, *changes]
        if method.distillation is not None:
            words.append(f"model.submodel.folder={submodel(task, method.distillation, folder.parent)}")
        launch("run", *words, "--out", str(folder), "--resume")


def figures(task: Task, folder: Path) -> dict[str, Any]:
    """Return a finished run's figures, from its files, and accuracy by site where the clients are sites."""
    kept = folder / "figures.json"
    if not kept.exists():
        results = json.loads((folder / "results.json").read_text())
        config = load_config(folder / "config.yaml")
        by_site = accuracies(folder) if config.clients.partition.name == "sites" else {}
        scores = {metric: results["test"][metric] for metric in task.metrics} | by_site
        found = {"scores": scores, "val_accuracy": results["val"]["accuracy"], "best_round": results["best_round"]}
        num_clients = mean(len(row["phases"][0]["train_seconds_per_client"]) for row in read(folder / "timings.jsonl"))
        received = mean(row["bytes_down"] for row in read(folder / "metrics.jsonl")) / num_clients
        write_json(kept, found | {"costs": results["costs"], "bytes_received": received})
    found = json.loads(kept.read_text())
    assert isinstance(found, dict)
    return found


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def seconds(timings: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return, of rows of timings.jsonl, the mean seconds of a round's training and of an alignment, if any."""
    training = [sum(sum(phase["train_seconds_per_client"].values()) for phase in row["phases"]) for row in timings]
    alignment = [row["alignment_seconds"] for row in timings if "alignment_seconds" in row]
    return {"training": mean(training)} | ({"alignment": mean(alignment)} if alignment else {})


def accuracies(folder: Path) -> dict[str, float]:
    """Return the accuracy of a run's best state on each site's test texts."""
    config = load_config(folder / "config.yaml")
    with open_group() as group:
        saved = Checkpoints(folder / "checkpoints", config, group).load("best")
        assert saved is not None, "the run has finished"
        sim = build_simulation(config, group)
        sim.store.adopt(saved.clients)
        params = global_model(sim, saved.state).params
        places, size = sim.dataset.test, config.evaluate.batch_size
        rows = evaluation_rows(sim.task, sim.model, params, sim.images, places, size, group)
    hits = (rows.argmax(1) == sim.dataset.labels[torch.from_numpy(places)]).double()
    assert sim.dataset.sites is not None
    sites = torch.from_numpy(sim.dataset.sites[places])
    return {name: hits[sites == site].mean().item() for site, name in enumerate(sim.dataset.site_names)}


def table(rows: Mapping[str, Sequence[Mapping[str, Any]]], clock: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a table's lines; ``rows``: the figures of each seed by the method's name, ``clock``: its ``seconds``."""
    scores = list(next(iter(rows.values()))[0]["scores"])
    columns = [*(score.replace("_", " ") for score in scores), "parameters held", "MB held", "MB sent", "MB received"]
    columns += ["training, s", "alignment, s"]
    lines = [f"| method | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    for name, runs in rows.items():
        cells = []
        for score in scores:
            values = [found["scores"][score] for found in runs]
            cells.append(f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else ""))
        costs = runs[0]["costs"]
        held = costs.get("submodel", costs["full_model"])
        numbers = (held["bytes"], held["bytes_sent"], mean(found["bytes_received"] for found in runs))
        cells += [f"{held['parameters']:,}", *(f"{number / 1e6:.3g}" for number in numbers)]
        taken = clock.get(name, {})
        cells += [f"{taken[part]:.1f}" if part in taken else "" for part in ("training", "alignment")]
        title = METHODS[name].title + ("" if len(runs) == len(SEEDS) else f" ({len(runs)} of {len(SEEDS)} seeds)")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def collect(parent: Path) -> None:
    """Print a table of the finished runs of each task and write them all down."""
    facts = {path.parent.name: json.loads(path.read_text()) for path in sorted(parent.glob("*/submodel.json"))}
    everything: dict[str, Any] = {"machine": description(), "submodels": facts}
    for task_name, task in TASKS.items():
        rows = {name: finished(parent, task_name, name, task) for name in METHODS}
        rows = {name: found for name, found in rows.items() if found}
        folders = {name: folder_of(parent, task_name, name, "clock") for name in METHODS}
        clock = {
            name: seconds(read(f / "timings.jsonl")) for name, f in folders.items() if (f / "results.json").exists()
        }
        if rows:
            runs = {name: list(found.values()) for name, found in rows.items()}
            print(f"{task_name}:", *table(runs, clock), "", sep="\n")
            everything[task_name] = {"runs": rows, "seconds": clock}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(everything, indent=1) + "\n")


def finished(parent: Path, task_name: str, name: str, task: Task) -> dict[int, dict[str, Any]]:
    """Return the figures of a method's finished runs by seed."""
    folders = {seed: folder_of(parent, task_name, name, seed) for seed in SEEDS}
    return {seed: figures(task, folder) for seed, folder in folders.items() if (folder / "results.json").exists()}


def choose(cells: Sequence[tuple[str, str, int]], parent: Path) -> None:
    """Print the best validation accuracy of each method and learning rate, one number for each seed."""
    for task_name, name in dict.fromkeys((task_name, name) for task_name, name, _ in cells):
        for rate in RATES:
            folders = {seed: folder_of(parent, task_name, name, f"{seed}-lr{rate:g}") for seed in CHOICE_SEEDS}
            for seed, folder in folders.items():
                run(task_name, name, seed, folder, f"train.lr={rate}")
            found = [json.loads((f / "results.json").read_text())["val"]["accuracy"] for f in folders.values()]
            print(task_name, name, f"lr {rate:g}:", " and ".join(f"{value:.3f}" for value in found), flush=True)


def chosen_cells(words: Sequence[str]) -> list[tuple[str, str, int]]:
    """Return the runs that begin with one of ``words``, task/method/seed; all where there is no word. Seed by seed."""
    cells = [(task, name, seed) for task in TASKS for seed in SEEDS for name in METHODS]
    paths = {f"{task}/{name}/{seed}/": (task, name, seed) for task, name, seed in cells}
    for word in words:
        if not any(path.startswith(f"{word}/") for path in paths):
            raise SystemExit(f"{word}: no such run; {' or '.join(TASKS)}, then /{', /'.join(METHODS)}, then /SEED")
    return [cell for path, cell in paths.items() if not words or any(path.startswith(f"{word}/") for word in words)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cells", nargs="*", help="TASK[/METHOD[/SEED]]; all if none is given")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    parser.add_argument("--clock", action="store_true", help="take the time of these methods, of one seed each")
    parser.add_argument("--choose", action="store_true", help="compare learning rates by validation")
    parser.add_argument("--out", type=Path, default=Path("runs/fedpft_table"), help="folder of the runs")
    arguments = parser.parse_args()
    cells = chosen_cells(arguments.cells)
    if arguments.choose:
        choose(cells, arguments.out)
        return
    for task_name, name, seed in [] if arguments.collect else cells:
        if arguments.clock:
            run(task_name, name, SEEDS[0], folder_of(arguments.out, task_name, name, "clock"), *CLOCK)
        else:
            folder = folder_of(arguments.out, task_name, name, seed)
            run(task_name, name, seed, folder)
            figures(TASKS[task_name], folder)
    collect(arguments.out)


if __name__ == "__main__":
    main()
