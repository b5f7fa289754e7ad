"""Memory that the store really takes, measured in a process of its own, with states of the paper's size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.runs import ROOT, environment

PROGRAM = """
import json, sys
from pathlib import Path
import torch
from fedsim.algorithms.base import ServerState
from fedsim.comm.group import open_group
from fedsim.storage.checkpoint import Checkpoints, Progress
from fedsim.models.networks.vgg import build_vgg
from fedsim.storage.store import Budget, ClientStore
from tests.helpers import make_config

folder, budget = Path(sys.argv[1]), float(sys.argv[2])
torch.manual_seed(0)
model = build_vgg(32).state_dict()
names = [f"{which}/{name}" for which in ("deputy", "own") for name in model]

def create(client):
    return {name: model[name.partition("/")[2]] + client for name in names}

def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

def work(store, clients, checkpoints):
    for round in (1, 2):
        for client in clients:
            with store.open([client]) as (state,):
                for name in names:
                    state[name] = state[name] * (1 + round)
    checkpoints.save(ServerState(2, {}), store, Progress(), {})
    resumed = ClientStore(store._group, create, Budget(0, store._tiers[1].limit, folder / "resumed"))
    digest = store.digest("")
    del store
    return resumed, digest

group = open_group()
checkpoints = Checkpoints(folder / "checkpoints", make_config(), group)
# What Python, PyTorch and a single client take is there before.
(folder / "checkpoints").mkdir()
store, _ = work(ClientStore(group, create), [0], checkpoints)
before = peak()
store, digest = work(ClientStore(group, create, Budget(0, budget, folder / "spilled")), range(24), checkpoints)
store.adopt(checkpoints.load().clients)
print(json.dumps({"taken": peak() - before, "digest": digest, "resumed": store.digest(""),
                  "state": sum(store.sizes().values()) // 24}))
"""
BUDGET = 128 * 2**20


def run(folder: Path, budget: float) -> dict[str, int | str]:
    folder.mkdir()
    words = [sys.executable, "-c", PROGRAM, str(folder), str(budget)]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_memory_stays_within_the_budget_and_states_are_those_of_an_unlimited_store(tmp_path: Path) -> None:
    """24 clients with two slim VGG16 each, 460 MB: trained twice, saved and taken up again in 128 MB."""
    limited, unlimited = (run(tmp_path / name, size) for name, size in (("a", BUDGET), ("b", float("inf"))))
    assert limited["digest"] == limited["resumed"] == unlimited["digest"] == unlimited["resumed"]
    # The working set, two states, was there before: one that is open and one that is packed.
    assert limited["taken"] < 1.1 * BUDGET + 2 * limited["state"]
    # Without a limit the same work takes them all, so the measure does measure.
    assert unlimited["taken"] > 0.9 * 24 * unlimited["state"]
