"""Where the time of a piece of work goes, by torch's profiler."""

import math
import os
import re
from collections import Counter
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own notes would stand in the table

# What operations are of, by their names; attention first, which has names of both others.
KINDS = {
    "attention": re.compile("attention"),
    "matrix products": re.compile("(?<![a-z])([a-z]*mm(?![a-z])|linear)"),
    "convolutions": re.compile("conv"),
}
FUSED = "fused"  # torch.compile's own kernels
NAMED = 3  # operations of no kind that are named, those that take longest


def kind_of(operation: str) -> str | None:
    """Which of KINDS an operation is of, or FUSED; None if it is of none.

    torch.compile names a kernel after all that it has fused, a layer norm's after the product that it comes
    after, say: of its kernels only templates (triton_tem_…) do products, convolutions or attention.
    """
    if operation.startswith("triton_") and not operation.startswith("triton_tem_"):
        return FUSED
    found = next((kind for kind, names in KINDS.items() if names.search(operation)), None)
    return found or (FUSED if operation.startswith("triton_") else None)


def shares(
    device: torch.device, seconds: Callable[[Callable], float], work: Callable[[], object]
) -> dict[str, float]:
    """The shares of the time that KINDS, FUSED, the longest other operations, the rest and gaps take.

    `seconds` times work. In a gap the GPU has nothing to do; on a CPU, no operation is under way.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        profiled = seconds(work) * 1e6  # microseconds, as all below
    operations = Counter()
    for event in profiler.key_averages():
        if event.device_type == DeviceType.CPU:
            name = event.key.removeprefix("aten::").strip("_")
            operations[name] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    if on_gpu:
        # Kernels take as long as without the profiler; what is between them doesn't.
        whole, busy = seconds(work) * 1e6, busy_time(profiler)
    else:
        whole, busy = profiled, sum(operations.values())
    times = dict.fromkeys([*KINDS, FUSED], 0.0)
    for name in list(operations):
        if kind := kind_of(name):
            times[kind] += operations.pop(name)
    times |= dict(operations.most_common(NAMED))
    times["rest"] = max(0.0, busy - sum(times.values()))
    times["gaps"] = max(0.0, whole - busy)
    return {name: value / whole for name, value in times.items() if value > 0}


def busy_time(profiler: profile) -> float:
    """Microseconds in which the GPU has something to do."""
    on_device = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    busy, until = 0.0, -math.inf
    for start, end in sorted(on_device):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy
