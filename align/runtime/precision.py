"""Find out, without torch, whether this machine computes bf16 in hardware."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

from align.store.provenance import packages

_CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # Linux's names: two for x86, one for ARM
_AMPERE = 8.0  # NVIDIA's first compute capability with bf16


def bf16_is_fast(device: str) -> bool:
    """Return whether bf16 products are faster than fp32 products on the device of a run.

    A CPU without bf16 instructions computes bf16 in software, many times slower than fp32.

    Args:
        device: auto, cpu or cuda, as in `hardware.device`.
    """
    capability = None if device == "cpu" else compute_capability()
    if capability is not None:
        return capability >= _AMPERE
    return device != "cuda" and cpu_has_bf16()


@functools.cache
def compute_capability() -> float | None:
    """Return the lowest compute capability of the NVIDIA GPUs; None if torch will not use one.

    It will not without a GPU or its driver, if torch is built only for CPUs, or if
    CUDA_VISIBLE_DEVICES hides all GPUs.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or packages().get("torch", "").endswith("+cpu") or shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
        return min(map(float, answer.stdout.split()), default=None)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


@functools.cache
def cpu_has_bf16() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = {
        flag
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for flag in line.split()
    }
    return not flags.isdisjoint(_CPU_FLAGS)
