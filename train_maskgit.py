"""Train MaskGIT on tokens: accelerate launch train_maskgit.py --config configs/maskgit_mae_64.yaml"""

from pathlib import Path

import torch
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.utils import save_image

from data.frames import Draw, frames_fingerprint, leave_signals_to_parent, list_frames
from errors import command
from models.maskgit import MaskGIT, masked_token_loss
from models.storage import fingerprint, load_tokenizer
from models.tokenizer import Tokenizer
from training.config import GeneratorConfig, parse_arguments
from training.optimizer import build_optimizer
from training.run import Run
from training.tokens import TokenBatch, TokenDataset, cached_tokens

SAMPLE_IMAGES = 16  # in a grid under samples/


@command
def main() -> None:
    config, arguments = parse_arguments(GeneratorConfig, __doc__)
    run = Run(config, arguments.restart)
    model, data = config.model, config.data

    # Tokens of the frames, computed here if no run did before
    tokenizer = load_tokenizer(config.tokenizer)
    tokenizer_sha256 = fingerprint(config.tokenizer)
    train_frames = list_frames(data.frames, "train", **data.train.model_dump())
    val_frames = list_frames(data.frames, "val", **data.val.model_dump())
    train_tokens, val_tokens = (
        cached_tokens(
            run.accelerator,
            config.tokenizer,
            Path(data.frames) / split,
            frames,
            data.tokens,
            config.training.device_batch_size,
            run.loader_workers,
        )
        for split, frames in (("train", train_frames), ("val", val_frames))
    )
    train_set = TokenDataset(train_tokens, model.mask_schedule, config.run.seed, data.flip)
    val_set = TokenDataset(val_tokens, model.mask_schedule, config.run.seed, flip=False)
    loader = DataLoader(
        train_set,
        batch_sampler=run.plan(len(train_set), f"{tokenizer_sha256} {frames_fingerprint(train_frames)}"),
        num_workers=run.loader_workers,
        pin_memory=run.device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),  # or it would draw from the run's random numbers
    )

    # Networks, which start the same whether or not tokens had to be computed
    set_seed(config.run.seed)
    generator = MaskGIT(
        num_tokens=tokenizer.num_tokens,
        codebook_size=tokenizer.codebook_size,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        dropout=model.dropout,
    )
    ema = ModelEmaV3(generator, decay=config.training.ema_decay, use_warmup=True)
    (wrapped,) = run.prepare([generator], [build_optimizer(generator, config.training)], {"ema": ema.module})
    tokenizer.to(run.device)

    batches = iter(loader)
    for step in run.steps():
        learning_rate = run.set_learning_rate(step)
        parts = [TokenBatch(*(field.to(run.device) for field in batch)) for batch in run.take(batches)]
        # The mean over all masked tokens of the step's batch, however it is split.
        masked = sum(batch.mask.sum() for batch in parts).float()
        masked_each = run.accelerator.reduce(masked, reduction="mean") / run.accumulation
        for batch in run.accumulate(parts, wrapped):
            with run.accelerator.autocast():
                logits = wrapped(batch.codes.masked_fill(batch.mask, generator.mask_token))
                loss = masked_token_loss(logits, batch.codes, batch.mask, model.label_smoothing) / masked_each
            run.accelerator.backward(loss / run.accumulation)
            run.add(loss=loss, accuracy=right_tokens(logits, batch) / masked_each)
        run.add(gradient_norm=run.clip_and_step(generator, run.optimizers[0]))
        ema.update(generator, step)

        validate, checkpoint = run.end_step(step, learning_rate)
        if validate:
            run.log(step, evaluate(run, ema.module, val_set))
            if run.is_main:
                write_samples(run, ema.module, tokenizer, step)
        if checkpoint:
            run.save(step, ema.module, tokenizer_sha256=tokenizer_sha256)
    run.finish()


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
    for start in range(0, len(mine), run.micro_batch_size):
        items = [val_set[Draw(0, index)] for index in mine[start : start + run.micro_batch_size]]
        batch = TokenBatch(*(torch.stack(field).to(run.device) for field in zip(*items)))
        with run.accelerator.autocast():
            logits = generator(batch.codes.masked_fill(batch.mask, generator.mask_token))
        loss = masked_token_loss(logits, batch.codes, batch.mask, label_smoothing=0.0)
        sums += torch.stack([loss, right_tokens(logits, batch), batch.mask.sum()])
    loss, right, masked = run.accelerator.reduce(sums).tolist()
    return {"val/loss": loss / masked, "val/accuracy": right / masked}


def write_samples(run: Run, generator: MaskGIT, tokenizer: Tokenizer, step: int) -> None:
    """Write a grid of images generated with the config's sampling, always from the same noise."""
    codes = generator.generate(
        num=SAMPLE_IMAGES, seed=run.config.run.seed, **run.config.sampling.model_dump()
    )
    (run.folder / "samples").mkdir(exist_ok=True)
    save_image(tokenizer.decode(codes), run.folder / "samples" / f"step_{step:08d}.png", nrow=4)


if __name__ == "__main__":
    main()
