"""Train MaskGIT on tokens: accelerate launch train_maskgit.py --config configs/maskgit_mae_64.yaml"""

import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.utils import save_image

from data.frames import Draw, Frame, content_fingerprint, leave_signals_to_parent
from errors import command
from models.elastic import ElasticTiTok
from models.maskgit import MaskGIT, masked_token_loss
from models.sampling import check_order
from models.storage import build_generator, fingerprint, load_tokenizer
from models.tokenizer import Tokenizer
from training.config import GeneratorConfig, parse_arguments
from training.exported import codes_fingerprint, exported_tokens
from training.finished import load_guide
from training.optimizer import build_optimizer
from training.parallel import accumulate, shard
from training.run import Run
from training.tokens import (
    TokenBatch,
    TokenDataset,
    cached_tokens,
    condition_array,
    condition_values,
    labels_fingerprint,
    name_skipped,
    token_caches,
)

SAMPLE_IMAGES = 16  # in a grid under samples/


@command
def main() -> None:
    config, arguments = parse_arguments(GeneratorConfig, __doc__)
    run = Run(config)
    with run.open(arguments.restart):
        train(run)


def train(run: Run) -> None:
    """All of a run, from its data to its last checkpoint."""
    config = run.config
    model, data = config.model, config.data

    # Tokens of the frames
    tokenizer = load_tokenizer(config.tokenizer)
    tokenizer_sha256 = fingerprint(config.tokenizer)
    check_order(config.sampling.order, tokenizer, config.tokenizer)
    (train_tokens, train_frames), (val_tokens, val_frames), content = learned_tokens(run, tokenizer_sha256)
    conditions = condition_values(train_frames, model.conditions)
    train_conditions, val_conditions = (
        condition_array(frames, conditions) for frames in (train_frames, val_frames)
    )
    train_set = TokenDataset(
        train_tokens,
        train_conditions,
        model.mask_schedule,
        config.run.seed,
        data.flip,
        model.condition_dropout,
        absent=tokenizer.codebook_size if isinstance(tokenizer, ElasticTiTok) else None,
    )
    val_set = TokenDataset(
        val_tokens, val_conditions, model.mask_schedule, config.run.seed, flip=False, condition_dropout=0.0
    )
    data_key = f"{tokenizer_sha256} {content}"
    if conditions:  # then it learns the labels, too
        data_key += f" {labels_fingerprint(train_frames, model.conditions)}"
    loader = DataLoader(
        train_set,
        batch_sampler=run.plan(len(train_set), data_key, train_frames),
        num_workers=run.loader_workers,
        pin_memory=run.device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),  # or it would draw from the run's random numbers
    )

    networks = Networks(run, tokenizer, conditions, tokenizer_sha256)
    guide = None
    if config.guide:
        guide = load_guide(config.guide, networks.generator, tokenizer_sha256).to(run.device)
    run.fit(partial(try_step, run, networks, train_set))
    tokenizer.to(run.device)
    batches = iter(loader)
    for step in run.steps():
        learning_rate = run.set_learning_rate(step)
        train_step(run, networks, run.take(batches), step)
        validate, checkpoint = run.end_step(step, learning_rate)
        if validate:
            run.log(step, evaluate(run, networks.ema.module, val_set))
            write_samples(run, networks.ema.module, tokenizer, val_set, step, guide)
        if checkpoint:
            run.save(step)
    run.finish()


def learned_tokens(
    run: Run, tokenizer_sha256: str
) -> tuple[tuple[np.ndarray, list[Frame]], tuple[np.ndarray, list[Frame]], str]:
    """Tokens and frames of train and of val, and a fingerprint of the training's.

    They are a dataset's where the config names one, otherwise computed here if no run did before.
    """
    config, data = run.config, run.config.data
    if data.tokens_from:
        splits = exported_tokens(config, tokenizer_sha256)
        if run.is_main:
            name_skipped([name for *_, broken in splits.values() for name in broken])
        train, val = ((codes, frames) for codes, frames, _ in splits.values())
        return train, val, codes_fingerprint(*train)
    caches = token_caches(config)
    # Refuses a bad config before the hours of tokens.
    condition_values(caches["train"].frames, config.model.conditions)
    train, val = (
        cached_tokens(
            run.accelerator, cache, config.training.device_batch_size, run.loader_workers, data.strict
        )
        for cache in caches.values()
    )
    return train, val, content_fingerprint(Path(data.frames) / "train", train[1], times=False)


