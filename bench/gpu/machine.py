"""What there is: versions, device, driver, kernels that can be had, and what is missing for which part.

Holds no measuring.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from bench.gpu.parts import report

PACKAGES = (
    *("torch", "triton", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "pyarrow"),
    *("hydra-core", "omegaconf", "antlr4-python3-runtime", "deepspeed", "torchao", "pytest", "pytest-timeout"),
    *("pytest-xdist", "rich", "huggingface-hub", "flash-attn-3", "flash-attn-4", "liger-kernel"),
)
QUERY = "name,driver_version,memory.total,clocks.max.sm,power.limit,persistence_mode"


def measure(*, dry: bool) -> None:
    """Report libraries first, which needs none of them, then what torch and the driver say."""
    found, lacking = {}, []
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            lacking.append(package)
    report(kind="versions", python=platform.python_version(), found=found, missing=lacking, cores=os.cpu_count())
    try:
        asked = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        report(kind="driver", gpus=answer.splitlines())
    except (OSError, subprocess.SubprocessError) as error:
        report(kind="driver", gpus=[], reason=str(error))
    import torch

    if not torch.cuda.is_available():
        report(kind="device", name="cpu", dry=dry, torch=torch.__version__)
        return
    properties = torch.cuda.get_device_properties(0)
    report(
        kind="device",
        name=properties.name,
        memory_bytes=properties.total_memory,
        multiprocessors=properties.multi_processor_count,
        capability=".".join(map(str, torch.cuda.get_device_capability())),
        devices=torch.cuda.device_count(),
        cuda=torch.version.cuda,
        nccl=".".join(map(str, torch.cuda.nccl.version())),  # pyright: ignore[reportAttributeAccessIssue]
        torch=torch.__version__,
        settings=os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or "",
    )
