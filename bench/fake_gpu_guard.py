"""Gives torch a CUDA device that does nothing; before torch, which asks for it when imported.

Imports nothing of torch. What stands on it is in `fake_gpu`. A CUDA build on a machine without a GPU has a guard of its
own, which `FakeTensorMode` sets (torch._C._ensureCUDADeviceGuardSet), and needs our hooks: its own ask a driver.
"""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")
COMPILER = "g++"


def missing() -> str | None:
    """Return why there can be no fake CUDA device here, None where there can."""
    if shutil.which(COMPILER):
        return None
    return f"fake CUDA tensors need a device guard, and {COMPILER} to compile it"


def load() -> None:
    """Load the guard, which is compiled once for each version of it and of torch (2 s)."""
    assert "torch" not in sys.modules, "torch asks for the guard when it is imported"
    for library in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(_torch() / "lib" / library), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(_compiled()), mode=ctypes.RTLD_GLOBAL)


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _compiled() -> Path:
    """Return the library, from a folder that is ours alone: what lies there is loaded into processes."""
    folder = Path(tempfile.gettempdir()) / f"headwater-fake-cuda-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    assert found.st_uid == os.getuid() and not found.st_mode & 0o022, f"{folder}: others can write there"
    version = importlib.metadata.version("torch").encode()
    library = folder / f"{hashlib.sha256(SOURCE.read_bytes() + version).hexdigest()[:16]}.so"
    if not library.exists():
        torch = _torch()
        unfinished = folder / f"{library.name}.{os.getpid()}"  # several processes may compile it at once
        words = [COMPILER, "-O1", "-fPIC", "-shared", "-std=c++20", str(SOURCE), f"-I{torch}/include"]
        subprocess.run([*words, f"-L{torch}/lib", "-lc10", "-ltorch_cpu", "-o", str(unfinished)], check=True)
        unfinished.rename(library)
    return library
