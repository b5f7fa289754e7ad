"""``launch.py splits``: whether a config's data are divided here as they were where the benchmark was published.

Reads the data and draws the clients; loads no model and trains nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.data import load_dataset, partition_clients, without_small
from fedsim.errors import UserError
from fedsim.machine.files import naming_files, write_json
from fedsim.machine.memory import own_pages
from fedsim.runfolder.partition import split_digests
from fedsim.runfolder.trust import load_own
from fedsim.storage.rows import read_object

FILE_NAME = "splits.json"
#: Of the file's form; a change that readers would stumble over raises it.
SCHEMA = 1
SEEDS = (10, 11, 12)
NOT_TOLD = "not told: with a clock they follow from what a method sends, too; without privacy.observe they are hidden"
Digests = dict[str, str]


def describe(files: Sequence[Path], overrides: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, str]]:
    """Return a row for each config and seed, with the digests where none are published for it.

    UserError for the first that differs from what ``splits.json`` beside its config publishes.
    """
    rows = []
    for file in files:
        published = read_published(file.parent / FILE_NAME)
        for name, seed, found in digests_of(file, overrides, seeds):
            expected = published.get(name, {}).get(str(seed))
            for key, value in found.items():
                if expected is not None and value != expected.get(key):
                    where = f"{file.parent / FILE_NAME}: {name}, seed {seed}: {key}"
                    raise UserError(where, f"sha256 {value} here", f"{expected.get(key)}: the same data and versions")
            rows.append((f"{name} seed {seed}", "not published" if expected is None else "as published"))
            rows += [(f"  {key}", value) for key, value in found.items() if expected is None]
            if "cohorts" not in found:
                rows.append(("  cohorts", NOT_TOLD))
    return rows


def publish(files: Sequence[Path], seeds: Sequence[int]) -> list[tuple[str, str]]:
    """Write the digests of configs into ``splits.json`` beside them, and return a row for each."""
    rows = []
    for file in files:
        target = file.parent / FILE_NAME
        published = read_published(target)
        for name, seed, found in digests_of(file, (), seeds):
            published.setdefault(name, {})[str(seed)] = found
            rows.append((f"{name} seed {seed}", f"written to {target}"))
        content = {name: dict(sorted(own.items())) for name, own in sorted(published.items())}
        with naming_files(target.parent):
            write_json(target, {"schema": SCHEMA, "splits": content})
    return rows


def digests_of(file: Path, overrides: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, int, Digests]]:
    """Yield the config's name, seed, and sha256 of its data, splits, clients and cohorts, for each seed."""
    configs = [load_own(file, [*overrides, f"seed={seed}"]) for seed in seeds]
    with own_pages():
        dataset = load_dataset(configs[0].data)  # which follows from data.split_seed
    for config in configs:
        drawn = partition_clients(dataset, config.clients, config.seed)
        parts = without_small(drawn, config.clients.min_samples)
        yield config.name, config.seed, split_digests(dataset, config, parts)


def read_published(file: Path) -> dict[str, dict[str, Digests]]:
    """Return what a file publishes, by the configs' names and seeds; nothing where there is no file."""
    content = read_object(file)
    if content is None:
        return {}
    if content.get("schema") != SCHEMA or not is_table(content.get("splits")):
        raise UserError(str(file), "no digests of splits", f"what launch.py splits --publish writes, schema {SCHEMA}")
    found: dict[str, dict[str, Digests]] = content["splits"]
    return found


def is_table(content: Any) -> bool:
    """Whether these are digests by name and seed."""
    if not isinstance(content, Mapping) or not all(isinstance(own, Mapping) for own in content.values()):
        return False
    return all(isinstance(found, Mapping) for own in content.values() for found in own.values())
