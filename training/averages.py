"""What a run sums up between two logs, on its device: losses and norms, and steps that were not finite."""

import torch
from accelerate import Accelerator
from torch import Tensor


class Averages:
    """Scalars of micro-batches, and how many steps had an update that was not finite.

    Nothing is read from the device until `take`, and all of it goes into a checkpoint.
    """

    def __init__(self, device: torch.device):
        self._sums: dict[tuple[str, ...], Tensor] = {}  # (2, n) of n scalars: their sums, and how many
        self._skipped = self._in_a_row = torch.zeros((), device=device)

    def add(self, **scalars: Tensor) -> None:
        """Note scalars of a micro-batch; those that are not finite are left out."""
        values = torch.stack([value.detach().float() for value in scalars.values()])
        finite = values.isfinite()
        added = torch.stack([values.where(finite, 0), finite.float()])
        names = tuple(scalars)
        self._sums[names] = self._sums[names] + added if names in self._sums else added

    def add_step(self, not_finite: Tensor) -> None:
        """Count a step, as skipped where it was not finite, 1 or 0."""
        self._in_a_row = (self._in_a_row + 1) * not_finite
        self._skipped = self._skipped + not_finite

    def take(self, accelerator: Accelerator) -> tuple[dict[str, float], int, int]:
        """The means over steps and processes, by name; the steps skipped since last time, and in a row."""
        groups = list(self._sums)
        sums = accelerator.reduce(torch.cat([self._sums[names] for names in groups], dim=1))
        counted = torch.stack([self._skipped, self._in_a_row])
        sums, counts, (skipped, in_a_row) = *sums.tolist(), counted.tolist()
        self._sums, self._skipped = {}, torch.zeros_like(self._skipped)
        totals: dict[str, tuple[float, float]] = {}
        for name, total, count in zip((name for names in groups for name in names), sums, counts):
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + total, before[1] + count)
        means = {name: total / count for name, (total, count) in sorted(totals.items()) if count}
        return means, int(skipped), int(in_a_row)

    def state(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """What there is of each process, by name, (processes, …)."""
        sums = {"/".join(names): sums for names, sums in self._sums.items()}
        sums["skipped"] = torch.stack([self._skipped, self._in_a_row])
        return {name: accelerator.gather(each[None]) for name, each in sums.items()}

    def restore(self, state: dict[str, Tensor], accelerator: Accelerator) -> None:
        """Take such a state, of as many processes or of others."""
        own = {}
        for name, of_processes in state.items():
            same = len(of_processes) == accelerator.num_processes
            mine = of_processes[accelerator.process_index] if same else of_processes.mean(dim=0)
            own[name] = mine.to(accelerator.device)
        self._skipped, self._in_a_row = own.pop("skipped").unbind()
        self._sums = {tuple(name.split("/")): sums for name, sums in own.items()}
