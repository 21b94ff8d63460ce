"""How a command ends: what it prints, its exit code, and what it imports."""

import subprocess
import sys
from argparse import ArgumentParser

import pytest

from pretrain.errors import CheckpointError, ConfigError, Preempted, check, command, exit_code_to


def number() -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_argument("number", type=int)
    return parser


def test_a_command_prints_what_its_body_returns(capsys):
    assert command(number(), lambda options: 2 * options.number, ["21"]) == 0
    assert command(number(), lambda options: None, ["21"]) == 0
    assert capsys.readouterr() == ("42\n", "")


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("a=1: too small"), 2), (CheckpointError("torn"), 4), (Preempted("stopped"), 85)]
)
def test_an_error_of_ours_becomes_its_message_and_exit_code(capsys, error, code):
    def fail(options):
        raise error

    assert command(number(), fail, ["1"]) == code
    assert capsys.readouterr() == ("", f"{error}\n")


def test_a_bug_and_a_refused_argument_pass_through():
    with pytest.raises(ZeroDivisionError):
        command(number(), lambda options: 1 / options.number, ["0"])
    with pytest.raises(SystemExit, match="2"):
        command(number(), print, ["one"])


def test_a_reader_that_has_enough_is_no_error():
    script = (
        "import sys; from argparse import ArgumentParser; from pretrain.errors import command\n"
        "sys.exit(command(ArgumentParser(), lambda options: 'line\\n' * 10**6, []))"
    )
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout and writer.stdout.readline() == b"line\n"
    writer.stdout.close()
    assert writer.wait(60) == 0 and writer.stderr and writer.stderr.read() == b""


def test_commands_that_need_neither_torch_nor_hydra_load_neither():
    script = "import sys, pretrain.errors; sys.exit(bool({'torch', 'hydra', 'omegaconf'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_check_names_key_value_and_rule():
    check(True, "a", 1, "at least 2")
    with pytest.raises(ValueError, match=r"^a=1: at least 2$"):
        check(False, "a", 1, "at least 2")


@pytest.mark.parametrize(("error", "code"), [(None, 0), (ConfigError("refused"), 2), (KeyError("bug"), 1)])
def test_the_outcome_of_a_block_is_reported(error, code):
    found = []
    try:
        with exit_code_to(found.append):
            if error:
                raise error
    except Exception as raised:
        assert raised is error
    assert found == [code]
