"""Checkpoints: all that a run needs to go on exactly where it stopped; each is whole, finite and checked."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from errors import UserError
from files import remove_leftovers, remove_whole, write_whole

State = dict[str, dict[str, Tensor]]  # tensors by their names, by the names of their files


class Checkpoint(NamedTuple):
    """One that has been read: its folder, what was noted with it, and its tensors."""

    folder: Path
    record: dict
    state: State


class Checkpoints:
    """The checkpoints of a run, folders step_00000100 and so on, of which the newest `keep` stay.

    Each has a safetensors file for every part of the state, and run.json, which has the SHA-256 of each. They
    are written by a thread, beside training.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future | None = None

    def read_newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest that is undamaged. Those that are damaged are named to `say` and passed over.

        Raises UserError where all are.
        """
        folders = self._folders()
        for folder in reversed(folders):
            try:
                return _read(folder)
            except UserError as error:
                say(f"{error}; passed over")
        if folders:
            raise UserError(
                f"{self.folder}: none of its {len(folders)} checkpoints can be read; start over with "
                "--restart"
            )
        return None

    def write(self, step: int, state: State, record: dict, then: Callable[[], None]) -> None:
        """Write a checkpoint of a state on the CPU that nobody changes any more; returns before it is there.

        When it is, `then` is called and older ones go. Raises UserError where the one before failed, there is
        no room, or a value is not finite.
        """
        self.wait()
        self.require_room(size_of(state), f"the checkpoint of step {step}")
        self._writing = self._thread.submit(self._write, step, state, record, then)

    def wait(self) -> None:
        """Return when nothing is being written; raises what went wrong."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def raise_if_failed(self) -> None:
        """Raise what went wrong in writing, if that has ended."""
        if self._writing and self._writing.done():
            self.wait()

    def remove_old(self) -> None:
        """Remove all but the newest `keep`."""
        for old in self._folders()[: -self.keep]:
            remove_whole(old)

    def require_room(self, size: int, what: str) -> None:
        """Raise UserError where the disk has no room for so many bytes."""
        existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if free < size:
            raise UserError(
                f"{self.folder}: {what} takes {size / 1e9:.2g} GB, and the disk has {free / 1e9:.2g} GB "
                "left; make room and start the same command again"
            )

    def newest_name(self) -> str:
        """How a person is told what is kept."""
        folders = self._folders()
        return f"the last good one is {folders[-1].name}" if folders else "there is none yet"

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step_*"))

    def _write(self, step: int, state: State, record: dict, then: Callable[[], None]) -> None:
        require_finite(state, self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder, alone=True)
        done = self.folder / f"step_{step:08d}"
        if done.exists():  # a damaged one, from before
            remove_whole(done)
        try:
            with write_whole(done) as part:
                part.mkdir()
                checksums = {}
                for name, tensors in state.items():
                    file = part / f"{name}.safetensors"
                    save_file(tensors, file)
                    checksums[file.name] = _checksum(file)
                record = {"step": step, **record, "sha256": checksums}
                (part / "run.json").write_text(json.dumps(record, indent=1) + "\n")
        except (OSError, SafetensorError) as error:  # the latter is what a full disk gives
            raise UserError(
                f"{done}: not written ({error}); {self.newest_name()}. Make room and start the same command "
                "again"
            ) from error
        then()
        self.remove_old()


def _read(folder: Path) -> Checkpoint:
    """Read a checkpoint, every file against its checksum. Raises UserError naming what is wrong."""
    try:
        record = json.loads((folder / "run.json").read_text())
        if record.keys() == {"step", "data_key"}:
            raise UserError(f"{folder}: written by an earlier version of these scripts")
        step, checksums = record["step"], record["sha256"]
        if f"step_{step:08d}" != folder.name:
            raise ValueError(f"it is of step {step}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'run.json'}: not readable ({type(error).__name__}: {error})") from error
    state = {}
    for name, checksum in checksums.items():
        file = folder / name
        try:
            whole = _checksum(file) == checksum
        except OSError as error:
            raise UserError(f"{file}: not readable ({error.strerror})") from error
        if not whole:
            raise UserError(f"{file}: damaged, it is not what was written")
        state[file.stem] = load_file(file)
    return Checkpoint(folder, record, state)


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# --- the state of networks and optimizers, on one process or in shards over several -------------------------


def state_of(
    networks: dict[str, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    others: dict[str, nn.Module],
    keep: bool,
) -> State:
    """The state of networks, of the optimizer of each, and of other modules, copied to the CPU.

    Without `keep` this process only takes part in making it.
    """
    state = {}
    for (name, network), optimizer in zip(networks.items(), optimizers):
        state[name] = on_cpu(network.state_dict().items(), keep)
        state[f"{name}_optimizer"] = on_cpu(optimizer_tensors(optimizer, network), keep)
    for name, module in others.items():
        state[name] = on_cpu(module.state_dict().items(), keep)
    return state


@torch.no_grad()
def fill_all(
    networks: dict[str, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    others: dict[str, nn.Module],
    state: State,
) -> None:
    """Give all of them back the whole state."""
    for (name, network), optimizer in zip(networks.items(), optimizers):
        fill_module(network, state[name])
        fill_optimizer(optimizer, network, state[f"{name}_optimizer"])
    for name, module in others.items():
        fill_module(module, state[name])


def whole(tensor: Tensor) -> Tensor:
    """A tensor itself; of one in shards, all of it, which every process has to take part in."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be in shards, with another layout or on another device."""
    if isinstance(target, DTensor):
        value = value.to(target.device)
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What an optimizer keeps of each of the network's parameters, as "<parameter>/<what>"."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    for parameter, kept in optimizer.state.items():
        for what, value in kept.items():
            yield f"{names[parameter]}/{what}", value


def fill_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give an optimizer back the tensors of `optimizer_tensors`."""
    parameters = dict(network.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, what = key.rpartition("/")
        parameter = parameters[name]
        if value.shape == parameter.shape:
            kept = torch.zeros_like(parameter)
            fill(kept, value)
        else:  # the count of its steps
            kept = value.to(parameter.device)
        optimizer.state[parameter][what] = kept


def on_cpu(tensors: Iterable[tuple[str, Tensor]], keep: bool) -> dict[str, Tensor]:
    """Copies of whole tensors on the CPU; without `keep`, this process only takes part in making them."""
    copies = {}
    for name, tensor in tensors:
        tensor = whole(tensor.detach())
        if keep:
            copies[name] = tensor.to("cpu", copy=True).contiguous()
    return copies


def fill_module(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a module back its state dict's tensors."""
    for name, target in module.state_dict().items():
        fill(target, tensors[name])


def size_of(state: State) -> int:
    """Bytes."""
    return sum(tensor.nbytes for tensors in state.values() for tensor in tensors.values())


def require_finite(state: State, folder: Path) -> None:
    """Raise UserError where a value in the state is not finite."""
    for part, tensors in state.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise UserError(
                    f"{folder}: {part} {name} is not finite, so that no checkpoint is written; start the "
                    "same command again, which goes on from the last good one, with a lower "
                    "training.learning_rate"
                )
