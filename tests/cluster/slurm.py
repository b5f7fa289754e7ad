"""A SLURM of two nodes on this machine, real daemons with everything they write in one folder."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.distributed.runs import ROOT

TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "sinfo", "unshare")
START_SECONDS = 30
NODES = ("node01", "node02")
SCRIPTS = ROOT / "configs" / "slurm"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")
JOB_SECONDS = 240
#: Files in the place of a node's GPUs.
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")

# linuxproc: control groups cannot be had in most containers. cred_expire: how long a job rests before it is
# started again. Each node has GPUs that are none, so that the batch scripts for GPUs can be run.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
FirstJobId={first_job}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=5
NodeName=node01 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 Gres=gpu:4 State=UNKNOWN
NodeName=node02 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 Gres=gpu:4 State=UNKNOWN
PartitionName=all Nodes=node[01-02] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing() -> str | None:
    """Why there can be no SLURM here."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian, Ubuntu: apt-get install slurm-wlm munge)"
    if os.getuid() != 0:
        return "SLURM's daemons need root"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        return "mount namespaces are not allowed here"
    return None


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with_port = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in with_port]
    for one in with_port:
        one.close()
    return ports


def claim_jobs() -> tuple[int, socket.socket]:
    """The first of 100 job numbers that no other SLURM on this machine has while the socket is open. The ranks of a
    job meet at a port that follows from its number (comm/launcher.py): two with one number would meet each other.
    """
    for place in range(100):
        with contextlib.suppress(OSError):
            claim = socket.create_server(("127.0.0.1", 19900 + place))
            return 1 + 101 * place, claim  # 101 jobs on, the ports begin anew, 59 higher
    raise RuntimeError("ports 19900 to 19999 are all taken")


class Slurm:
    """Use as a context manager; ``folder`` needs a short path, since a socket lies in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._first_job, self._claim = claim_jobs()
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHON": str(folder / "python"),
        }

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if len(self._daemons) == 2 + len(NODES):
                self.ask("scancel", "--full", "--user=root")
                self.wait(lambda: not self.ask("squeue", "--noheader"), "the jobs did not end")
        finally:
            for daemon in reversed(self._daemons):
                daemon.terminate()
            for daemon in reversed(self._daemons):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    daemon.wait(10)
            for process in self._left_over():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self._claim.close()

    def ask(self, *command: str, seconds: float = 30) -> str:
        """Standard output of one of SLURM's commands; CalledProcessError if it fails."""
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=True
        )
        return done.stdout.strip()

    def submit(self, *words: object) -> str:
        """Queue a batch script and return the job's number."""
        log = f"--output={self.folder}/%j.log"
        return self.ask("sbatch", "--parsable", log, *map(str, words))

    def state(self, job: str) -> dict[str, str]:
        """What SLURM knows about a job."""
        return dict(word.split("=", 1) for word in self.ask("scontrol", "show", "job", job).split() if "=" in word)

    def finish(self, job: str, seconds: float = JOB_SECONDS) -> str:
        """Wait for the end of a job and return its last state, such as COMPLETED or FAILED."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait(lambda: self.state(job)["JobState"] in ended, self.log(job), seconds)
        return self.state(job)["JobState"]

    def log(self, job: str) -> str:
        """What the job printed so far."""
        file = self.folder / f"{job}.log"
        return file.read_text() if file.exists() else ""

    def _start(self) -> None:
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(64))
        key.chmod(0o400)
        (self.folder / "state").mkdir()
        host = socket.gethostname().split(".")[0]
        conf = CONF.format(folder=self.folder, host=host, ports=free_ports(3), first_job=self._first_job)
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "gres.conf").write_text(f"Name=gpu File={','.join(DEVICES)}\n")
        # The nodes' GPUs are none, but SLURM would have the job use the first one of this machine.
        python = self.folder / "python"
        python.write_text(f'#!/bin/sh\nexport CUDA_VISIBLE_DEVICES=\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        names = "".join(f"127.0.0.1 {node}\n" for node in NODES)
        (self.folder / "hosts").write_text(Path("/etc/hosts").read_text() + names)

        own = {"socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed", "log-file": "munge.log"}
        files = [f"--{option}={self.folder / name}" for option, name in own.items()]
        self._run("munged", "munged", "--foreground", "--force", f"--key-file={key}", *files)
        self.wait((self.folder / "munge.socket").exists, "munged did not start")
        self._run("slurmctld", "slurmctld", "-D")
        for node in NODES:
            # The nodes' names resolve in the nodes' own view of /etc/hosts only.
            start = 'mount --bind "$1" /etc/hosts && exec slurmd -D -N "$2"'
            self._run(node, "unshare", "--mount", "sh", "-c", start, "sh", str(self.folder / "hosts"), node)
        self.wait(lambda: self._idle_nodes() == len(NODES), "the nodes did not become idle")

    def _run(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as out:
            self._daemons.append(
                subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=self.environment)
            )

    def _left_over(self) -> list[int]:
        """Processes of this SLURM, told by the configuration that they were started with."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return found

    def _idle_nodes(self) -> int:
        try:
            return self.ask("sinfo", "--noheader", "--Node", "--format=%T").split().count("idle")
        except subprocess.CalledProcessError:
            return 0

    def wait(self, ready: Callable[[], bool], complaint: str, seconds: float = START_SECONDS) -> None:
        """Wait until ``ready()``; TimeoutError with the complaint and what the daemons said."""
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                outs = "".join(f"--- {out.name}\n{out.read_text()[-2000:]}" for out in self.folder.glob("*.out"))
                raise TimeoutError(f"{complaint}\n{outs}")
            time.sleep(0.2)
