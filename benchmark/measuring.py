"""How long work takes, how much memory, and how many FLOPs it is."""

import ctypes
import gc
import math
import operator
import os
import platform
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own notes would stand in the table

# (m, k, n) of the products (m, k) @ (k, n), the fastest of which is the device's rate: square ones, and those
# of a ViT-B's MLP on 128 or 4 images of 321 tokens.
MATRICES = {
    "cuda": ((8192, 8192, 8192), (16384, 4096, 4096), (41088, 768, 3072), (41088, 3072, 768)),
    "cpu": ((2048, 2048, 2048), (1284, 768, 3072), (1284, 3072, 768)),
}
AROUND = 3  # of each of MATRICES before a repeat, and after it
WITHIN = 0.2  # seconds of a repeat for one of MATRICES within it
# What operations are of, by parts of their names; attention first, which has names of both others.
KINDS = {
    "attention": ("attention",),
    "matrix products": ("mm", "linear"),
    "convolutions": ("conv",),
}
NAMED = 3  # operations of no kind that are named, those that take longest


class Bench:
    """Times pieces of work on a device; `rows` has the figures of each."""

    def __init__(self, device: torch.device, repeats: int):
        self.device = device
        self.repeats = repeats
        self.rows: list[dict] = []
        self._made: dict[str, dict[Callable[[], object], int]] = {}  # MATRICES as products, by precision

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

        MFU is the median of the repeats' own, each by the device's rate of matrix products beside it, so that
        it follows a machine whose speed drifts. child: the work is another process's, whose memory is known
        on a CPU only.
        """
        self._release_memory()
        for _ in range(warmup):
            work()
        self._reset_peak_memory()
        times, rates = [], []
        for _ in range(self.repeats):
            if flops_per_image:
                time_taken, rate = self.beside_products(work, precision)
                rates.append(rate)
            else:
                time_taken = self.seconds(work)
            times.append(time_taken)
        seconds = statistics.median(times)
        row = {
            "part": part,
            "precision": precision,
            "images": images,
            "seconds": seconds,
            "images_per_second": images and images / seconds,
            "peak_memory_gb": self._peak_memory(child),
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
            row["shares"] = None if child else self._shares(work)
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

    def beside_products(self, work: Callable[[], object], precision: str) -> tuple[float, float]:
        """How long the work takes, in seconds, and the rate of matrix products beside it, in FLOP/s.

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
            seconds = self.seconds(work) - within.seconds
        for _ in range(AROUND * len(times)):
            timed_product()
        return seconds, max(flops[product] / statistics.fmean(taken) for product, taken in times.items())

    def _products(self, precision: str) -> dict[Callable[[], object], int]:
        """MATRICES as products to run, with the FLOPs of each."""
        if precision not in self._made:
            self._made[precision] = made = {}
            for m, k, n in MATRICES[self.device.type]:
                options = {"device": self.device, "dtype": getattr(torch, precision)}
                product = partial(torch.matmul, torch.randn(m, k, **options), torch.randn(k, n, **options))
                product()  # the first takes longer
                made[product] = 2 * m * k * n
        return self._made[precision]

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

    def _peak_memory(self, child: bool) -> float | None:
        """GB: what was allocated on the device, or on a CPU the process's resident set."""
        if self.device.type == "cuda":
            return None if child else torch.cuda.max_memory_allocated() / 1e9
        if child:
            return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024 / 1e9

    def _shares(self, work: Callable[[], object]) -> dict[str, float]:
        """The shares of the time that KINDS, the longest other operations, the rest and gaps take.

        In a gap the GPU has nothing to do; on a CPU, no operation is under way.
        """
        on_gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
        with profile(activities=activities) as profiler:
            profiled = self.seconds(work) * 1e6  # microseconds, as all below
        operations = Counter()
        for event in profiler.key_averages():
            if event.device_type == DeviceType.CPU:
                name = event.key.removeprefix("aten::").strip("_")
                operations[name] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if on_gpu:
            # Kernels take as long as without the profiler; what is between them doesn't.
            whole, busy = self.seconds(work) * 1e6, _busy(profiler)
        else:
            whole, busy = profiled, sum(operations.values())
        times = dict.fromkeys(KINDS, 0.0)
        for name in list(operations):
            kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), None)
            if kind:
                times[kind] += operations.pop(name)
        times |= dict(operations.most_common(NAMED))
        times["rest"] = max(0.0, busy - sum(times.values()))
        times["gaps"] = max(0.0, whole - busy)
        return {name: value / whole for name, value in times.items() if value > 0}


def _busy(profiler: profile) -> float:
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


def count_flops(work: Callable[[], object]) -> int:
    """FLOPs of the matrix products and convolutions in `work`, a multiplication and an addition being two.

    Attention is done as the products that it is made of: fused kernels repeat some of them, and some aren't
    counted.
    """
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = AllAsOne()
    with counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


class AllAsOne(nullcontext):
    """Stands for torch's tracker of modules, whose hooks don't bear torch.autograd.grad."""

    parents = frozenset({"Global"})


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


class KeptForGradient(saved_tensors_hooks):
    """Inside, `peak` becomes the most bytes that autograd keeps at one time, each storage counted once.

    but: tensors that are there anyhow, weights say, as they are under the fake mode where there is one.
    """

    def __init__(self, but: Iterable[Tensor]):
        self.now = self.peak = 0
        self._but = list(but)  # held, or another tensor could come to lie where one of them was
        self._held = Counter(tensor.untyped_storage()._cdata for tensor in self._but)
        super().__init__(partial(_Kept, self), lambda kept: kept.tensor)

    def keep(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, unless it is being kept."""
        self._held[storage._cdata] += 1
        if self._held[storage._cdata] == 1:
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def let_go(self, storage: torch.UntypedStorage) -> None:
        """Take back one `keep`."""
        self._held[storage._cdata] -= 1
        if self._held[storage._cdata] == 0:
            self.now -= storage.nbytes()


class _Kept:
    """A tensor that autograd keeps for as long as this object lives."""

    def __init__(self, counter: KeptForGradient, tensor: Tensor):
        self.counter = counter
        self.tensor = tensor.detach()  # or a tensor that its own graph keeps would keep its graph
        counter.keep(tensor.untyped_storage())

    def __del__(self):
        self.counter.let_go(self.tensor.untyped_storage())


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
