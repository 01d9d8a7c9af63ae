"""How long work takes, how much memory, and how many FLOPs it is."""

import ctypes
import gc
import operator
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmark.shares import shares

# (m, k, n) of the products (m, k) @ (k, n), the fastest of which is the device's rate: square ones, and those
# of a ViT-B's MLP on 128 or 4 images of 321 tokens.
MATRICES = {
    "cuda": ((8192, 8192, 8192), (16384, 4096, 4096), (41088, 768, 3072), (41088, 3072, 768)),
    "cpu": ((2048, 2048, 2048), (1284, 768, 3072), (1284, 3072, 768)),
}
WARMUP = {"cuda": 2, "cpu": 1}
AROUND = 3  # of each of MATRICES before a repeat, and after it
WITHIN = 0.2  # seconds of a repeat for one of MATRICES within it


class Bench:
    """Times pieces of work on a device; `rows` has the figures of each."""

    def __init__(self, device: torch.device, repeats: int):
        self.device = device
        self.repeats = repeats
        self.rows: list[dict] = []
        self._precision: str | None = None  # of MATRICES as they are made now
        self._made: dict[Callable[[], object], int] = {}  # as products, with their FLOPs
        self._matrices: list[Tensor] = []

    def add(
        self,
        part: str,
        work: Callable[[], object],
        images: int | None = None,
        flops_per_image: int | None = None,
        precision: str = "float32",
        warmup: int | None = None,
        once: bool = False,
        child: bool = False,
    ) -> dict:
        """Time `work`, which takes `images` images, print its line, and return it.

        MFU is the median of the repeats' own, each by the device's rate of matrix products beside it, so that
        it follows a machine whose speed drifts. warmup: how often the work is done before; by default once,
        and twice on a GPU, where the second time may still compile. once: it is done just once, what it needs
        to start with counting too. child: it is another process's, whose memory is known on a CPU only.
        """
        self._release_memory()
        warmup = WARMUP[self.device.type] if warmup is None else warmup
        for _ in range(0 if once else warmup):
            work()
        times, rates, peaks = [], [], []
        for _ in range(1 if once else self.repeats):
            if flops_per_image:
                time_taken, rate, peak = self.beside_products(work, precision)
                rates.append(rate)
            else:
                time_taken, peak = self.seconds_and_peak(work)
            times.append(time_taken)
            peaks.append(peak)
        seconds = statistics.median(times)
        row = {
            "part": part,
            "precision": precision,
            "images": images,
            "seconds": seconds,
            "images_per_second": images and images / seconds,
            "peak_memory_gb": self._child_memory() if child else max(peaks),
            "flops_per_image": flops_per_image,
            "matrix_flops": None,  # a second
            "mfu": None,
            "shares": None,
        }
        if flops_per_image:
            row["matrix_flops"] = statistics.median(rates)
            # FLOPs that the device could have done in each repeat's time
            possible = statistics.median(map(operator.mul, times, rates))
            row["mfu"] = images * flops_per_image / possible
            row["shares"] = None if once else shares(self.device, self.seconds, work)
        self.rows.append(row)
        print(format_row(row), flush=True)
        return row

    def seconds(self, work: Callable[[], object]) -> float:
        """How long the work takes, until the device is done with it."""
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def seconds_and_peak(self, work: Callable[[], object]) -> tuple[float, float]:
        """How long the work takes, and the most memory meanwhile, in GB, without the matrices of the rate."""
        self._reset_peak_memory()
        seconds = self.seconds(work)
        of_rate = sum(matrix.nbytes for matrix in self._matrices)
        return seconds, (self._peak_memory() - of_rate) / 1e9

    def beside_products(self, work: Callable[[], object], precision: str) -> tuple[float, float, float]:
        """How long the work takes, the rate of matrix products beside it, in FLOP/s, and the peak of memory.

        The rate is that of the fastest of MATRICES by the mean of several before and after the work, and on a
        CPU, which other processes or machines may share, within it: what slows the device down for a moment
        slows both.
        """
        flops = self._products(precision)
        times = {product: [] for product in flops}
        turns = cycle(times)

        def timed_product() -> float:
            product = next(turns)
            times[product].append(self.seconds(product))
            return times[product][-1]

        for _ in range(AROUND * len(times)):
            timed_product()
        within = ProductsWithin(timed_product)
        with within if self.device.type == "cpu" else nullcontext():
            seconds, peak = self.seconds_and_peak(work)
        for _ in range(AROUND * len(times)):
            timed_product()
        rate = max(flops[product] / statistics.fmean(taken) for product, taken in times.items())
        return seconds - within.seconds, rate, peak

    def _products(self, precision: str) -> dict[Callable[[], object], int]:
        """MATRICES as products to run, with the FLOPs of each. Those of another precision are let go."""
        if precision != self._precision:
            self._precision, self._made, self._matrices = precision, {}, []
            for m, k, n in MATRICES[self.device.type]:
                options = {"device": self.device, "dtype": getattr(torch, precision)}
                one, other = torch.randn(m, k, **options), torch.randn(k, n, **options)
                # With a place for the result, or each product would add its own to the peak of the work.
                result = torch.empty(m, n, **options)
                product = partial(torch.matmul, one, other, out=result)
                product()  # the first takes longer
                self._made[product] = 2 * m * k * n
                self._matrices += [one, other, result]
        return self._made

    def result(self) -> dict:
        """All that was measured, and on what."""
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name()
        else:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            names = [line.partition(": ")[2].strip() for line in lines if line.startswith("model name")]
            device = f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"
        machine = {"device": device, "cpus": os.cpu_count(), "torch": torch.__version__}
        return {**machine, "repeats": self.repeats, "rows": self.rows}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _release_memory(self) -> None:
        """Give back what earlier work has left."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            ctypes.CDLL(None).malloc_trim(0)

    def _reset_peak_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident set

    def _peak_memory(self) -> int:
        """Bytes: what was allocated on the device, or on a CPU the process's resident set."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024

    def _child_memory(self) -> float | None:
        """GB: the largest resident set of a process that has ended, if it had no GPU."""
        if self.device.type == "cuda":
            return None
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


