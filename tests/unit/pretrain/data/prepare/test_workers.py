"""The pool of workers when what started it is told to stop, and what workers do not take over from it."""

import sys
import time
from types import ModuleType

import pytest
from waiting import until

from pretrain.data.prepare.workers import worker_pool
from pretrain.errors import Preempted


@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", [Preempted, KeyboardInterrupt])
def test_a_unit_that_takes_minutes_is_not_waited_for(error):
    with pytest.raises(error), worker_pool(1) as workers:
        workers.call(abs, -1)
        until(workers._submit((time.sleep, 600)).running)
        raise error


def test_workers_do_not_run_the_program_that_starts_them(tmp_path, monkeypatch):
    """A script that trains as it is imported, as notebooks are written, would train there as well."""
    script = tmp_path / "script.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    program = ModuleType("__main__")
    program.__file__ = str(script)
    monkeypatch.setitem(sys.modules, "__main__", program)
    with worker_pool(1) as workers:
        assert workers.call(abs, -1) == 1
    assert sys.modules["__main__"] is program and not (tmp_path / "ran").exists()
