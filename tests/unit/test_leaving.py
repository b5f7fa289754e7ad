"""A run that a signal asks to leave saves what it has, says so by its exit code, and is resumed to the same bits."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from fedsim import server
from fedsim.comm.leave import ToldToLeave
from fedsim.configure import load_config
from fedsim.errors import UserError
from fedsim.runfolder import claim
from fedsim.runfolder.claim import EXIT_CODE_FILE
from tests.distributed.runs import results, same_log, write_config

ROUNDS = 4


@pytest.mark.parametrize(
    ("method", "every", "saved"),
    [
        ("fedavg", 1, 1),  # round 2 is given up
        ("fedavg", 3, 1),  # the same, and round 1 is saved since it was not yet
        ("fedrep", 1, 1),  # what clients keep has changed in the midst of round 2, and stands in round 1's checkpoint
        ("fedrep", 3, 2),  # here it does not, so round 2 goes on to its end
        ("fedavg clock={example_seconds: 1.0}", 3, 2),  # the clock has moved on, too
    ],
)
def test_a_run_leaves_when_told_and_goes_on(
    method: str, every: int, saved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *more = method.split(" ", 1)
    words = [f"rounds={ROUNDS}", f"algorithm={{name: {name}}}", f"checkpoint.every={every}", *more]
    config, run = load_config(write_config(tmp_path), words), tmp_path / "run"
    whole = server.run(config, tmp_path / "whole", resume=False)
    train, number, blocks = server.run_round, 0, []

    def run_round(*arguments: Any) -> Any:
        nonlocal number
        number += 1
        if number == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
            monkeypatch.setattr(arguments[0].trainer, "train", counting(arguments[0].trainer.train))
        return train(*arguments)

    def counting(real: Any) -> Any:
        def trained(*arguments: Any) -> Any:
            blocks.append(arguments[0])
            return real(*arguments)

        return trained

    with monkeypatch.context() as patch:
        patch.setattr(server, "run_round", run_round)
        with pytest.raises(ToldToLeave, match=f"told to leave: round {saved} of {ROUNDS} is saved"):
            server.run(config, run, resume=False)
    # The running block is finished, and no other one trained where the round is given up.
    assert number == 2
    assert (len(blocks) == 1) == (saved == 1)
    assert (run / EXIT_CODE_FILE).read_text() == "75\n"
    assert not (run / "results.json").exists()
    assert server.run(config, run, resume=True) == whole == results(run)
    assert same_log(run, tmp_path / "whole")
    assert (run / EXIT_CODE_FILE).read_text() == "0\n"


def test_a_run_that_is_told_in_its_last_round_ends_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, evaluate = load_config(write_config(tmp_path), ["rounds=1"]), server.evaluate

    def told(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(server, "evaluate", told)
    assert server.run(config, tmp_path / "run", resume=False)["status"] == "finished"


def test_a_second_signal_is_heard_until_the_folder_says_how_the_run_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, note, handlers = load_config(write_config(tmp_path), ["rounds=1"]), claim.note_end, []

    def noted(*arguments: Any) -> None:
        note(*arguments)
        handlers.append(signal.getsignal(signal.SIGTERM))

    monkeypatch.setattr(claim, "note_end", noted)
    before = signal.getsignal(signal.SIGTERM)
    server.run(config, tmp_path / "run", resume=False)
    assert len(handlers) == 1
    assert handlers[0] != before == signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("broken"), 1), (UserError("a", "b", "c"), 2), (KeyboardInterrupt(), 130)]
)
def test_how_a_run_has_ended_stands_in_its_folder(
    error: BaseException, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_config(tmp_path), ["rounds=1"])

    def broken(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(server, "run_round", broken)
        with pytest.raises(type(error)):
            server.run(config, tmp_path / "run", resume=False)
    assert (tmp_path / "run" / EXIT_CODE_FILE).read_text() == f"{code}\n"
    # Who is refused there is not the run whose end it tells.
    with pytest.raises(UserError, match="in use"):
        server.run(config, tmp_path / "run", resume=False)
    assert (tmp_path / "run" / EXIT_CODE_FILE).read_text() == f"{code}\n"
