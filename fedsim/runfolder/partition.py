"""Who holds what: a table and a picture in the run folder, and what was decided that the config does not say."""

import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fedsim.config.experiment import Config
from fedsim.data.client_images import ClientImages
from fedsim.data.dataset import Dataset, Indices
from fedsim.data.findings import num_lacking
from fedsim.data.overlap import group_overlaps
from fedsim.data.partition import partition_table
from fedsim.machine.files import write_atomic, write_json
from fedsim.results.figures.bars import draw_bars
from fedsim.runfolder.members import write_members
from fedsim.runfolder.runlog import RunLog
from fedsim.schedule.cohort import draw_cohort
from fedsim.simulation import Simulation

MOST_NAMED = 20
#: Rows of partition.json, and bars of its picture, whatever the number of clients: images.csv has everybody's images.
MOST_ROWS, MOST_BARS = 10_000, 200
#: The cohorts of so many rounds are in the digest, whatever the run's number of rounds: each follows from seed and
#: round alone. Of very many clients fewer, since a draw goes over all of them.
ROUNDS_IN_DIGEST = 8
DRAWS_IN_DIGEST = 100_000


def describe_partition(sim: Simulation, log: RunLog) -> None:
    """Leave tables and a picture of who has which images in the run folder."""
    if sim.group.is_server:
        rows = [vars(row) for row in partition_table(sim.dataset, sim.parts, MOST_ROWS)]
        table = {
            "classes": sim.dataset.label_names,
            "num_clients": len(sim.parts),
            "clients": rows,
            "sha256": split_digests(sim.dataset, sim.config, sim.parts),
        }
        write_json(log.folder / "partition.json", table)
        draw_partition(sim.dataset, sim.parts, log.folder / "partition.png")
        write_members(sim, log.folder)
        for name, text in notes(sim):
            log.message(f"{name}: {text}")
        for shared in group_overlaps(sim.dataset):
            if shared.num_shared:
                log.message(f"warning: {shared.name}: {shared.text}")


def split_digests(dataset: Dataset, config: Config, parts: ClientImages) -> dict[str, str]:
    """Return sha256 of what two runs must share to be compared, image by image.

    ``data``: files or arrays, and labels; ``validation`` and ``test``: which images; ``clients``: each one's training
    images; ``cohorts``: who takes part in the first rounds, with which weights. With a clock there is none of
    ``cohorts``: who arrives follows from what the method sends, too. Nor without ``privacy.observe``: of few clients
    all cohorts can be tried.
    """
    content = [(facts or {}).get("sha256") for facts in (dataset.files, dataset.arrays)]
    found = {
        "data": _sha256([dataset.labels.numpy()], f"{dataset.name} {content}"),
        "validation": _sha256([dataset.val]),
        "test": _sha256([dataset.test]),
        "clients": _sha256([np.asarray(parts.sizes, np.int64), parts.images]),
    }
    if config.clock is not None or not config.observes:
        return found
    cohorts = []
    for round in range(1, 1 + max(1, min(ROUNDS_IN_DIGEST, DRAWS_IN_DIGEST // config.clients.count))):
        cohort = draw_cohort(config.clients, config.train, parts.sizes, config.seed, round)
        clients = sorted(cohort.clients)  # the cohort's own order goes by the number of steps
        cohorts += [np.array(clients, np.int64), cohort.weights_of(clients).numpy()]
    return {**found, "cohorts": _sha256(cohorts)}


def _sha256(arrays: Iterable[np.ndarray], text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def notes(sim: Simulation) -> list[tuple[str, str]]:
    """Return what the config does not say outright of images and what is made of them, as rows of name and text."""
    rows = []
    if sim.dataset.drawn:
        rows.append(("split", f"{' and '.join(sim.dataset.drawn)} drawn from the training {sim.dataset.unit}"))
    fewest, out = sim.config.clients.min_samples, np.flatnonzero(np.asarray(sim.sizes) == 0)
    if fewest is not None and len(out):
        named = ", ".join(map(str, out[:MOST_NAMED])) + (" ..." if len(out) > MOST_NAMED else "")
        rows.append(
            ("left out", f"{len(out)} of {len(sim.sizes)} clients with fewer than {fewest} {sim.dataset.unit}: {named}")
        )
    if sim.model.mixes_images(training=False):
        size = sim.config.evaluate.batch_size
        text = f"the network normalises over batches of {size} {sim.dataset.unit}: scores depend on evaluate.batch_size"
        rows.append(("warning", text))
    return rows + unknown_findings(sim)


def unknown_findings(sim: Simulation) -> list[tuple[str, str]]:
    """Return which findings clients know nothing of, as a row of name and text where there are any."""
    if sim.dataset.targets is None or not sim.dataset.has_findings:
        return []
    numbers = num_lacking(sim.dataset.targets.numpy(), sim.parts)
    total = np.count_nonzero(np.asarray(sim.sizes))
    texts = [
        f"{name} at {'all' if number == total else number} of {total} clients"
        for name, number in zip(sim.dataset.class_names, numbers, strict=True)
        if number
    ]
    return [("not known", ", ".join(texts))] if texts else []


def draw_partition(dataset: Dataset, parts: Sequence[Indices], path: Path) -> None:
    """Write a PNG: one horizontal bar per client, stacked by class; the x axis counts images.

    Of more clients than there is room for, those of every so many.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: only this picture needs matplotlib
    from matplotlib.figure import Figure

    rows, num_clients = partition_table(dataset, parts, MOST_BARS), len(parts)
    counts_BC, every = np.array([row.per_class for row in rows]), math.ceil(num_clients / len(rows))
    height = max(1.2 + 0.28 * num_clients, 1.2 + 0.2 * len(dataset.label_names))  # inches: bars, or the legend
    figure = Figure(figsize=(9, min(16.0, height)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw_bars(axes, dataset.label_names, counts_BC, every)
    title = f"{dataset.name}: {len(ClientImages.of(parts).images)} training {dataset.unit}, {num_clients} clients"
    title += f", one of {every} shown" if every > 1 else ""
    axes.set(title=title, xlabel=f"training {dataset.unit}", ylabel="client")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomic(path, picture.getvalue())
