"""How many images a device takes at once."""

import gc
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch

from errors import UserError
from training.sections import TrainingSection

CPU_BATCH_SIZE = 32  # "auto" on a CPU
SPARE = 0.05  # of a GPU's memory, beside what a step takes


def device_batch_sizes(training: TrainingSection, processes: int, device: torch.device) -> list[int]:
    """What a device may take at once, the largest first: divisors of a process's share of the batch.

    Raises UserError where the batch can't be shared evenly.
    """
    share, rest = divmod(training.global_batch_size, processes)
    if rest:
        raise UserError(
            f"training.global_batch_size {training.global_batch_size} is no multiple of the "
            f"{processes} processes"
        )
    most = training.device_batch_size
    if most == "auto":
        most = share if device.type == "cuda" else CPU_BATCH_SIZE
    return [size for size in range(min(most, share), 0, -1) if share % size == 0]


def find_fitting(sizes: list[int], attempt: Callable[[int], None], device: torch.device, auto: bool) -> None:
    """Attempt a step of each batch size, until one fits into the memory of a GPU.

    Raises UserError where none does, or, unless `auto`, the first doesn't.
    """
    spare = int(SPARE * torch.cuda.get_device_properties(device).total_memory)

    def attempt_with_less(size: int) -> None:
        ballast = torch.empty(spare, dtype=torch.uint8, device=device)
        attempt(size)
        del ballast

    # While it is looked for, nothing is compiled: that takes longer, and less memory.
    with torch.compiler.set_stance("force_eager") if auto else nullcontext():
        size = first_that_fits(sizes, attempt_with_less)
    if size is None or (size < sizes[0] and not auto):
        fits = f"{size} does" if size else "not even one image does"
        raise UserError(
            f"training.device_batch_size {sizes[0]}: does not fit into this GPU's memory; {fits}, and more "
            "with training.gradient_checkpointing=true"
        )


def first_that_fits(sizes: Iterable[int], attempt: Callable[[int], None]) -> int | None:
    """The first of the batch sizes at which `attempt` doesn't run out of a GPU's memory, or None.

    Several processes run out of it at the same place, if one does: their devices and shapes are alike.
    """
    for size in sizes:
        try:
            attempt(size)
            return size
        except torch.OutOfMemoryError:
            pass  # and what it had is let go of, here
        gc.collect()
        torch.cuda.empty_cache()
    return None
