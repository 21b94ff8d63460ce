"""How a command ends: what it prints, its exit code, what it imports, and the request to stop."""

import errno
import signal
import subprocess
import sys
import threading
from argparse import ArgumentParser

import pytest

from pretrain.commands import HANDLED, STOP_SIGNALS, StopRequest, command, exit_code_to
from pretrain.errors import CheckpointError, ConfigError, Preempted, ResourceError, check


def number() -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_argument("number", type=int)
    return parser


def test_a_command_prints_what_its_body_returns(capsys):
    assert command(number(), lambda options: 2 * options.number, ["21"]) == 0
    assert command(number(), lambda options: None, ["21"]) == 0
    assert capsys.readouterr() == ("42\n", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a=1: too small"), 2),
        (CheckpointError("torn"), 4),
        (Preempted("stopped"), 85),
    ],
)
def test_an_error_of_ours_becomes_its_message_and_exit_code(capsys, error, code):
    def fail(options):
        raise error

    assert command(number(), fail, ["1"]) == code
    assert capsys.readouterr() == ("", f"{error}\n")


def test_a_second_ctrl_c_has_an_exit_code_and_no_traceback(capsys):
    def interrupted(options):
        signal.raise_signal(signal.SIGINT)

    assert command(number(), interrupted, ["1"]) == 130
    assert capsys.readouterr() == ("", "ended at once; what was saved before is kept\n")


def test_what_all_ranks_know_is_said_by_the_first(capsys, monkeypatch):
    def fail(error):
        raise error

    monkeypatch.setenv("RANK", "1")
    assert command(number(), lambda options: fail(Preempted("stopped")), ["1"]) == 85
    assert command(number(), lambda options: fail(ConfigError("of this rank")), ["1"]) == 2
    assert capsys.readouterr() == ("", "of this rank\n")


def test_a_bug_and_a_refused_argument_pass_through():
    with pytest.raises(ZeroDivisionError):
        command(number(), lambda options: 1 / options.number, ["0"])
    with pytest.raises(SystemExit, match="2"):
        command(number(), print, ["one"])


def test_commands_that_need_neither_torch_nor_hydra_load_neither():
    script = "import sys, pretrain.errors; sys.exit(bool({'torch', 'hydra', 'omegaconf'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_check_names_key_value_and_rule():
    check(True, "a", 1, "at least 2")
    with pytest.raises(ValueError, match=r"^a=1: at least 2$"):
        check(False, "a", 1, "at least 2")


OUTCOMES = [(None, 0), (ConfigError("refused"), 2), (KeyError("bug"), 1), (Preempted("stopped"), 85)]


@pytest.mark.parametrize(("error", "code"), [*OUTCOMES, (KeyboardInterrupt(), 130)])
def test_the_outcome_of_a_block_is_reported(error, code):
    found = []
    try:
        with exit_code_to(found.append):
            if error:
                raise error
    except BaseException as raised:
        assert raised is error
    assert found == [code]


def test_an_end_that_cannot_be_reported_never_hides_why_it_came(capfd):
    def report(code: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ConfigError, match="refused"), exit_code_to(report):
        raise ConfigError("refused")
    assert "nor can the end of the run be recorded ([Errno 28] No space left" in capfd.readouterr().err
    with pytest.raises(ResourceError, match=r"the end .* cannot be recorded .*; free space"), exit_code_to(report):
        pass


@pytest.mark.parametrize("number", HANDLED)
def test_a_request_to_stop_ends_what_does_not_train_yet_and_is_a_flag_afterwards(number):
    with pytest.raises(Preempted, match="nothing yet"), StopRequest("nothing yet") as early:
        signal.raise_signal(number)
    assert early.received
    with StopRequest("") as stop:
        stop.training = True
        assert not stop.received
        signal.raise_signal(number)
        assert stop.received


def test_a_run_that_saves_is_asked_again_and_again_by_schedulers_and_twice_by_its_user():
    went_on = False
    with pytest.raises(KeyboardInterrupt), StopRequest("") as stop:
        stop.training = True
        for number in (*STOP_SIGNALS, *STOP_SIGNALS, signal.SIGINT, *STOP_SIGNALS):
            signal.raise_signal(number)
        went_on = stop.received
        signal.raise_signal(signal.SIGINT)
    assert went_on


def test_what_handled_signals_before_does_so_afterwards(monkeypatch):
    seen = []
    before = {number: signal.signal(number, lambda number, frame: seen.append(number)) for number in STOP_SIGNALS}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(Preempted), StopRequest("") as stop:
            signal.raise_signal(signal.SIGINT)
            ignored = not stop.received  # as in the background of a shell
            signal.raise_signal(signal.SIGTERM)
        assert ignored
        for number in HANDLED:
            signal.raise_signal(number)
        assert seen == list(STOP_SIGNALS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_thread_that_may_not_handle_signals_leaves_them_alone():
    def handlers():
        return [signal.getsignal(number) for number in HANDLED]

    def body():
        with StopRequest("") as stop:
            found.append((handlers(), stop.received))

    before, found = handlers(), []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [(before, False)] and handlers() == before


def test_a_request_to_stop_is_not_taken_for_a_failure_of_the_code_that_it_passes_through():
    with pytest.raises(Preempted), StopRequest(""):
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pytest.fail("a library that tries something else now would go on")
