"""Who started this process: torchrun, srun, fedsim itself, or nobody. Reads the environment, talks to no one."""

import os
import re
from dataclasses import dataclass

from fedsim.errors import UserError

# Below the ports of outgoing connections, which Linux takes from 32768 on unless told otherwise. What a host was told
# is not asked: hosts may differ, and all ranks must come to the same port.
PORTS = range(20000, 32768)
# So far apart that 100 jobs in a row, of up to 127 steps each, have ports of their own.
STEPS_PER_JOB = 127


@dataclass(frozen=True)
class Place:
    """This process among its peers: global rank, number of ranks, rank on its own host, and where rank 0 listens.

    ``run`` tells this run from another at the same port, and ``attempt`` from the one before. ``has_agent``: torchrun
    keeps the store that the ranks meet at.
    """

    rank: int
    num_ranks: int
    local_rank: int
    address: str
    port: int
    launcher: str
    run: str = ""
    attempt: str = "0"
    has_agent: bool = False


def find_place() -> Place:
    """Read torchrun's or srun's variables; without either this is the only process."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return Place(
            _number("RANK"),
            _number("WORLD_SIZE"),
            _number("LOCAL_RANK"),
            os.environ.get("MASTER_ADDR", "127.0.0.1"),
            _port(29500),
            "fedsim" if "FEDSIM_RUN" in os.environ else "torchrun",
            run=os.environ.get("FEDSIM_RUN", ""),  # see comm/start.py
            attempt=os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
            has_agent=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
    if _inside_srun():
        job, step = _number("SLURM_JOB_ID", 0), _number("SLURM_STEP_ID", 0)
        return Place(
            _number("SLURM_PROCID"),
            _num_tasks(),
            _number("SLURM_LOCALID"),
            os.environ.get("MASTER_ADDR") or _first_of_step(),
            _port(PORTS[(job * STEPS_PER_JOB + step) % len(PORTS)]),
            "srun",
            run=f"job {job}, step {step}",
        )
    return Place(0, 1, 0, "127.0.0.1", 0, "none")


def _first_of_step() -> str:
    if _number("SLURM_STEP_NUM_NODES", 0) == 1:
        return "127.0.0.1"  # nobody outside has business there
    return first_host(os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "127.0.0.1"))


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


def _port(default: int) -> int:
    port = _number("MASTER_PORT", default)
    if not 0 < port < 2**16:
        raise UserError("environment variable MASTER_PORT", repr(os.environ["MASTER_PORT"]), "a port, 1 to 65535")
    return port


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdigit():
        raise UserError(f"environment variable {name}", repr(text), "a whole number set by the launcher")
    return int(text)