class Networks:
    """The generator of a run, as its config says and handed over to it; `wrapped` is to be called.

    It starts the same whether or not tokens had to be computed before. With `training.shard` each process
    has a part of it, of its moments and of its EMA, and those of the others for as long as it takes.
    """

    def __init__(
        self, run: Run, tokenizer: Tokenizer, conditions: dict[str, list[str]], tokenizer_sha256: str = ""
    ):
        model, training = run.config.model, run.config.training
        set_seed(run.config.run.seed)
        own = {"num_tokens": tokenizer.num_tokens, "codebook_size": tokenizer.codebook_size}
        own |= {"grid": tokenizer.grid, "conditions": conditions}
        self.generator = build_generator(model.architecture() | own)
        self.ema = ModelEmaV3(self.generator, decay=training.ema_decay, use_warmup=True)
        if training.shard:
            shard(run.device, self.generator, self.ema.module)
        optimizer = build_optimizer(self.generator, training)
        (self.wrapped,) = run.prepare(
            {"model": self.generator},
            [optimizer],
            {"ema": self.ema.module},
            {"tokenizer_sha256": tokenizer_sha256},
        )


def train_step(run: Run, networks: Networks, micro_batches: list[TokenBatch], step: int) -> None:
    """One update of the generator and of its EMA."""
    model, generator = run.config.model, networks.generator
    parts = [
        TokenBatch(*(field.to(run.device, non_blocking=True) for field in batch)) for batch in micro_batches
    ]
    # Means over all tokens of the step's batch, however it is split.
    weights = [
        torch.where(batch.mask, 1.0, model.unmasked_weight).masked_fill(
            batch.codes == generator.mask_token, 0
        )
        for batch in parts
    ]
    sums = torch.stack([sum(map(torch.sum, weights)), sum(batch.mask.sum() for batch in parts)])
    weight_each, masked_each = run.accelerator.reduce(sums, reduction="mean") / run.accumulation
    for batch, weight in accumulate(list(zip(parts, weights)), networks.wrapped):
        with run.accelerator.autocast():
            masked = batch.codes.masked_fill(batch.mask, generator.mask_token)
            logits = networks.wrapped(masked, batch.conditions)
            loss = masked_token_loss(logits, batch.codes, weight, model.label_smoothing) / weight_each
        (loss / run.accumulation).backward()
        run.add(loss=loss, accuracy=right_tokens(logits, batch) / masked_each)
    (norm,) = run.clip_and_step((generator, run.optimizers[0]))
    run.add(gradient_norm=norm)
    networks.ema.update(generator, step)


def try_step(run: Run, networks: Networks, train_set: TokenDataset) -> None:
    """A step of any tokens, to see whether it fits into memory."""
    items = [train_set[Draw(0, place % len(train_set))] for place in range(run.micro_batch_size)]
    batch = TokenBatch(*map(torch.stack, zip(*items)))
    train_step(run, networks, [batch] * run.accumulation, step=1)


def right_tokens(logits: Tensor, batch: TokenBatch) -> Tensor:
    """How many masked tokens the most likely code of logits (B, K, V) gets right, a scalar."""
    return ((logits.argmax(dim=-1) == batch.codes) & batch.mask).sum().float()


@torch.no_grad()
def evaluate(run: Run, generator: nn.Module, val_set: TokenDataset) -> dict[str, float]:
    """Masked-token loss (nats, no smoothing) and accuracy of the EMA generator over the validation set.

    The masks are the same at every step. Each process takes its share; the sums are exact over all.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=run.device)
    mine = range(run.accelerator.process_index, len(val_set), run.processes)
    for start in range(0, math.ceil(len(val_set) / run.processes), run.micro_batch_size):
        places = mine[start : start + run.micro_batch_size]
        # Where one process has none left the others need its part of the generator all the same.
        items = [val_set[Draw(0, place)] for place in places or [0]]
        batch = TokenBatch(*(torch.stack(field).to(run.device) for field in zip(*items)))
        with run.accelerator.autocast():
            logits = generator(batch.codes.masked_fill(batch.mask, generator.mask_token), batch.conditions)
        if places:
            loss = masked_token_loss(logits, batch.codes, batch.mask)
            sums += torch.stack([loss, right_tokens(logits, batch), batch.mask.sum()])
    loss, right, masked = run.accelerator.reduce(sums).tolist()
    return {"val/loss": loss / masked, "val/accuracy": right / masked}


def write_samples(
    run: Run,
    generator: MaskGIT,
    tokenizer: Tokenizer,
    val_set: TokenDataset,
    step: int,
    guide: MaskGIT | None,
) -> None:
    """Write a grid of images generated with the config's sampling, always from the same noise.

    Every process generates, as each may have but a part of the generator. A conditional generator is told
    what the first validation frames have.
    """
    conditions = val_set.conditions[np.arange(SAMPLE_IMAGES) % len(val_set)]
    codes = generator.generate(
        SAMPLE_IMAGES,
        torch.from_numpy(conditions).to(run.device),
        seed=run.config.run.seed,
        guide=guide,
        **run.config.sampling.model_dump(),
    )
    if run.is_main:
        (run.folder / "samples").mkdir(exist_ok=True)
        save_image(tokenizer.decode(codes), run.folder / "samples" / f"step_{step:08d}.png", nrow=4)


if __name__ == "__main__":
    main()
