"""Whether this machine computes bf16 in hardware: without torch, and as torch sees it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from align.runtime import precision


def test_the_cpu_is_judged_by_its_flags(monkeypatch, tmp_path):
    known = {"flags : fpu avx2 avx512f": False, "flags : avx512f avx512_bf16": True, "Features : asimd bf16 i8mm": True}
    for line, fast in known.items():
        file = tmp_path / "cpuinfo"
        file.write_text(f"model name : x\n{line}\n")
        monkeypatch.setattr(precision, "Path", lambda _, file=file: file)
        precision.cpu_has_bf16.cache_clear()
        assert precision.bf16_is_fast("cpu") is fast
    precision.cpu_has_bf16.cache_clear()


def test_a_gpu_that_is_hidden_is_not_asked(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    precision.compute_capability.cache_clear()
    assert precision.bf16_is_fast("cuda") is False
    precision.compute_capability.cache_clear()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN to compare with")
def test_what_the_flags_promise_torch_can_compute():
    if precision.bf16_is_fast("cpu"):
        assert torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_torch_is_not_imported():
    code = (
        "import sys; from align.runtime.precision import bf16_is_fast; "
        "bf16_is_fast('auto'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
