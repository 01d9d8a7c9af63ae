"""A run: its folder, processes, trackers, progress, checkpoints, and how it goes on after an interruption."""

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from safetensors.torch import load_model
from safetensors.torch import save_model as save_safetensors
from torch import Tensor, nn
from tqdm import tqdm

from data.frames import DrawSampler, Frame, ImageBatch, to_unit_range
from errors import UserError
from models.storage import save_model
from training.card import write_card
from training.config import save_config
from training.optimizer import lay_out_as_weights
from training.sections import Section
from training.speed import checkpoint_blocks, compile_network, keep_freed_memory

# What may change when a run goes on: the rest of a config decides what its weights mean.
MAY_CHANGE = {"run", "data.workers", "data.strict", "data.frames", "data.tokens", "training", "sampling"}
MUST_STAY = {"run.seed", "training.global_batch_size"}


class Run:
    """Everything about a training run that isn't its networks and losses.

    A script builds its networks, hands them over with `prepare`, and loops over `steps`; in the loop it
    takes micro-batches and goes through them with `accumulate`, reports losses with `add`, and ends each step
    with `end_step`, which logs, and says when to validate and checkpoint.
    """

    def __init__(self, config: Section, restart: bool = False):
        self.config = config
        self.folder = Path(config.run.dir) / config.run.name
        self.accelerator = Accelerator(
            mixed_precision="bf16" if self._has_bf16() else "no",
            log_with=None if config.run.tracker == "none" else config.run.tracker,
            project_dir=self.folder,
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
            ],
        )
        self.device = self.accelerator.device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.is_main = self.accelerator.is_main_process
        if config.training.precision == "bf16" and self.accelerator.mixed_precision == "no":
            self.say(f"precision: {self.device.type} has no fast bf16, this run is in float32")
        self.processes = self.accelerator.num_processes
        self.micro_batch_size = self._micro_batch_size()
        self.loader_workers = min(config.data.workers, os.cpu_count() or 1)
        self.accumulation = config.training.global_batch_size // (self.micro_batch_size * self.processes)

        if restart and self.is_main and self.folder.exists():
            self._remove_folder()
        self.accelerator.wait_for_everyone()
        self.checkpoint = self._newest_checkpoint()
        self.first_step = self._checkpoint_record()["step"] if self.checkpoint else 0
        if self.checkpoint:
            self._check_config_unchanged()
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_config(config, self.folder / "config.yaml.part")
            os.replace(self.folder / "config.yaml.part", self.folder / "config.yaml")
            self._forget_metrics_after(self.first_step)
        self._start_tracker()
        self._stop_asked = self._stop_agreed = self._stopped = False
        self._broken: set[str] = set()
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    # --- what a script hands over before the loop -------------------------------------------------------

    def plan(self, num_examples: int, data_key: str) -> DrawSampler:
        """Fix the number of steps and which of `num_examples` each takes.

        data_key: a fingerprint of the data; a run goes on only with the data it began with.
        """
        training = self.config.training
        self.data_key = data_key
        if self.checkpoint and self._checkpoint_record()["data_key"] != data_key:
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
        return DrawSampler(
            length=num_examples,
            global_batch_size=training.global_batch_size,
            micro_batch_size=self.micro_batch_size,
            steps=range(self.first_step, self.last_step),
            seed=self.config.run.seed,
            process_index=self.accelerator.process_index,
            num_processes=self.processes,
        )

    def prepare(
        self,
        networks: list[nn.Module],
        optimizers: list[torch.optim.Optimizer],
        others: dict[str, nn.Module],
    ) -> list[nn.Module]:
        """Move to the device, wrap for several processes, and load the newest checkpoint where there is one.

        networks: what is trained, in the order of its optimizers. others: modules that are saved and
        restored with them (an EMA, statistics). Returns the networks as to be called in training.
        """
        self.others = others
        for network in networks:
            if self.config.training.gradient_checkpointing:
                checkpoint_blocks(network)
            if self.config.training.compile:
                compile_network(network)
        for module in others.values():
            module.to(self.device)
        prepared = self.accelerator.prepare(*networks, *optimizers)
        self.optimizers = list(prepared[len(networks) :])
        if self.checkpoint:
            self.accelerator.load_state(self.checkpoint)
            for optimizer in self.optimizers:
                lay_out_as_weights(optimizer)
            for name, module in others.items():
                load_model(module, self.checkpoint / f"{name}.safetensors", device=str(self.device))
            done = self.first_step >= self.last_step
            self.say(f"{self.folder}: {'is finished,' if done else 'goes on'} after step {self.first_step}")
        self.say(
            f"{self.folder}: {self.last_step} steps over {self.num_examples:,} examples, batch "
            f"{self.config.training.global_batch_size} = {self.processes} processes × {self.accumulation} "
            f"parts × {self.micro_batch_size}"
        )
        return list(prepared[: len(networks)])

    # --- the loop ---------------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """Count the steps to do from 1, with a progress bar; stops early, checkpointed, when asked to.

        SIGTERM and the first Ctrl-C ask; with several processes the answer waits for the next log.
        """
        self._listen_to_signals()
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
            yield step
            self.bar.update()
            if self._stop_agreed and step < self.last_step:
                self._stopped = True
                break
        self.bar.close()

    def take(self, batches: Iterator) -> list:
        """The micro-batches of this process's part in one step."""
        return [next(batches) for _ in range(self.accumulation)]

    def accumulate(self, micro_batches: list, *networks: nn.Module) -> Iterator:
        """Go through a step's micro-batches; gradients are averaged over processes with the last one only."""
        for micro_batch in micro_batches[:-1]:
            with ExitStack() as stack:
                for network in networks:
                    stack.enter_context(self.accelerator.no_sync(network))
                yield micro_batch
        yield micro_batches[-1]

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

        Linear warm-up from 0 over `warmup_steps`, then constant, or a cosine to 0 at the last step. Groups
        of parameters with a `rate` of their own get that times as much.
        """
        training = self.config.training
        rate = training.learning_rate
        if step <= training.warmup_steps:
            rate *= step / training.warmup_steps
        elif training.schedule == "cosine":
            done = (step - training.warmup_steps) / max(1, self.last_step - training.warmup_steps)
            rate *= 0.5 * (1 + math.cos(math.pi * done))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate", 1.0)
        return rate

    def add(self, **scalars: Tensor) -> None:
        """Note scalars of a micro-batch for the next log; they stay on the device until then."""
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1

    def clip_and_step(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        """One update from the accumulated gradients, clipped to `clip_norm`; returns their norm before."""
        clip_norm = self.config.training.clip_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(network.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return norm

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
        stop = self._stop_asked
        if self.processes > 1:
            stop = log and bool(self.accelerator.reduce(torch.tensor(float(stop), device=self.device)) > 0)
        self._stop_agreed = stop
        if log or stop:
            self._log_averages(step, learning_rate)
        validate = last or step % training.validate_every == 0
        return validate, last or stop or step % training.checkpoint_every == 0

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Append scalars to metrics.jsonl and hand them to the tracker."""
        self.accelerator.log(scalars, step=step)
        if self.is_main:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **scalars}) + "\n")

    def save(self, step: int, model: nn.Module, **provenance: str) -> None:
        """Write a checkpoint of everything, and `model` (the EMA) to model/; older checkpoints go.

        provenance: what else to note with the model's weights beside the step.
        """
        checkpoints = self.folder / "checkpoints"
        part = checkpoints / f".step_{step:08d}.part"
        if self.is_main:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(part)
        if self.is_main:
            for name, module in self.others.items():
                save_safetensors(module, part / f"{name}.safetensors")
            record = {"step": step, "data_key": self.data_key}
            (part / "run.json").write_text(json.dumps(record) + "\n")
        self.accelerator.wait_for_everyone()
        if self.is_main:
            done = checkpoints / f"step_{step:08d}"
            if done.exists():
                shutil.rmtree(done)
            os.replace(part, done)
            for old in sorted(checkpoints.glob("step_*"))[: -self.config.training.keep_checkpoints]:
                shutil.rmtree(old)
            save_model(model, self.folder / "model", step=str(step), **provenance)
            write_card(self.folder)
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """Close the trackers, and name the frames that could not be read.

        A run that was stopped before its last step exits with 143, so that nothing after it takes it for
        finished.
        """
        broken = sorted(set(gather_object(sorted(self._broken))))
        if broken:
            names = ", ".join(broken[:5]) + (", …" if len(broken) > 5 else "")
            self.say(f"{len(broken)} frames could not be used and were skipped: {names}")
        self.accelerator.end_training()
        if self._stopped:
            sys.exit(128 + signal.SIGTERM)

    def say(self, text: str) -> None:
        """Print a line, once for all processes, above the progress bar."""
        if self.is_main:
            tqdm.write(text)

    # --- inside -----------------------------------------------------------------------------------------

    def _has_bf16(self) -> bool:
        wanted = self.config.training.precision == "bf16"
        on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"
        return wanted and on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)

    def _micro_batch_size(self) -> int:
        """The largest size, at most `device_batch_size`, that divides a process's share of the batch."""
        training = self.config.training
        share, rest = divmod(training.global_batch_size, self.processes)
        if rest:
            raise UserError(
                f"training.global_batch_size {training.global_batch_size} is no multiple of the "
                f"{self.processes} processes"
            )
        return max(size for size in range(1, training.device_batch_size + 1) if share % size == 0)

    def _remove_folder(self) -> None:
        inside = sorted(path.name for path in self.folder.iterdir())
        if inside and "config.yaml" not in inside:
            raise UserError(f"{self.folder}: --restart removes runs, and this is none (no config.yaml)")
        self.say(f"--restart: removes {self.folder} ({', '.join(inside)})")
        shutil.rmtree(self.folder)

    def _newest_checkpoint(self) -> Path | None:
        return max((self.folder / "checkpoints").glob("step_*"), default=None)

    def _checkpoint_record(self) -> dict:
        return json.loads((self.checkpoint / "run.json").read_text())

    def _check_config_unchanged(self) -> None:
        # Read as a config: a key that there wasn't yet when the run began had what is its default now.
        began = type(self.config).model_validate(yaml.safe_load((self.folder / "config.yaml").read_text()))
        before = _flatten(began.model_dump(mode="json"))
        now = _flatten(self.config.model_dump(mode="json"))
        for key in sorted(before.keys() | now.keys()):
            parents = {".".join(key.split(".")[:n]) for n in range(1, key.count(".") + 2)}
            if before.get(key) != now.get(key) and (key in MUST_STAY or not parents & MAY_CHANGE):
                raise UserError(
                    f"{self.folder}: began with {key} {before.get(key)}, the config now says {now.get(key)}; "
                    f"change it back, give the run another run.name, or start over with --restart"
                )

    def _forget_metrics_after(self, step: int) -> None:
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except ValueError:  # the line that was being written when the run was cut off
                continue
        path.with_suffix(".part").write_text("".join(kept))
        os.replace(path.with_suffix(".part"), path)

    def _start_tracker(self) -> None:
        init = {}
        if self.config.run.tracker == "wandb":
            import wandb  # takes seconds, and most runs don't use it

            init = {
                "name": self.config.run.name,
                "id": self.config.run.name,
                "resume": "allow",
                "dir": str(self.folder),
                "mode": "offline" if wandb.api.api_key is None else "online",
                "config": self.config.model_dump(mode="json"),
            }
        # TensorBoard takes the name for its folder, wandb for the project.
        name = "driving-tokens" if self.config.run.tracker == "wandb" else "tensorboard"
        self.accelerator.init_trackers(name, init_kwargs={self.config.run.tracker: init})

    def _listen_to_signals(self) -> None:
        def ask(number: int, frame: object) -> None:
            if self._stop_asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop_asked = True
            self.say("stops after this step with a checkpoint; the same command goes on from there")

        signal.signal(signal.SIGTERM, ask)
        signal.signal(signal.SIGINT, ask)

    def _log_averages(self, step: int, learning_rate: float) -> None:
        names = sorted(self._sums)
        means = torch.stack([self._sums[name] / self._counts[name] for name in names]).float()
        means = self.accelerator.reduce(means, reduction="mean").tolist()
        self._sums, self._counts = {}, {}
        now = time.perf_counter()
        rate = self._images_since / (now - self._since)
        self._since, self._images_since = now, 0
        scalars = {f"train/{name}": value for name, value in zip(names, means)}
        bad = [name for name, value in scalars.items() if not math.isfinite(value)]
        if bad:
            kept = self._newest_checkpoint()
            raise UserError(
                f"{self.folder}: {bad[0]} is not finite at step {step}; stopped before it spoils a "
                f"checkpoint ({f'the last good one is {kept.name}' if kept else 'there is none yet'}). Lower "
                f"training.learning_rate or training.clip_norm and start the same command again"
            )
        speed = {"train/learning_rate": learning_rate, "train/images_per_second": rate}
        self.log(step, {**scalars, **speed, "train/epoch": step / self.steps_per_epoch})
        self.bar.set_postfix_str(f"loss {scalars['train/loss']:.4f}, {rate:.1f} images/s")


def _flatten(values: dict, above: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat
