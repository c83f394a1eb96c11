"""Tools of the benchmarks: fair timing on a busy machine, peak memory, and files of results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from idaa_lightly.bench.record import environment
from idaa_lightly.files import atomic_write

RESULTS = Path(__file__).parent / "results"


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Measure the fastest of several calls of each function, in seconds.

    The functions are called in turns, so that all meet the same disturbances. Each is called once before the
    measurement. On the CPU, the unit is CPU seconds of this process, which hardly depend on other processes. On a GPU,
    it is wall time until the device is done.

    Args:
        functions: Functions by name.
        repeats: Measured calls of each function.
        device: Device that the functions run on.

    Returns:
        Seconds by name.
    """
    gpu = device.startswith("cuda")
    clock = time.perf_counter if gpu else time.process_time
    wait = torch.cuda.synchronize if gpu else lambda: None
    best = dict.fromkeys(functions, float("inf"))
    for round_ in range(repeats + 1):
        for name, function in functions.items():
            wait()
            start = clock()
            function()
            wait()
            if round_:
                best[name] = min(best[name], clock() - start)
    return best


def peak_memory(function: Callable[[], object], device: str = "cpu") -> int:
    """Return the peak memory of a call in bytes, minus the memory that was held before it.

    Args:
        function: Function to call.
        device: Device that the function runs on.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    held, peak = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def save(name: str, content: Mapping[str, Any], device: str = "cpu") -> Path:
    """Write results/NAME.json, and add device, versions and commit.

    Args:
        name: Name of the file, without its suffix.
        content: Measurements, as JSON values.
        device: Device that was measured.

    Returns:
        The file.
    """
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({**content, **environment(torch.device(device), 1)}, indent=2) + "\n")
    return path
