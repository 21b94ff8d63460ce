"""How a command begins, in processes of their own: told to stop, and with streams that are not what they could be."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.commands import HANDLED

BEGIN = "import os, sys\nfrom pretrain.commands import command, start_command\nstart_command()\n"
STOPPABLE = (
    "from pretrain.commands import StopRequest, exit_code_of\nfrom pretrain.errors import Preempted\n"
    "with StopRequest('early') as stop:\n code = exit_code_of(body)\nsys.exit(code)\n"
)
AT_ONCE = "ended at once; what was saved before is kept"
WAIT = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n"
PLAIN = [sys.executable, "-c"]
AS_PROCESS_1 = ["unshare", "--fork", "--pid", "--kill-child", *PLAIN]


def run(code: str, redirections: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command's code behind redirections of the shell; return its exit code and what was not redirected."""
    words = ["sh", "-c", f'exec "$0" -c "$1" {redirections}', sys.executable, BEGIN + code]
    return subprocess.run(words, env=os.environ | env, capture_output=True, text=True, timeout=60)


def test_warnings_of_torchs_cpp_are_printed_only_if_the_user_says_so():
    code = "print(os.environ['TORCH_CPP_LOG_LEVEL'])"
    assert [run(code).stdout, run(code, TORCH_CPP_LOG_LEVEL="INFO").stdout] == ["ERROR\n", "INFO\n"]


