"""What running a function costs: seconds, memory at its peak, floating-point operations."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def measure(
    variants: dict[str, Callable[[], object]], repeats: int, device: str, cpu_time: bool = False
) -> tuple[dict[str, list[float]], dict[str, float | None]]:
    """Seconds of every variant in each round, run in turn, and its peak memory in the first one, which warms up.

    Seconds by the clock, or those that a CPU spent in this process.
    """
    now = time.process_time if cpu_time else time.perf_counter
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    peaks = {name: peak_memory(variant, device) for name, variant in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, variant in variants.items():
            wait()
            start = now()
            variant()
            wait()
            seconds[name].append(now() - start)
    return seconds, peaks


def peak_memory(variant: Callable[[], object], device: str) -> float | None:
    """Bytes that a run of `variant` takes at its peak, what was there before included; `None` where nobody counts."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif reset.exists():
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier variants have freed
        reset.write_text("5")  # Linux: from now on VmHWM is the peak of what follows
    variant()
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    if not reset.exists():
        return None
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def count_flops(variant: Callable[[], object]) -> int:
    """Floating-point operations in matrix products, attention as written out (fused CPU kernels are not counted)."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        variant()
    return counter.get_total_flops()
