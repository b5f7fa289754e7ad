"""Where the ranks meet: who listens at which address, and what a rank makes of who answers there."""

import ipaddress
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from fedsim.comm import meeting
from fedsim.comm.launcher import Place
from fedsim.errors import RankError

RUN = "job 7, step 0"


def place(rank: int, port: int, address: str = "127.0.0.1") -> Place:
    return Place(rank, 2, rank, address, port, "srun", RUN)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def listening() -> set[tuple[str, int]]:
    """Address and port of all TCP sockets of this machine that listen."""
    found = set()
    for table, digits in (("tcp", 8), ("tcp6", 32)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] != "0A":
                continue
            address, port = words[1].split(":")
            parts = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, digits, 8)]
            found.add((str(ipaddress.ip_address(b"".join(parts))), int(port, 16)))
    return found


@contextmanager
def answering(said: bytes | None) -> Iterator[int]:
    """A program at a port that says something to whoever comes; for None it stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            held = []
            while True:
                try:
                    visitor, _ = server.accept()
                except OSError:
                    return
                held.append(visitor)
                if said is not None:
                    visitor.sendall(said)
                    visitor.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1"])
def test_door_and_store_listen_at_the_address_where_the_ranks_meet_alone(address: str) -> None:
    if address == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    before = listening()
    store, door = meeting._keep_store(place(0, free_port(), address))
    opened = listening() - before
    assert len(opened) == 2
    assert {ipaddress.ip_address(at).is_loopback for at, _ in opened} == {True}
    where = meeting._knock(place(1, door.getsockname()[1], address))
    assert where in opened
    store.set("word", "given")
    assert TCPStore(*where).get("word") == b"given"
    door.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("resolved", "reason"),
    [("127.0.1.1", "node1 is 127.0.1.1 on its own host"), ("192.0.2.1", "192.0.2.1 is no address of this host")],
)
def test_an_address_that_says_nothing_to_this_host(
    resolved: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (resolved, 0))]
    port = free_port()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    door = meeting._listen(place(0, port, "node1"))
    assert ipaddress.ip_address(door.getsockname()[0]).is_unspecified
    assert capsys.readouterr().err == f"{reason}: the store listens on all addresses, see docs/clusters.md\n"
    door.close()


def test_a_taken_port_is_named() -> None:
    with answering(b"") as port, pytest.raises(RankError) as error:
        meeting._listen(place(0, port))
    assert str(error.value) == (
        f"port {port} of 127.0.0.1, where the ranks meet: found Address already in use; "
        "expected a free port: set MASTER_PORT to one, the same on all ranks"
    )


def test_a_host_that_nobody_knows_is_named() -> None:
    with pytest.raises(RankError, match=r"^port 5 of nowhere\.invalid, where .*MASTER_ADDR"):
        meeting._listen(place(0, 5, "nowhere.invalid"))


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (b"", "another program"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "another program"),
        (b'{"error": 1}', "another program"),
        (b"[1]", "another program"),
        (b"\xff\x00", "another program"),
        (None, "another program"),
        (json.dumps({"fedsim": "job 8, step 0", "store": 5}).encode(), "job 8, step 0"),
        (json.dumps({"fedsim": "", "store": 5}).encode(), "another run"),
    ],
)
def test_who_is_not_rank_0_of_this_run_is_not_met(
    said: bytes | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "ANSWER_TIMEOUT_SECONDS", 0.2)
    with answering(said) as port, pytest.raises(RankError) as error:
        meeting._knock(place(1, port))
    assert str(error.value) == (
        f"rank 1: port {port} of 127.0.0.1, where the ranks meet: found {found}; "
        f"expected rank 0 of {RUN}: set MASTER_PORT to a free port, the same on all ranks"
    )


def test_another_store_at_the_port_is_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "ANSWER_TIMEOUT_SECONDS", 0.2)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(RankError, match="found another program"):
        meeting._knock(place(1, store.port))


def test_nobody_at_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "CONNECT_TIMEOUT_SECONDS", 0)
    with pytest.raises(RankError, match=r"rank 1: port \d+ of 127\.0\.0\.1.*: found no rank 0 within 0 seconds"):
        meeting._knock(place(1, free_port()))


def test_a_rank_that_is_there_already() -> None:
    store, door = meeting._keep_store(place(0, free_port()))
    store.set("fedsim/0/came/1", "1")
    with pytest.raises(RankError, match="rank 1: found another one at port"):
        meeting.meet(place(1, door.getsockname()[1]))
    door.shutdown(socket.SHUT_RDWR)


def test_ranks_that_never_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "START_TIMEOUT_SECONDS", 1)
    store, door = meeting._keep_store(place(0, free_port()))
    with pytest.raises(ValueError, match="ranks of srun: found 1 not there after 1 seconds"):
        meeting._wait_for_all(store, place(0, 0))
    door.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("networks", "card"), [(["a", "a"], "lo"), (["a", "b"], None), ([None, None], None)])
def test_gloo_stays_inside_one_host(
    networks: list[str | None], card: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting.os, "environ", {})
    meeting._stay_inside(networks)
    assert meeting.os.environ.get("GLOO_SOCKET_IFNAME") == card
    meeting.os.environ["GLOO_SOCKET_IFNAME"] = "ib0"
    meeting._stay_inside(networks)
    assert meeting.os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
