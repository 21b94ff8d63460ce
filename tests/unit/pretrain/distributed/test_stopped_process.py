"""Stopped processes are killed, and no others that have their number."""

import os
import signal
import subprocess
import sys

from pretrain.distributed.stopped_process import NOBODY, Process


def test_a_stopped_process_is_killed_and_no_other_with_its_number():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        found = Process.of(child.pid)
        child.send_signal(signal.SIGSTOP)
        own = Process.of(os.getpid())
        assert 0 < found.born >= own.born > 0
        for other in (found._replace(born=found.born + 1), found._replace(born=0), NOBODY):
            assert not other.kill()
        assert child.poll() is None
        assert found.kill()
        assert child.wait(10) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
    assert not found.kill(), "it is gone"
