"""The pool of workers when what started it is told to stop."""

import time

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
