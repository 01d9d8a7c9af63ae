"""A run: its folder, processes, trackers and progress, and how it goes on after an interruption."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from data.frames import DrawSampler, Frame, ImageBatch, to_unit_range
from errors import UserError
from models.storage import model_is_of, save_weights
from training import checkpoints
from training.averages import Averages
from training.card import write_card
from training.checkpoints import Checkpoint, Checkpoints, State
from training.folder import check_unchanged, hold_folder, open_folder, remove_run, start_tracker
from training.memory import device_batch_sizes, find_fitting
from training.optimizer import learning_rate_at
from training.parallel import over_processes
from training.precision import has_bf16, set_precision
from training.sections import Section
from training.signals import STOPPED, StopSignals
from training.speed import (
    checkpoint_blocks,
    compile_network,
    keep_freed_memory,
    make_deterministic,
    may_compile,
)


class Run:
    """Everything about a training run that isn't its networks and losses.

    A script opens its folder, builds its networks, hands them over with `prepare`, and loops over `steps`; in
    the loop it takes micro-batches, reports losses with `add`, and ends each step with `end_step`, which
    logs, and says when to validate and checkpoint.
    """

    def __init__(self, config: Section):
        self.config = config
        self.folder = Path(config.run.dir) / config.run.name
        self.accelerator = Accelerator(
            mixed_precision="bf16" if config.training.precision == "bf16" and has_bf16() else "no",
            log_with=None if config.run.tracker == "none" else config.run.tracker,
            project_dir=self.folder,
        )
        self.device = self.accelerator.device
        if self.device.type == "cpu":
            keep_freed_memory()
        set_precision(config.training.precision)
        make_deterministic(config.run.deterministic)
        self.is_main = self.accelerator.is_main_process
        if config.training.precision == "bf16" and self.accelerator.mixed_precision == "no":
            self.say(f"precision: {self.device.type} has no fast bf16, this run is in float32")
        compiled = config.training.compile
        self.compile = may_compile(self.device) if compiled is None else compiled
        self.processes = self.accelerator.num_processes
        self.batch_sizes = device_batch_sizes(config.training, self.processes, self.device)
        self.micro_batch_size = self.batch_sizes[0]
        self.loader_workers = min(config.data.workers, os.cpu_count() or 1)
        self.accumulation = config.training.global_batch_size // (self.micro_batch_size * self.processes)

        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.training.keep_checkpoints)
        self.checkpoint: Checkpoint | None = None  # to go on from
        self.first_step = 0
        self._stop = StopSignals(self.say)
        self._stop_agreed = self._stopped = False
        self._broken: set[str] = set()
        self._averages = Averages(self.device)
        self.add = self._averages.add

    @contextmanager
    def open(self, restart: bool = False) -> Iterator[None]:
        """Inside, the run's folder is nobody else's; it goes on from its newest checkpoint.

        restart: it starts over, and what is there goes. Raises UserError where another process is at it, or
        it can't go on with this config.
        """
        with hold_folder(self.folder) if self.is_main else nullcontext():
            if self.is_main and restart and self.folder.exists():
                remove_run(self.folder, self.say)
            self.accelerator.wait_for_everyone()
            self.checkpoint = self.checkpoints.read_newest(self.say)
            if self.checkpoint:
                self.first_step = self.checkpoint.record["step"]
                self._broken = set(self.checkpoint.record["broken"])
                check_unchanged(self.folder, self.config, self.say)
            elif (self.folder / "model").exists():
                raise UserError(
                    f"{self.folder}: holds a model and no checkpoint to go on from; give the run another "
                    "run.name, or start over with --restart"
                )
            try:
                yield
            except torch.OutOfMemoryError as error:
                smaller = next((s for s in self.batch_sizes if s < self.micro_batch_size), 1)
                raise UserError(
                    f"{self.folder}: {self.micro_batch_size} images at once are too many for the memory of "
                    f"{self.device} ({self.checkpoints.newest_name()}); start the same command again with "
                    f"--set training.device_batch_size={smaller}"
                ) from error
            finally:
                self.checkpoints.wait()

    # --- what a script hands over before the loop -------------------------------------------------------

    def plan(self, num_examples: int, data_key: str, frames: list[Frame] = ()) -> DrawSampler:
        """Fix the number of steps and which of `num_examples` each takes.

        data_key: a fingerprint of the data; a run goes on only with the data it began with. frames: the
        examples', to be named where a step goes wrong.
        """
        training = self.config.training
        self.data_key, self._frames = data_key, frames
        if self.checkpoint and self.checkpoint.record["data_key"] != data_key:
            raise UserError(
                f"{self.folder}: its training frames or its tokenizer have changed since it began; bring "
                f"them back, or start over with --restart"
            )
        self.num_examples = num_examples
        self.steps_per_epoch = num_examples / training.global_batch_size
        ends = []
        if training.epochs is not None:
            ends.append(max(1, round(training.epochs * self.steps_per_epoch)))
        if training.max_steps is not None:
            ends.append(training.max_steps)
        self.last_step = min(ends)
        if training.warmup_steps >= self.last_step:
            self.say(
                f"training.warmup_steps {training.warmup_steps:,}: the run ends with step "
                f"{self.last_step:,}, before its learning rate is reached"
            )
        self._sampler = DrawSampler(
            length=num_examples,
            global_batch_size=training.global_batch_size,
            micro_batch_size=self.micro_batch_size,
            steps=range(self.first_step, self.last_step),
            seed=self.config.run.seed,
            process_index=self.accelerator.process_index,
            num_processes=self.processes,
        )
        return self._sampler

    def prepare(
        self,
        networks: dict[str, nn.Module],
        optimizers: list[torch.optim.Optimizer],
        others: dict[str, nn.Module],
        provenance: Mapping[str, str] = {},
    ) -> list[nn.Module]:
        """Move to the device, wrap for several processes, and take the newest checkpoint's state.

        networks: what is trained, in the order of its optimizers, by the names of their files. others:
        modules that are saved and restored with them, among them `ema`, of which model/ is made. provenance:
        what to note with the model's weights beside the step. Returns the networks as to be called in
        training.
        """
        self.networks, self.optimizers = networks, optimizers
        self.others, self.provenance = others, provenance
        for network in networks.values():
            if self.compile:
                compile_network(network)
            if self.config.training.gradient_checkpointing:
                checkpoint_blocks(network)
        for module in (*networks.values(), *others.values()):
            module.to(self.device)
        wrapped = [over_processes(network, self.device) for network in networks.values()]
        if self.is_main:
            open_folder(self.folder, self.config, self.first_step)
            self.checkpoints.remove_old()
        start_tracker(self.accelerator, self.folder, self.config)
        if self.checkpoint:
            self.restore(self.checkpoint.state)
            if self.is_main:
                # It may have been cut off between its checkpoint and its model, or between that and the card.
                if not model_is_of(self.folder / "model", str(self.first_step)):
                    self._save_model(self.first_step, self.checkpoint.state["ema"])
                write_card(self.folder)
            done = self.first_step >= self.last_step
            self.say(f"{self.folder}: {'is finished,' if done else 'goes on'} after step {self.first_step}")
            self.checkpoint = self.checkpoint._replace(state={})
        else:
            size = sum(tensor.nbytes for module in others.values() for tensor in module.state_dict().values())
            for network in networks.values():  # with Adam's two moments
                size += 3 * sum(parameter.nbytes for parameter in network.parameters())
            keep = self.config.training.keep_checkpoints + 1
            self.checkpoints.require_room(keep * size, f"training, with {keep} checkpoints at a time,")
        return wrapped

    def fit(self, attempt: Callable[[], None]) -> None:
        """On a GPU, see before the first step whether one fits into its memory; "auto" takes what does.

        attempt: a step of any images with all its losses; what it changes is put back. Raises UserError,
        naming the batch that fits, where the config's doesn't. On a CPU nothing is tried.
        """
        if self.device.type != "cuda":
            return
        state = self.state(keep=True)

        def attempt_at_once(size: int) -> None:
            self._take_at_once(size)
            attempt()

        auto = self.config.training.device_batch_size == "auto"
        find_fitting(self.batch_sizes, attempt_at_once, self.device, auto)
        self.restore(state)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        torch.cuda.empty_cache()

    # --- the loop ---------------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """Count the steps to do from 1, with a progress bar; stops early, checkpointed, when asked to.

        See training.signals for who asks; with several processes the answer waits for the next log. What a
        step draws at random, dropout say, follows from the seed, the step and the process.
        """
        self.say(
            f"{self.folder}: {self.last_step} steps over {self.num_examples:,} examples, batch "
            f"{self.config.training.global_batch_size} = {self.processes} processes × {self.accumulation} "
            f"parts × {self.micro_batch_size}"
        )
        self._stop.listen()
        self.bar = tqdm(
            total=self.last_step,
            initial=self.first_step,
            desc=self.config.run.name,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            disable=not self.is_main,
        )
        self._since, self._images_since = time.perf_counter(), 0
        for step in range(self.first_step + 1, self.last_step + 1):
            draws = [self.config.run.seed, step, self.accelerator.process_index]
            torch.manual_seed(int(np.random.SeedSequence(draws).generate_state(1, np.uint64)[0]))
            yield step
            self.bar.update()
            if self._stop_agreed and step < self.last_step:
                self._stopped = True
                break
        self.bar.close()

    def take(self, batches: Iterator) -> list:
        """The micro-batches of this process's part in one step."""
        return [next(batches) for _ in range(self.accumulation)]

    def images_of(self, batch: ImageBatch, frames: list[Frame], split: str) -> Tensor:
        """The batch's images as float32 in [0, 1] on the device; broken frames are noted, or refused."""
        for index, reason in batch.broken.items():
            path = f"{self.config.data.frames}/{split}/{frames[index].file_name}"
            if self.config.data.strict:
                raise UserError(f"{path}: {reason}")
            if path not in self._broken:
                self._broken.add(path)
                print(f"{path}: {reason}, skipped", file=sys.stderr)
        return to_unit_range(batch.images, self.device)

    def set_learning_rate(self, step: int) -> float:
        """Set every optimizer's rate for a step counted from 1, and return it.

        Groups of parameters with a `rate` of their own get that times as much.
        """
        rate = learning_rate_at(step, self.last_step, self.config.training)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate", 1.0)
        return rate

    def clip_and_step(self, *updates: tuple[nn.Module, torch.optim.Optimizer]) -> list[Tensor]:
        """Update networks from their accumulated gradients, each clipped to `clip_norm`; returns their norms.

        Where one of those is not finite, none is changed.
        """
        clip_norm = self.config.training.clip_norm or math.inf
        norms = [
            checkpoints.whole(nn.utils.clip_grad_norm_(network.parameters(), clip_norm))
            for network, _ in updates
        ]
        not_finite = 1.0 - torch.stack(norms).isfinite().all().float()
        self._averages.add_step(not_finite)
        for _, optimizer in updates:
            # as torch's GradScaler tells the fused optimizer, on the device, that there is nothing to learn
            optimizer.found_inf = not_finite
            optimizer.step()
            optimizer.zero_grad()
        return norms

    def means_over_processes(self, *scalars: list[Tensor]) -> list[Tensor]:
        """The mean of each list of scalars, and over all processes."""
        means = torch.stack([torch.stack(values).mean() for values in scalars])
        return list(self.accelerator.reduce(means, reduction="mean"))

    def end_step(self, step: int, learning_rate: float) -> tuple[bool, bool]:
        """Log where it is due. Returns whether the step is one to validate, and one to checkpoint at."""
        training = self.config.training
        last = step == self.last_step
        log = last or step % training.log_every == 0
        self._images_since += training.global_batch_size
        stop = self._stop.asked()
        if self.processes > 1:
            stop = log and bool(self.accelerator.reduce(torch.tensor(float(stop), device=self.device)) > 0)
        self._stop_agreed = stop
        if log:
            self._log_averages(step, learning_rate)
        self.checkpoints.raise_if_failed()
        validate = last or step % training.validate_every == 0
        return validate, last or stop or step % training.checkpoint_every == 0

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Append scalars to metrics.jsonl and hand them to the tracker."""
        self.accelerator.log(scalars, step=step)
        if self.is_main:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **scalars}) + "\n")

    def state(self, keep: bool) -> State:
        """All that training changes, on the CPU; without `keep`, this process only takes part in it."""
        state = checkpoints.state_of(self.networks, self.optimizers, self.others, keep)
        state["log"] = checkpoints.on_cpu(self._averages.state(self.accelerator).items(), keep)
        return state

    def restore(self, state: State) -> None:
        """Take a whole state, on any number of processes."""
        checkpoints.fill_all(self.networks, self.optimizers, self.others, state)
        self._averages.restore(state["log"], self.accelerator)

    def save(self, step: int) -> None:
        """Write a checkpoint of everything, and the EMA to model/, beside training; older checkpoints go."""
        state = self.state(keep=self.is_main)
        if self.is_main:
            record = {"data_key": self.data_key, "broken": sorted(self._broken)}
            self.checkpoints.write(step, state, record, lambda: self._save_model(step, state["ema"]))

    def finish(self) -> None:
        """Close the trackers, and name the frames that could not be read.

        A run that was stopped before its last step exits with 143, so that nothing after it takes it for
        finished.
        """
        self.checkpoints.wait()
        broken = sorted(set(gather_object(sorted(self._broken))))
        if broken:
            names = ", ".join(broken[:5]) + (", …" if len(broken) > 5 else "")
            self.say(f"{len(broken)} frames could not be used and were skipped: {names}")
        self.accelerator.end_training()
        if self._stopped:
            sys.exit(STOPPED)

    def say(self, text: str) -> None:
        """Print a line, once for all processes, above the progress bar."""
        if self.is_main:
            tqdm.write(text)

    # --- inside -----------------------------------------------------------------------------------------

    def _take_at_once(self, size: int) -> None:
        """Split a process's share of the batch into parts of that size."""
        self.micro_batch_size = self._sampler.micro_batch_size = size
        self.accumulation = self.config.training.global_batch_size // (size * self.processes)

    def _save_model(self, step: int, weights: dict[str, Tensor]) -> None:
        config = self.others["ema"].config
        save_weights(config, weights, self.folder / "model", step=str(step), **self.provenance)
        write_card(self.folder)

    def _log_averages(self, step: int, learning_rate: float) -> None:
        means, skipped, in_a_row = self._averages.take(self.accelerator)
        now = time.perf_counter()
        rate = self._images_since / (now - self._since)
        self._since, self._images_since = now, 0
        scalars = {f"train/{name}": value for name, value in means.items()}
        if skipped:
            scalars["train/skipped_steps"] = skipped
            self.say(f"step {step}: {skipped} steps skipped since the last log, not finite")
        if in_a_row >= self.config.training.patience:
            frames = [self._frames[index].file_name for index in self._sampler.of_step(step - 1)[:8]]
            raise UserError(
                f"{self.folder}: losses or gradients were not finite in {in_a_row} steps in a row, up to "
                f"step {step}, stopped ({self.checkpoints.newest_name()}). Lower training.learning_rate or "
                f"training.clip_norm and start the same command again"
                + (f"; the step's frames: {', '.join(frames)}, …" if frames else "")
            )
        speed = {"train/learning_rate": learning_rate, "train/images_per_second": rate}
        self.log(step, {**scalars, **speed, "train/epoch": step / self.steps_per_epoch})
        loss = scalars.get("train/loss", math.nan)
        self.bar.set_postfix_str(f"loss {loss:.4f}, {rate:.1f} images/s")
