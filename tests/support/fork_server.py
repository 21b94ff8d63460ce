"""A process that has imported the libraries once, and forks a process for each program or function that is asked for.

Started by `forks` with the number of a socket, and not imported. Of the product it imports nothing: what a program
imports, registers and forgets to import is its own. A forked process differs from a fresh interpreter in three things:
libraries have read their environment variables (`HF_HOME`, for one), strings hash as in every other process of the same
server, and nothing is printed while libraries are imported. With a second word, `fake_cuda`, it differs in a fourth:
torch has the device of `bench.fake_gpu`.
"""

import atexit
import gc
import importlib
import importlib.util
import os
import pickle
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
import types
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

# Not pyarrow, nor what brings it (datasets, pandas, scikit-learn): it starts a thread, and a process that forks must
# have none, for locks that a thread holds stay locked in the fork.
LIBRARIES = """
torch torch.distributed.fsdp torch.distributed.algorithms.ddp_comm_hooks.default_hooks torch._inductor.compile_fx
deepspeed deepspeed.ops.op_builder.all_ops deepspeed.module_inject.auto_ep_layer deepspeed.runtime.zero.stage3
deepspeed.runtime.superoffload.superoffload_stage3 deepspeed.runtime.zero.muon.original_muon setuptools accelerate
hydra rich tokenizers safetensors.torch matplotlib.figure matplotlib.backends.backend_agg wandb pytest
scipy.optimize scipy.sparse.linalg scipy.stats
"""
FAKE_CUDA = """
torch torch.distributed.fsdp torch.distributed.algorithms.ddp_comm_hooks.default_hooks torch._dynamo.backends.debugging
torch.nn.attention.flex_attention torch.nn.attention.varlen torch.testing._internal.distributed.fake_pg accelerate
hydra tokenizers rich
"""


def preload(libraries: str) -> None:
    for library in libraries.split():
        # A GPU machine may lack some (bench/gpu.md), and a program that needs one of these will say so itself.
        if importlib.util.find_spec(library.partition(".")[0]):
            importlib.import_module(library)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, (
        "a thread that runs while its process forks leaves locks behind"
    )
    gc.collect()
    gc.freeze()  # no collection touches, and thereby copies, what all processes share


def serve(control: socket.socket) -> dict:
    """Fork for each connection that arrives; return what is asked for, in the process that is to become it."""
    while descriptors := socket.recv_fds(control, 1, 1)[1]:
        if os.fork() == 0:
            control.close()
            return supervise(Connection(descriptors[0]))
        os.close(descriptors[0])
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
    with suppress(ChildProcessError):  # the tests have ended
        while os.wait():
            pass
    os._exit(0)


def supervise(connection: Connection) -> dict:
    """Fork the process that was asked for, say its number and how it ends; end it with whoever asked."""
    request = connection.recv()
    child = os.fork()
    if child == 0:
        connection.close()
        return request
    connection.send(child)
    select.select([os.pidfd_open(child), connection], [], [])
    ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    with suppress(OSError):
        connection.send(os.waitstatus_to_exitcode(status))
    os._exit(0)


def become(request: dict) -> None:
    """Turn this process into the one that a request describes, up to the point where it runs."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    for number, file, flags in (
        (0, request.get("stdin", os.devnull), os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY | os.O_APPEND),
        (2, request["stderr"], os.O_WRONLY | os.O_APPEND),
    ):
        opened = os.open(file, flags)
        os.dup2(opened, number)
        os.close(opened)
    ahead = [request["cwd"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = request.get("path") or [*ahead, *(path for path in sys.path if path not in ahead)]
    importlib.import_module("numpy").random.seed()  # as an import does; `random` does it by itself


def run(request: dict) -> None:
    if "call" in request:
        function, arguments = pickle.loads(request["call"])
        function(*arguments)
        return
    option, program, *arguments = request["words"]
    sys.argv = [option, *arguments]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), vars(main))
    else:
        raise ValueError(f"{option}: neither -m nor -c")


def exit_code(request: dict) -> int:
    """Run what a request names and return what a fresh interpreter's exit code would be."""
    try:
        run(request)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return int(error.code or 0) if not isinstance(error.code, str) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    if "fake_cuda" in sys.argv[2:]:
        importlib.import_module("bench.fake_gpu_guard").load()
        preload(FAKE_CUDA)
    else:
        preload(LIBRARIES)
    sys.path.remove(str(Path(__file__).parent))
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    become(request)
    code = exit_code(request)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to take an interpreter with all these libraries down takes longer than many a test


if __name__ == "__main__":
    main()
