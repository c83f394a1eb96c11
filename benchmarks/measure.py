"""What the benchmarks share: fair timing on a busy machine, peak memory, and the JSON of a measurement."""

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
    """Seconds of the fastest of several calls each, in turns, so that all meet the same disturbances.

    On the CPU they are CPU seconds of this process, which other processes add little to; on a GPU seconds by the clock
    until the device is done. Each function is called once before.
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
    """Bytes that a call needs at its peak, beyond what is held before it."""
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
    """Writes results/NAME.json with machine, versions and commit."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({**content, **environment(torch.device(device), 1)}, indent=2) + "\n")
    return path
