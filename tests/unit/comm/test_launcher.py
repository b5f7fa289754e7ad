"""Who started this process, told from what torchrun and srun leave in the environment."""

import os

import pytest

from fedsim.comm.launcher import PORTS, STEPS_PER_JOB, Place, find_place, first_host
from fedsim.errors import UserError

ALONE = Place(0, 1, 0, "127.0.0.1", 0, "none")
TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.0.0.7",
    "MASTER_PORT": "29400",
}
# As SLURM 22.05 sets them in a job of two nodes; tests/cluster asks a real one.
BATCH = {
    "SLURM_JOB_ID": "41",
    "SLURM_JOB_NODELIST": "node[01-02]",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
}
TASK = BATCH | {
    "SLURM_LOCALID": "1",
    "SLURM_PROCID": "3",
    "SLURM_SRUN_COMM_PORT": "46487",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_NUM_TASKS": "4",
}


def place_in(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Place:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_", "TORCHELASTIC_")) or name in TORCHRUN:
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return find_place()


def test_started_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_in(monkeypatch, {}) == ALONE


def test_started_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_in(monkeypatch, TORCHRUN) == Place(5, 8, 1, "10.0.0.7", 29400, "torchrun")


def test_torchrun_inside_a_step_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_in(monkeypatch, TASK | TORCHRUN).launcher == "torchrun"


def test_started_by_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_in(monkeypatch, TASK)
    assert place == Place(3, 4, 1, "node01", place.port, "srun", "job 41, step 2")
    assert place.port == 20000 + 41 * 127 + 2


def test_under_torchrun_its_agent_keeps_the_store_of_each_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}
    place = place_in(monkeypatch, TORCHRUN | agent)
    assert (place.has_agent, place.attempt) == (True, "2")


def test_ports_lie_below_those_of_outgoing_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    # Linux's default; SLURM's own numbers run to 67 million, its interactive step is 2^32 - 6.
    jobs = [*range(1, 200), *range(200, 60_000, 101), 67_043_328]
    ports = {place_in(monkeypatch, TASK | {"SLURM_JOB_ID": str(job)}).port for job in jobs}
    ports |= {place_in(monkeypatch, TASK | {"SLURM_STEP_ID": "4294967290"}).port}
    assert 20000 <= min(ports) < max(ports) < 32768


def test_runs_that_may_be_on_one_host_at_once_have_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [(job, step) for job in (1000, 1001, 1050, 1099) for step in (0, 1, STEPS_PER_JOB - 1)]
    words = [{"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)} for job, step in runs]
    assert len({place_in(monkeypatch, TASK | word).port for word in words}) == len(runs)
    assert len(PORTS) >= 100 * STEPS_PER_JOB


def test_all_tasks_of_a_step_meet_at_one_port_and_those_of_another_step_at_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = [{}, {"SLURM_PROCID": "0"}, {"SLURM_STEP_ID": "3"}, {"SLURM_JOB_ID": "42"}]
    mine, peers, next_step, next_job = (place_in(monkeypatch, TASK | change).port for change in changes)
    assert mine == peers
    assert len({mine, next_step, next_job}) == 3


def test_a_step_on_some_nodes_of_the_job_meets_on_the_first_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_in(monkeypatch, TASK | {"SLURM_STEP_NODELIST": "node02"}).address == "node02"


def test_a_step_on_one_node_meets_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_in(monkeypatch, TASK | {"SLURM_STEP_NUM_NODES": "1"}).address == "127.0.0.1"
    assert place_in(monkeypatch, TASK | {"SLURM_STEP_NUM_NODES": "2"}).address == "node01"


def test_a_step_of_fewer_tasks_than_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_in(monkeypatch, TASK | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}).num_ranks == 2


def test_the_user_may_say_where_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_in(monkeypatch, TASK | {"MASTER_ADDR": "10.1.1.1", "MASTER_PORT": "1234"})
    assert (place.address, place.port) == ("10.1.1.1", 1234)


def test_a_batch_script_itself_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_in(monkeypatch, BATCH) == ALONE


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        (TORCHRUN | {"RANK": "first"}, "RANK"),
        (TORCHRUN | {"WORLD_SIZE": ""}, "WORLD_SIZE"),
        ({key: value for key, value in TORCHRUN.items() if key != "LOCAL_RANK"}, "LOCAL_RANK"),
        (TASK | {"SLURM_PROCID": "-1"}, "SLURM_PROCID"),
        (TASK | {"MASTER_PORT": "http"}, "MASTER_PORT"),
        (TASK | {"MASTER_PORT": "65536"}, "MASTER_PORT"),
        (TORCHRUN | {"MASTER_PORT": "0"}, "MASTER_PORT"),
    ],
)
def test_what_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str) -> None:
    with pytest.raises(UserError, match=f"variable {name}:"):
        place_in(monkeypatch, variables)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node007", "node007"),
        ("node007,node008", "node007"),
        ("node[007-010,12],other", "node007"),
        ("gpu-a[1,3]", "gpu-a1"),
        ("gpu[2-4]-ib,login", "gpu2-ib"),
        ("rack[1-2]node[03-04]", "rack1node03"),
        ("a1,b[2-3]", "a1"),
        ("node.example", "node.example"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize("nodes", ["", ",node1", "[1-2]", "node[1"])
def test_what_is_no_node_list_is_named(nodes: str) -> None:
    with pytest.raises(UserError, match="SLURM_STEP_NODELIST"):
        first_host(nodes)
