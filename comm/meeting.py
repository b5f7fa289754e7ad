"""How the ranks of a run find each other: a store that all of them read, and who is where.

Under torchrun the agent keeps the store. Otherwise rank 0 does, and a door tells where: a port at which whoever knocks
learns which run it is and where its store listens. TCPStore itself cannot be asked: its client waits for ever at a
port that says nothing, and takes any other TCPStore for its own.
"""

import contextlib
import errno
import ipaddress
import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from torch.distributed import DistNetworkError, DistStoreError, TCPStore  # type: ignore[attr-defined]  # not in __all__
from torch.distributed.distributed_c10d import PrefixStore, Store

from fedsim.comm.launcher import Place
from fedsim.comm.watch import Watch
from fedsim.errors import RankError, UserError

# How long a rank looks for rank 0, how long what listens there may take to answer, and how long all wait for the last.
CONNECT_TIMEOUT_SECONDS = 120
ANSWER_TIMEOUT_SECONDS = 20
START_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Meeting:
    """What the ranks have once all are there."""

    store: Store
    watch: Watch


def meet(place: Place) -> Meeting:
    """Wait for all ranks.

    RankError where the port is taken, or this rank finds no rank 0 there; UserError where ranks are missing.
    """
    door = None
    store: Store
    if place.rank == 0 and not place.has_agent:
        store, door = _keep_store(place)
    else:
        address, port = (place.address, place.port) if place.has_agent else _knock(place)
        store = TCPStore(address, port, timeout=timedelta(seconds=START_TIMEOUT_SECONDS))
    own = PrefixStore(f"fedsim/{place.attempt}", store)
    if own.add(f"came/{place.rank}", 1) > 1:
        raise RankError(
            f"rank {place.rank}",
            f"another one at port {place.port} of {place.address}",
            "one process per rank, and a MASTER_PORT for each run",
        )
    keeper = "torchrun's agent" if place.has_agent else "rank 0"
    watch = Watch(place.rank, own, f"{keeper}, which keeps the store at {place.address},")
    hosts = _wait_for_all(own, place)
    if door is not None:
        door.shutdown(socket.SHUT_RDWR)
    watch.follow(hosts)
    return Meeting(own, watch)


def _keep_store(place: Place) -> tuple[Store, socket.socket]:
    """Open the door and the store behind it, at a port of the kernel's choice and the door's address."""
    door = _listen(place)
    address = door.getsockname()[0]
    is_everywhere = ipaddress.ip_address(address).is_unspecified
    behind = _create_server(address, 0)
    port = behind.getsockname()[1]
    store = TCPStore(
        "localhost" if is_everywhere else address,
        port,
        is_master=True,
        timeout=timedelta(seconds=START_TIMEOUT_SECONDS),
        wait_for_workers=False,
        master_listen_fd=behind.detach(),
    )
    threading.Thread(target=_answer, args=(door, _greeting(place.run, port)), daemon=True).start()
    return store, door


def _listen(place: Place) -> socket.socket:
    """Listen where the ranks meet, at that address alone; at all addresses where it says nothing to this host."""
    where = f"port {place.port} of {place.address}, where the ranks meet"
    try:
        address = str(socket.getaddrinfo(place.address, place.port, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise RankError(where, str(error), "a host that has an address: set MASTER_ADDR on all ranks") from error
    if ipaddress.ip_address(address).is_loopback and place.address not in (address, "localhost"):
        # As Debian writes it into a host's own /etc/hosts; the other hosts know a better one.
        reason = f"{place.address} is {address} on its own host"
    elif (door := _bind(address, place.port, where)) is not None:
        return door
    else:
        reason = f"{address} is no address of this host"
    print(f"{reason}: the store listens on all addresses, see docs/clusters.md", file=sys.stderr)
    door = _bind("::" if socket.has_dualstack_ipv6() else "0.0.0.0", place.port, where)
    assert door is not None
    return door


def _bind(address: str, port: int, where: str) -> socket.socket | None:
    """A listening socket; None where the address is another host's, such as one that passes connections on."""
    try:
        return _create_server(address, port)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        found = os.strerror(error.errno or 0)
        raise RankError(where, found, "a free port: set MASTER_PORT to one, the same on all ranks") from error


def _create_server(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, dualstack_ipv6=address == "::")


def _greeting(run: str, port: int) -> bytes:
    return json.dumps({"fedsim": run, "store": port}).encode()


def _answer(door: socket.socket, greeting: bytes) -> None:
    with contextlib.suppress(OSError), door:  # the door is shut when all have come
        while True:
            visitor, _ = door.accept()
            with visitor, contextlib.suppress(OSError):
                visitor.sendall(greeting)


def _knock(place: Place) -> tuple[str, int]:
    """Address and port of the store, as rank 0 of this run tells them."""
    where = f"rank {place.rank}: port {place.port} of {place.address}, where the ranks meet"
    end = time.monotonic() + CONNECT_TIMEOUT_SECONDS
    while True:
        try:
            door = socket.create_connection((place.address, place.port), timeout=ANSWER_TIMEOUT_SECONDS)
            break
        except OSError as error:  # rank 0, or its name, may not be there yet
            if time.monotonic() > end:
                found = f"no rank 0 within {CONNECT_TIMEOUT_SECONDS} seconds ({error})"
                raise RankError(where, found, "rank 0: MASTER_ADDR and MASTER_PORT say where it is") from error
            time.sleep(0.5)
    said = b""
    with door, contextlib.suppress(OSError):
        address = door.getpeername()[0]
        said = door.recv(1000)
    expected = f"rank 0 of {place.run or 'this run'}: set MASTER_PORT to a free port, the same on all ranks"
    try:
        greeting = json.loads(said)
        run, port = str(greeting["fedsim"]), int(greeting["store"])
    except (ValueError, TypeError, KeyError) as error:
        raise RankError(where, "another program", expected) from error
    if run != place.run:
        raise RankError(where, run or "another run", expected)
    return address, port


def _wait_for_all(store: Store, place: Place) -> list[str]:
    """Tell where this rank is, wait for the others, and return every rank's host."""
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    store.set(f"here/{place.rank}", json.dumps([host, _network()]))
    keys = [f"here/{rank}" for rank in range(place.num_ranks)]
    try:
        store.wait(keys, timedelta(seconds=START_TIMEOUT_SECONDS))
    except DistStoreError as error:
        missing = ", ".join(str(rank) for rank, key in enumerate(keys) if not store.check([key]))
        raise UserError(
            f"ranks of {place.launcher}", f"{missing} not there after {START_TIMEOUT_SECONDS} seconds", "all of them"
        ) from error
    except DistNetworkError as error:
        raise RankError(
            f"rank {place.rank}", "a store that is gone", "one that stays until all ranks are there"
        ) from error
    here = [json.loads(value) for value in store.multi_get(keys)]
    _stay_inside([network for _, network in here])
    return [host for host, _ in here]


def _network() -> str | None:
    """What processes have in common that reach each other at the loopback address: a kernel and a network namespace."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{kernel} {Path('/proc/self/ns/net').stat().st_ino}"
    except OSError:
        return None


def _stay_inside(networks: list[str | None]) -> None:
    """Have gloo listen at the loopback address where all ranks are on one host, unless the user said where."""
    has_loopback = "lo" in (name for _, name in socket.if_nameindex())
    if networks[0] is not None and len(set(networks)) == 1 and has_loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
