"""Signals become a wish that the ranks agree on."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from fedsim.comm.leave import SIGNALS, Leave, ToldToLeave, hearing, keeping


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_heard_inside_alone_and_may_come_twice(number: signal.Signals) -> None:
    before, leave = signal.getsignal(number), Leave()
    with hearing(leave.ask):
        assert not leave.is_asked
        # torchrun passes on what SLURM has sent its ranks already.
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert leave.is_asked
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_comes_early_is_kept_until_somebody_hears(number: signal.Signals) -> None:
    before, leave = signal.getsignal(number), Leave()
    with keeping():
        os.kill(os.getpid(), number)
        assert not leave.is_asked
        with hearing(leave.ask):
            assert leave.is_asked
        with hearing(lambda: pytest.fail("heard twice")):
            pass
    assert signal.getsignal(number) == before


def test_a_kept_signal_that_nobody_hears_ends_the_process() -> None:
    program = "import os; from fedsim.comm.leave import keeping\nwith keeping(): os.kill(os.getpid(), 15); 1 / 0"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGTERM


def test_another_thread_than_the_main_one_leaves_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def inside() -> None:
        with hearing(lambda: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_round_is_given_up_where_it_alone_is_lost() -> None:
    leave = Leave()
    leave.agree(False)
    assert not leave.is_agreed
    leave.ask()
    assert not leave.breaks_off
    leave.agree(True)  # the round goes on to its end
    assert leave.is_agreed
    leave.may_break_off = True
    assert leave.breaks_off
    with pytest.raises(ToldToLeave):
        leave.agree(False)


def test_a_rank_that_was_not_asked_gives_up_with_the_others() -> None:
    leave = Leave()
    leave.may_break_off = True
    assert not leave.breaks_off
    with pytest.raises(ToldToLeave):
        leave.agree(True)