class ProductsWithin(saved_tensors_hooks):
    """Inside, a product is run every WITHIN seconds where autograd keeps a tensor or takes it up.

    timed_product runs it and returns its seconds, of which `seconds` is the sum.
    """

    def __init__(self, timed_product: Callable[[], float]):
        self.seconds = 0.0
        self._timed_product = timed_product
        self._last = time.perf_counter()
        super().__init__(self._pass_on, self._pass_on)

    def _pass_on(self, tensor: Tensor) -> Tensor:
        if time.perf_counter() - self._last > WITHIN:
            self.seconds += self._timed_product()
            self._last = time.perf_counter()
        return tensor.detach()  # or a tensor that its own graph keeps would keep its graph


def format_row(row: dict) -> str:
    """A line of the table, – standing for what doesn't apply, and one of where its time goes."""

    def cell(value: float | None, form: str, width: int) -> str:
        return f"{'–' if value is None else format(value, form):>{width}}"

    flops = row["flops_per_image"] and row["flops_per_image"] / 1e9
    rate = row["matrix_flops"] and row["matrix_flops"] / 1e12
    cells = (
        f"{row['part']:<82} {row['precision']:<8}",
        f"{cell(row['images_per_second'], '.2f', 9)} images/s {row['seconds']:9.4f} s",
        f"{cell(row['peak_memory_gb'], '.2f', 6)} GB {cell(flops, '.2f', 8)} GFLOP/image",
        f"{cell(row['mfu'], '.1%', 6)} MFU of {cell(rate, '.4g', 6)} TFLOP/s",
    )
    line = " ".join(cells)
    if row["shares"]:
        line += "\n  " + ", ".join(f"{name} {share:.1%}" for name, share in row["shares"].items())
    return line
