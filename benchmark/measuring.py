"""How long work takes, how much memory, and how many FLOPs it is."""

import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from training.run import Run

# (m, k, n) of the products (m, k) @ (k, n), the fastest of which is the device's rate: square ones, and those
# of a ViT-B's MLP on 128 or 4 images of 321 tokens.
MATRICES = {
    "cuda": ((8192, 8192, 8192), (16384, 4096, 4096), (41088, 768, 3072), (41088, 3072, 768)),
    "cpu": ((2048, 2048, 2048), (1284, 768, 3072), (1284, 3072, 768)),
}


class Bench:
    """Times pieces of work on a run's device; `rows` has the figures of each."""

    def __init__(self, run: Run, repeats: int):
        self.device = run.device
        self.repeats = repeats
        self.rows: list[dict] = []
        self.matrix_flops: dict[str, float] = {}  # a second, by precision
        bf16 = run.accelerator.mixed_precision == "bf16"
        self.training_precision = "bfloat16" if bf16 else "float32"
        # float32 is what encoding and generating are done in unless the caller says otherwise
        self.inference_precisions = ["float32", "bfloat16"] if bf16 else ["float32"]

    def add(
        self,
        part: str,
        work: Callable[[], object],
        images: int | None = None,
        flops_per_image: int | None = None,
        precision: str = "float32",
        warmup: int = 2,
        child: bool = False,
    ) -> dict:
        """Time `work`, which takes `images` images, print its line, and return it.

        child: the work is another process's, whose memory is known on a CPU only.
        """
        for _ in range(warmup):
            work()
        self._reset_peak_memory()
        seconds = statistics.median(self.seconds(work) for _ in range(self.repeats))
        row = {
            "part": part,
            "precision": precision,
            "images": images,
            "seconds": seconds,
            "images_per_second": images and images / seconds,
            "peak_memory_gb": self._peak_memory(child),
            "flops_per_image": flops_per_image,
            "mfu": None,
            "launch_gaps": None,
        }
        if flops_per_image:
            row["mfu"] = images * flops_per_image / seconds / self.matrix_rate(precision)
        if self.device.type == "cuda" and not child:
            row["launch_gaps"] = self._launch_gaps(work, seconds)
        self.rows.append(row)
        print(format_row(row))
        return row

    def seconds(self, work: Callable[[], object]) -> float:
        """How long the work takes, until the device is done with it."""
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def matrix_rate(self, precision: str) -> float:
        """FLOP/s of the device's fastest product of large matrices, measured once."""
        if precision not in self.matrix_flops:
            rates = []
            for m, k, n in MATRICES[self.device.type]:
                options = {"device": self.device, "dtype": getattr(torch, precision)}
                multiply = partial(torch.matmul, torch.randn(m, k, **options), torch.randn(k, n, **options))
                rates.append(2 * m * k * n / min(self.seconds(multiply) for _ in range(1 + self.repeats)))
            self.matrix_flops[precision] = max(rates)
            print(f"matrix products in {precision}: {max(rates) / 1e12:.4g} TFLOP/s")
        return self.matrix_flops[precision]

    def result(self) -> dict:
        """All that was measured, and on what."""
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name()
        else:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            names = [line.partition(": ")[2].strip() for line in lines if line.startswith("model name")]
            device = f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"
        machine = {"device": device, "cpus": os.cpu_count(), "torch": torch.__version__}
        return {**machine, "repeats": self.repeats, "matrix_flops": self.matrix_flops, "rows": self.rows}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _reset_peak_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident set

    def _peak_memory(self, child: bool) -> float | None:
        """GB: what was allocated on the device, or on a CPU the process's resident set."""
        if self.device.type == "cuda":
            return None if child else torch.cuda.max_memory_allocated() / 1e9
        if child:
            return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024 / 1e9

    def _launch_gaps(self, work: Callable[[], object], seconds: float) -> float:
        """The share of `seconds` in which the device has nothing to do."""
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            self.seconds(work)
        on_device = [
            (event.time_range.start, event.time_range.end)
            for event in profiler.events()
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        ]
        busy, until = 0.0, -math.inf  # microseconds
        for start, end in sorted(on_device):
            busy += max(0.0, end - max(start, until))
            until = max(until, end)
        return max(0.0, 1 - busy / 1e6 / seconds)


def count_flops(work: Callable[[], object]) -> int:
    """FLOPs of the matrix products and convolutions in `work`, a multiplication and an addition being two.

    Attention is done as the products that it is made of: fused kernels repeat some of them, and some aren't
    counted.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


def format_row(row: dict) -> str:
    """A line of the table; – stands for what doesn't apply."""

    def cell(value: float | None, form: str, width: int) -> str:
        return f"{'–' if value is None else format(value, form):>{width}}"

    flops = row["flops_per_image"] and row["flops_per_image"] / 1e9
    cells = (
        f"{row['part']:<82} {row['precision']:<8}",
        f"{cell(row['images_per_second'], '.2f', 9)} images/s {row['seconds']:9.4f} s",
        f"{cell(row['peak_memory_gb'], '.2f', 6)} GB {cell(flops, '.2f', 8)} GFLOP/image",
        f"{cell(row['mfu'], '.1%', 6)} MFU {cell(row['launch_gaps'], '.1%', 6)} gaps",
    )
    return " ".join(cells)
