"""What becomes of damaged run folders: every bit flip and every damaged folder is counted by how it ends.

    python -m benchmarks.bad.damage --flips 500 --folders 100

A run is stopped after three of its four rounds. A single bit is flipped in each file of its last checkpoint and of
its best, and the checkpoint is read; then copies of the folder are damaged in some way and resumed. Each try ends as

    refused     a UserError, which is one line and exit code 2
    harmless    read back equal, or resumed to the bits of the run that was never stopped
    other       anything else that ends well: a damage that went unnoticed
    traceback   any other exception
"""

import argparse
import contextlib
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.comm.group import open_group
from fedsim.config.experiment import Config
from fedsim.configure import load_config
from fedsim.errors import UserError
from fedsim.machine.sealed import SEAL, digest_tensors, write_record
from fedsim.runfolder.runlog import RunLog
from fedsim.server import run
from fedsim.storage.checkpoint import FORMAT, Checkpoints, Saved

CONFIG = """
name: damaged
seed: 3
rounds: 4
model:
  name: timm:vit_tiny_patch16_224
  weights: random
  options: {patch_size: 7, embed_dim: 32, depth: 2, num_heads: 2}
  lora: {r: 2, lora_alpha: 4, target: [q, k, v]}
data: {name: digits, image_size: 14, max_train: 100, fractions: {val: 0.05, test: 0.05}}
clients: {count: 4, per_block: 2, partition: {name: dirichlet, alpha: 0.5}}
train: {lr: 0.05, momentum: 0.9, batch_size: 8, keep_optimizer: true}
"""
STOPPED_AFTER = 3
LAST = f"checkpoints/round-{STOPPED_AFTER:06d}"
TABLES = ("metrics.jsonl", "clients.jsonl", "timings.jsonl")
COMPARED = ("metrics.jsonl", "clients.jsonl", "results.json")

Damage = Callable[[Path], object]


class StoppedError(Exception):
    """Stands in for a kill."""


def make_runs(folder: Path) -> Config:
    """Leave a whole run in ``folder/whole`` and one that was stopped in ``folder/stopped``; return their config."""
    (folder / "config.yaml").write_text(CONFIG)
    config = load_config(folder / "config.yaml")
    start_round = RunLog.start_round

    def stop(log: RunLog, round: int) -> None:
        if round > STOPPED_AFTER:
            raise StoppedError
        start_round(log, round)

    with contextlib.redirect_stdout(io.StringIO()):
        run(config, folder / "whole", resume=False)
        RunLog.start_round = stop  # type: ignore[method-assign]  # for this one run
        try:
            run(config, folder / "stopped", resume=False)
        except StoppedError:
            return config
        finally:
            RunLog.start_round = start_round  # type: ignore[method-assign]
    raise AssertionError("the run was not stopped")


def how_it_ends(act: Callable[[], bool]) -> tuple[str, str]:
    """Return the name of an end, see above, and what was said; ``act`` returns whether the result is the right one."""
    try:
        return ("harmless" if act() else "other"), ""
    except UserError as error:
        return "refused", str(error)
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"


def contents(saved: Saved | None) -> list[Any]:
    """All that a checkpoint says, to be compared."""
    assert saved is not None
    states = {client: file.read(client).digest() for file in saved.clients for client in file.clients}
    params, extra = digest_tensors(saved.state.params), digest_tensors(saved.state.extra)
    return [saved.state.round, params, extra, states, saved.progress, saved.log]


def flip_bits(folder: Path, config: Config, num_flips: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """Flip bits of a stopped run's checkpoints, one at a time; yield file, end and what was said."""
    stream = np.random.default_rng(seed)
    stopped = load_config(folder / "stopped" / "config.yaml")  # the block size is settled there
    checkpoints = Checkpoints(folder / "stopped" / "checkpoints", stopped, open_group())
    for which, place in (("last", STOPPED_AFTER), ("best", None)):
        expected = contents(checkpoints.load(which))
        name = f"{'best' if place is None else 'round'}-{expected[0]:06d}"
        for path in sorted((checkpoints.folder / name).iterdir()):
            whole = path.read_bytes()
            for position in stream.integers(8 * len(whole), size=num_flips):
                data = bytearray(whole)
                data[position // 8] ^= 1 << (position % 8)
                path.write_bytes(data)
                end, said = how_it_ends(lambda: contents(checkpoints.load(which)) == expected)  # noqa: B023  # at once
                yield f"{which} {path.name}", end, said
            path.write_bytes(whole)
    assert config.rounds > STOPPED_AFTER


def resume_damaged(folder: Path, config: Config, damage: Damage) -> tuple[str, str]:
    """Resume a damaged copy of the stopped run; return the end and what was said."""
    whole, copy = folder / "whole", folder / "copy"
    shutil.copytree(folder / "stopped", copy)
    damage(copy)

    def resumed() -> bool:
        with contextlib.redirect_stdout(io.StringIO()):
            run(config, copy, resume=True)
        return all((copy / name).read_bytes() == (whole / name).read_bytes() for name in COMPARED)

    end = how_it_ends(resumed)
    shutil.rmtree(copy)
    return end


def damages(folder: Path) -> dict[str, Damage]:
    """All damages that are tried, by a name; ``folder``: the stopped run."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    folders = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir())
    made: dict[str, Damage] = {}
    for name in files:
        made |= {f"{name}: {how}": on(name, change) for how, change in CHANGES.items()}
        made |= {f"{name}: {how}": instead(name, new) for how, new in (("removed", None), ("a folder", ()))}
    for name in [*folders, "adapter", "spilled-00000", f"checkpoints/.round-{STOPPED_AFTER + 1:06d}.draft"]:
        made |= {f"{name}: {how}": instead(name, new) for how, new in (("removed", None), ("a file", b"x"))}
    for name in TABLES:
        made |= {f"{name}: {how}": on(name, _of_lines(change)) for how, change in LINES.items()}
    for how, change in RECORDS.items():
        made[f"state.json: {how}"] = _on_record(change, sealed=False)
        made[f"state.json, sealed anew: {how}"] = _on_record(change, sealed=True)
    made["lock: no record"] = instead("lock", b"me")
    made["lock: of this machine's killed run"] = _lock
    made["the round before under the last one's name"] = _rename
    return made


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"x",
    "a flipped bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "zeros": lambda data: bytes(len(data)),
    "not text": lambda _: b"\xff\x00\xfe" * 20,
    "a list": lambda _: b"[1, 2]\n",
    "null": lambda _: b"null\n",
    "deep": lambda _: b"[" * 100_000 + b"\n",
}
LINES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "no first row": lambda rows: rows[1:],
    "no middle row": lambda rows: rows[: len(rows) // 2] + rows[len(rows) // 2 + 1 :],
    "no last row": lambda rows: rows[:-1],
    "first row twice": lambda rows: [rows[0], *rows],
    "all rows twice": lambda rows: rows + rows,
    "backwards": lambda rows: rows[::-1],
    "a torn row behind": lambda rows: [*rows, b'{"round": 4, "tr'],
    "a row too many": lambda rows: [*rows, rows[-1].replace(b'"round": 3', b'"round": 4')],
    "another number": lambda rows: [*rows[:-1], rows[-1].replace(b"1", b"2")],
    "round NaN": lambda rows: [*rows, rows[-1].replace(b'"round": 3', b'"round": NaN')],
}
RECORDS: dict[str, dict[str, Any]] = {
    "round before": {"round": 2},
    "round after": {"round": 4},
    "round -1": {"round": -1},
    "round 3.0": {"round": 3.0},
    "round a text": {"round": "3"},
    "round null": {"round": None},
    "no files": {"files": {}},
    "files null": {"files": None},
    "files a list": {"files": ["server.safetensors"]},
    "a null digest": {"files": {"server.safetensors": None}},
    "files elsewhere": {"files": {"server.safetensors": "0", "../../config.yaml": "0"}},
    "progress a list": {"progress": [1]},
    "progress unknown": {"progress": {"best": 1}},
    "a text as best value": {"progress": {"best_value": "high"}},
    "best round 99": {"progress": {"best_round": 99}},
    "log null": {"log": None},
    "no log": {"log": {}},
    "format before": {"format": FORMAT - 1},
    "format a text": {"format": "3"},
    "another config": {"config_sha256": "0" * 64},
    "one key more": {"more": 1},
}


def on(name: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def _of_lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[bytes], bytes]:
    return lambda data: b"".join(change(data.splitlines(keepends=True)))


def instead(name: str, new: bytes | tuple[()] | None) -> Damage:
    """Put a file with this content, a folder (for the empty tuple) or nothing in the place of ``name``."""

    def damage(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if new is not None:
            path.mkdir() if new == () else path.write_bytes(bytes(new))

    return damage


def _on_record(change: dict[str, Any], *, sealed: bool) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / LAST / "state.json"
        record = json.loads(path.read_text()) | change
        if sealed:
            del record[SEAL]
            write_record(path, record)
        else:
            path.write_text(json.dumps(record, indent=2) + "\n")

    return damage


def _lock(folder: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (folder / "lock").write_text(json.dumps({"host": "here", "pid": 1, "job": None, "boot": boot}) + "\n")


def _rename(folder: Path) -> None:
    shutil.rmtree(folder / LAST)
    (folder / f"checkpoints/round-{STOPPED_AFTER - 1:06d}").rename(folder / LAST)


def main() -> None:
    """Print the counts, and every end that is neither refused nor harmless."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=500, help="bits flipped in each file")
    parser.add_argument("--folders", type=int, help="so many damaged folders, drawn from all; all if not given")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedsim-") as name:
        folder = Path(name)
        config = make_runs(folder)
        ends = list(flip_bits(folder, config, options.flips, options.seed))
        for file in sorted({file for file, _, _ in ends}):
            print(file, dict(Counter(end for name, end, _ in ends if name == file)))
        every = damages(folder / "stopped")
        chosen = np.random.default_rng(options.seed).permutation(sorted(every))[: options.folders]
        tried = [(str(name), *resume_damaged(folder, config, every[name])) for name in chosen]
    print(f"{len(tried)} of {len(every)} damaged folders", dict(Counter(end for _, end, _ in tried)))
    for name, end, said in [*ends, *tried]:
        if end in ("other", "traceback"):
            print(f"{end}: {name}: {said}")


if __name__ == "__main__":
    main()
