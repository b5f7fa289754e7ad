"""Who started this process: torchrun, srun, or nobody. Reads the environment, talks to no one."""

import os
import re
from dataclasses import dataclass

from fedsim.errors import UserError


@dataclass(frozen=True)
class Place:
    """This process among its peers: global rank, number of ranks, rank on its own host, and where rank 0 listens."""

    rank: int
    num_ranks: int
    local_rank: int
    address: str
    port: int
    launcher: str


def find_place() -> Place:
    """Read torchrun's or srun's variables; without either this is the only process."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return Place(
            _number("RANK"),
            _number("WORLD_SIZE"),
            _number("LOCAL_RANK"),
            os.environ.get("MASTER_ADDR", "127.0.0.1"),
            _number("MASTER_PORT", 29500),
            "torchrun",
        )
    if _inside_srun():
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "127.0.0.1")
        job = _number("SLURM_JOB_ID", 0)
        return Place(
            _number("SLURM_PROCID"),
            _num_tasks(),
            _number("SLURM_LOCALID"),
            os.environ.get("MASTER_ADDR") or first_host(nodes),
            _number("MASTER_PORT", 20000 + (job * 31 + _number("SLURM_STEP_ID", 0)) % 20000),
            "srun",
        )
    return Place(0, 1, 0, "127.0.0.1", 0, "none")


def first_host(nodelist: str) -> str:
    """Return the first host of a SLURM node list, such as node007 of ``node[007-010,12],other``."""
    match = re.match(r"[^,\[\]]+(?:\[[^\[\]]+\][^,\[\]]*)*(?=,|$)", nodelist)
    if match is None:
        raise UserError("SLURM_STEP_NODELIST", repr(nodelist), "a node list such as node[01-04]")
    # Of each range the first number, of which a name may have several: rack[1-2]node[03-04] begins with rack1node03.
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", match.group())


def _inside_srun() -> bool:
    # A batch script itself also sees SLURM_PROCID=0 and the job's SLURM_NTASKS, but it is one process, not a
    # task of a step: only srun names the step's own number of tasks or its communication port.
    if "SLURM_PROCID" not in os.environ:
        return False
    is_step = "SLURM_STEP_NUM_TASKS" in os.environ or "SLURM_SRUN_COMM_PORT" in os.environ
    return is_step or "SLURM_JOB_ID" not in os.environ


def _num_tasks() -> int:
    return _number("SLURM_STEP_NUM_TASKS", _number("SLURM_NTASKS", 1))


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdigit():
        raise UserError(f"environment variable {name}", repr(text), "a whole number set by the launcher")
    return int(text)