def told(words: list[str], code: str, number: int) -> tuple[int, str]:
    """Start Python, send it a signal once it has printed a line; return its exit code and what it said of that."""
    process = subprocess.Popen([*words, code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n", process.communicate()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int([process.pid, *children][-1]), number)
    error = process.communicate(timeout=60)[1]
    return process.returncode, error


def skip_unless_allowed(words: list[str]) -> None:
    try:
        allowed = subprocess.run([*words, "pass"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("a namespace of processes needs privileges")


@pytest.mark.parametrize("number", HANDLED)
def test_what_is_told_to_end_ends_at_once(number):
    assert told(PLAIN, BEGIN + WAIT, number) == (85, "stopped with nothing to save; the same command starts again\n")


@pytest.mark.parametrize("number", HANDLED)
def test_process_1_of_a_container_does_so_too(number):
    skip_unless_allowed(AS_PROCESS_1)
    assert told(AS_PROCESS_1, BEGIN + WAIT, number)[0] == 85


def test_an_import_that_is_under_way_does_not_swallow_the_signal(tmp_path):
    (tmp_path / "slow.py").write_text(f"try:\n    {WAIT.replace(chr(10), chr(10) + '    ')}\nexcept:\n    pass")
    code = f"{BEGIN}sys.path.insert(0, {str(tmp_path)!r})\nimport slow\nprint('goes on')"
    assert told(PLAIN, code, signal.SIGTERM)[0] == 85


def test_a_second_request_does_not_wait_for_what_the_first_set_going():
    body = (
        "def body():\n try:\n  os.kill(os.getpid(), 15)\n finally:\n  print('ready', flush=True)\n  time.sleep(600)\n"
    )
    assert told(PLAIN, f"{BEGIN}import time\n{body}{STOPPABLE}", signal.SIGTERM)[0] == 85
    assert told(PLAIN, f"{BEGIN}import time\n{body}{STOPPABLE}", signal.SIGINT) == (130, f"{AT_ONCE}\n")


@pytest.mark.parametrize("last", ["return", "raise Preempted('saved')"])
def test_a_second_ctrl_c_ends_a_command_at_once_also_while_it_closes_what_it_used(last):
    body = f"def body():\n stop.training = True\n os.kill(os.getpid(), 2)\n assert stop.received\n {last}\n"
    said, saved = "stopping: the step under way is finished", "saved\n" * (last != "return")
    ended, error = told(PLAIN, f"{BEGIN}{body}{STOPPABLE[: STOPPABLE.index('sys.exit')]}{WAIT}", signal.SIGINT)
    assert ended == 130 and error.startswith(said) and error.endswith(f"at once\n{saved}{AT_ONCE}\n")


def test_a_signal_between_two_programs_of_one_process_reaches_the_second():
    second = BEGIN + "print('goes on')"
    first = "from pretrain.commands import signals_held\nimport signal\nwith signals_held():\n"
    first += f" signal.raise_signal(15)\n os.execv(sys.executable, [sys.executable, '-c', {second!r}])"
    ended = run(first)
    assert (ended.returncode, ended.stdout) == (85, "")


def test_a_shell_that_keeps_ctrl_c_from_its_background_still_does():
    words = ["sh", "-c", 'trap "" INT; exec "$0" -c "$1"', sys.executable, f"{BEGIN}os.kill(os.getpid(), 2)"]
    assert subprocess.run(words).returncode == 0


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", rb"\u0142\xf3d\u017a \U0001f600"), ("latin-1", b"\\u0142\xf3d\\u017a \\U0001f600")],
)
def test_what_an_output_cannot_encode_is_an_escape(encoding, shown):
    code = BEGIN + "print('łódź 😀'); print('łódź 😀', file=sys.stderr)"
    ended = subprocess.run([*PLAIN, code], env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True)
    assert (ended.returncode, ended.stdout.strip(), ended.stderr.strip()) == (0, shown, shown)


def test_a_terminal_is_written_to_line_by_line():
    ours, theirs = os.openpty()
    with subprocess.Popen([*PLAIN, BEGIN + WAIT], stdout=theirs, stdin=subprocess.PIPE) as process:
        os.close(theirs)
        assert os.read(ours, 100).strip() == b"ready"
        process.kill()


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_that_has_enough_is_no_error(name, tmp_path):
    write = f"for _ in range(10**5): print('line', file=sys.{name})\nopen({str(tmp_path / 'end')!r}, 'w')"
    writer = subprocess.Popen([*PLAIN, BEGIN + write], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    read, other = (writer.stdout, writer.stderr) if name == "stdout" else (writer.stderr, writer.stdout)
    assert read and other and read.readline() == b"line\n"
    read.close()
    assert other.read() == b"" and writer.wait(60) == 0
    assert (tmp_path / "end").exists(), "a run goes on without its terminal"


def test_a_full_disk_is_an_error_of_the_output_and_not_of_messages():
    body = "import argparse\nsys.exit(command(argparse.ArgumentParser(), lambda options: 'x' * {size}, []))"
    for size in (1, 10**6):
        full = run(body.format(size=size), "> /dev/full")
        assert full.returncode == 8 and full.stderr == (
            "standard output: cannot be written (No space left on device); free space\n"
        )
    said = run("print('said', file=sys.stderr)\nprint('done')", "2> /dev/full")
    assert (said.returncode, said.stdout) == (0, "done\n")


@pytest.mark.parametrize(("closed", "number"), [("<&-", 0), (">&-", 1), ("2>&-", 2)])
def test_a_file_never_gets_the_number_of_a_stream_that_is_closed(closed, number, tmp_path):
    write = f"file = open({str(tmp_path / 'file')!r}, 'w')\nassert file.fileno() > 2\nprint(file.fileno(), file=file)\n"
    use = "assert sys.stdin.read() == '' and sys.stdin.buffer.read() == b''\nprint(1, file=sys.stderr)\nprint(1)\n"
    child = f"import subprocess\nsubprocess.run(['sh', '-c', 'echo >&{number}'], check=True)"
    assert run(write + use + child, f"{closed} {'' if closed == '<&-' else '< /dev/null'}").returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


def test_a_word_that_is_no_text_in_this_locale_is_refused_before_it_is_written_anywhere():
    c = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for word, locale in (("łódź".encode(), c), (b"\xff.txt", {"PYTHONUTF8": "1"})):
        words = [*PLAIN, BEGIN + "print('goes on')", word]
        ended = subprocess.run(words, env=os.environ | locale, capture_output=True, text=True)
        assert (ended.returncode, ended.stdout) == (2, "") and "no text in the encoding of this locale" in ended.stderr
    assert run("print('goes on')", "łódź", PYTHONUTF8="1").returncode == 0


def test_a_signal_while_the_interpreter_ends_changes_nothing():
    late = "class Late:\n def __init__(self): self.kill, self.own = os.kill, os.getpid()\n"
    late += " def __del__(self): self.kill(self.own, 15)\nlate = Late()"
    assert run(late).returncode == 0


def test_standard_input_that_is_closed_is_empty():
    done = run("print(repr(sys.stdin.buffer.peek(1)))", "<&-")
    assert (done.returncode, done.stdout) == (0, "b''\n")
