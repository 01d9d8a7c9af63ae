"""Train a tokenizer on frames: accelerate launch train_tokenizer.py --config configs/mae_64.yaml"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.utils import make_grid, save_image

from data.frames import (
    DrawSampler,
    Frame,
    FrameDataset,
    ImageBatch,
    collate_images,
    content_fingerprint,
    evaluation_loader,
    leave_signals_to_parent,
    list_frames,
)
from errors import UserError, command
from metrics.similarity import psnr
from models.alignment import PatchFeatures, alignment_loss, projector, source_features
from models.discriminator import LeCam, adaptive_weight, hinge_discriminator_loss, hinge_generator_loss
from models.perceptual import LPIPS, ConvNeXtLogits
from models.storage import build_tokenizer
from sizes import height_and_width
from training.analysis import ANALYSIS_FRAMES, CodebookAnalysis, is_log_spaced
from training.config import TokenizerConfig, parse_arguments
from training.corruption import draw_corruption
from training.optimizer import build_optimizer, frozen
from training.parallel import accumulate
from training.run import Run
from training.sections import LossSection
from training.speed import compile_network
from training.starts import build_discriminator, build_source, load_start
from training.watch import warnings

SAMPLE_IMAGES = 8  # in a grid under samples/


@command
def main() -> None:
    config, arguments = parse_arguments(TokenizerConfig, __doc__)
    run = Run(config)
    with run.open(arguments.restart):
        train(run)


def train(run: Run) -> None:
    """All of a run, from its data to its last checkpoint."""
    config = run.config

    train_frames = list_frames(config.data.frames, "train", **config.data.train.model_dump())
    val_frames = list_frames(config.data.frames, "val", **config.data.val.model_dump())
    frames, size = Path(config.data.frames), config.model.image_size
    content = content_fingerprint(frames / "train", train_frames, times=False)
    sampler = run.plan(len(train_frames), content, train_frames)
    resize = config.data.resize
    train_set = FrameDataset(
        frames / "train",
        train_frames,
        size,
        resize,
        config.run.seed,
        config.data.random_crop,
        config.data.flip,
    )
    val_set = FrameDataset(frames / "val", val_frames, size, resize)

    networks = Networks(run)
    run.fit(partial(try_step, run, networks))
    losses = config.losses
    if losses.entropy and losses.entropy_images and run.micro_batch_size % losses.entropy_images:
        raise UserError(
            f"losses.entropy_images {losses.entropy_images}: a device takes {run.micro_batch_size} "
            "images at once, no multiple of it; set training.device_batch_size to one"
        )
    batches = iter(training_loader(run, train_set, sampler))
    for step in run.steps():
        learning_rate = run.set_learning_rate(step)
        train_step(run, networks, run.take(batches), train_frames, step)
        validate, checkpoint = run.end_step(step, learning_rate)
        if validate:
            ema = networks.ema.module
            run.log(step, evaluate(run, ema, val_set, config.losses, networks.perceptual, step))
            if run.is_main:
                most_codes = min(ema.codebook_size, ema.num_tokens * len(val_set))
                for line in warnings(run.folder / "metrics.jsonl", most_codes):
                    run.say(line)
        elif is_log_spaced(step):
            analyse(run, networks.ema.module, val_set, step)
        if checkpoint:
            run.save(step)
    run.finish()


def training_loader(run: Run, train_set: FrameDataset, sampler: DrawSampler) -> DataLoader:
    """The micro-batches that the sampler draws, each an ImageBatch."""
    return DataLoader(
        train_set,
        batch_sampler=sampler,
        num_workers=run.loader_workers,
        collate_fn=collate_images,
        pin_memory=run.device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),  # or it would draw from the run's random numbers
        prefetch_factor=4 if run.loader_workers else None,
    )


class Networks:
    """The networks of a run, as its config says and handed over to it; `wrapped…` are accelerate's."""

    def __init__(self, run: Run):
        config, losses = run.config, run.config.losses
        set_seed(config.run.seed)
        self.tokenizer = build_tokenizer(config.model.architecture())
        pretrained = load_start(run, self.tokenizer, config.model)
        if config.training.freeze_projection:
            self.tokenizer.to_tokens.requires_grad_(False)
        in_encoder = set(self.tokenizer.encoder.parameters())
        self.frozen_at_first = [parameter for parameter in pretrained if parameter in in_encoder]
        self.ema = ModelEmaV3(self.tokenizer, decay=config.training.ema_decay, use_warmup=True)
        own = config.discriminator
        self.discriminator = build_discriminator(own, config.model.image_size)
        self.lecam = LeCam()
        self.perceptual = {
            name: network(weights).to(run.device)
            for name, weight, weights, network in (
                ("lpips", losses.lpips, losses.lpips_weights, LPIPS),
                ("convnext", losses.convnext, losses.convnext_weights, ConvNeXtLogits),
            )
            if weight > 0
        }
        off = [name for name in ("lpips", "convnext", "adversarial", "entropy") if not getattr(losses, name)]
        if off:
            run.say(f"losses: off by config: {', '.join(off)}")
        if run.compile:
            for network in self.perceptual.values():
                compile_network(network)
        trained = {"model": self.tokenizer, "discriminator": self.discriminator}
        optimizers = [
            build_optimizer(self.tokenizer, config.training, pretrained, config.training.pretrained_rate),
            build_optimizer(
                self.discriminator,
                config.training,
                rate=(own.learning_rate or config.training.learning_rate) / config.training.learning_rate,
                betas=own.betas,
            ),
        ]
        self.alignment = config.alignment.weight > 0
        if self.alignment:
            aligned = config.alignment
            self.source = build_source(
                aligned, config.model.image_size, config.model.patch_size, "alignment."
            )
            self.source.to(run.device)
            self.features = PatchFeatures(self.tokenizer, aligned.block)
            self.projector = trained["projector"] = projector(config.model.decoder.width, aligned.width)
            optimizers.append(build_optimizer(self.projector, config.training))
        self.wrapped, self.wrapped_discriminator, *self.wrapped_projector = run.prepare(
            trained, optimizers, {"ema": self.ema.module, "lecam": self.lecam}
        )


def train_step(
    run: Run, networks: Networks, micro_batches: list[ImageBatch], frames: list[Frame], step: int
) -> None:
    """One update of the tokenizer, from `adversarial_start` on of the discriminator, and of the EMA."""
    losses = run.config.losses
    tokenizer, discriminator = networks.tokenizer, networks.discriminator
    wrapped, wrapped_discriminator = networks.wrapped, networks.wrapped_discriminator
    optimizer, discriminator_optimizer = run.optimizers[:2]
    adversarial = losses.adversarial > 0 and step > losses.adversarial_start
    real_logits, fake_logits = [], []
    for batch in accumulate(micro_batches, wrapped, wrapped_discriminator, *networks.wrapped_projector):
        images = run.images_of(batch, frames, "train")
        corruption = draw_corruption(
            tokenizer, run.config.corruption, run.config.run.seed, step, batch.indices
        )
        if corruption:
            corruption = corruption.to(run.device)
        with run.accelerator.autocast():
            output = wrapped(images, losses.entropy > 0, losses.entropy_images, corruption)
            terms = {
                "codebook": output.quantized.codebook_loss,
                "commitment": output.quantized.commitment_loss,
                "entropy": output.quantized.entropy_loss,
            }
            of_tokens = sum(weight_of(name, losses, step) * term for name, term in terms.items())
            if networks.alignment:
                (wrapped_projector,) = networks.wrapped_projector
                terms["alignment"] = alignment_loss(
                    wrapped_projector(networks.features.take()), source_features(networks.source, images)
                )
                of_tokens = of_tokens + run.config.alignment.weight * terms["alignment"]

            # The losses of pixels go back to the pixels only, each on its own: what they weigh may depend on
            # their gradients, and each network's memory is free before the next needs any.
            pixels = output.images.detach().requires_grad_()
            of_pixels = reconstruction_terms(pixels.float(), images, losses, networks.perceptual)
            loss = sum(weight_of(name, losses, step) * term for name, term in of_pixels.items())
            (gradient,) = torch.autograd.grad(loss, pixels)
            terms |= of_pixels
            if adversarial:
                with frozen(discriminator):
                    terms["adversarial"] = hinge_generator_loss(discriminator(pixels))
                    (pull,) = torch.autograd.grad(terms["adversarial"], pixels)
                weight = losses.adversarial
                if losses.adaptive_adversarial:
                    weight = weight * adaptive_weight(output.images, gradient, pull, tokenizer.last_layer)
                    run.add(adversarial_weight=weight)
                gradient = gradient + weight * pull
                loss = loss + weight * terms["adversarial"]
        (((output.images * gradient).sum() + of_tokens) / run.accumulation).backward()
        run.add(loss=loss.detach() + of_tokens, **terms)

        if adversarial:
            # The images of the same forward pass, so that the parts of a batch add up to the whole.
            with run.accelerator.autocast():
                real, fake = judge(wrapped_discriminator, images, output.images.detach())
                discriminator_loss = hinge_discriminator_loss(real, fake)
                penalty = networks.lecam.penalty(real, fake)
            total = discriminator_loss + losses.lecam * penalty
            (total / run.accumulation).backward()
            run.add(discriminator=discriminator_loss, lecam=penalty)
            real_logits.append(real.detach().float().mean())
            fake_logits.append(fake.detach().float().mean())

    if step <= run.config.training.freeze_encoder_steps:
        for parameter in networks.frozen_at_first:
            parameter.grad = None  # the optimizer passes over it
    updates = {"gradient_norm": (tokenizer, optimizer)}
    if adversarial:
        updates["discriminator_gradient_norm"] = (discriminator, discriminator_optimizer)
    if networks.alignment:
        updates["projector_gradient_norm"] = (networks.projector, run.optimizers[2])
    run.add(**dict(zip(updates, run.clip_and_step(*updates.values()))))
    if adversarial:
        networks.lecam.update(*run.means_over_processes(real_logits, fake_logits))
    networks.ema.update(tokenizer, step)


def try_step(run: Run, networks: Networks) -> None:
    """A step of noise with all of its losses, to see whether it fits into memory."""
    size = height_and_width(run.config.model.image_size)
    images = torch.randint(256, (run.micro_batch_size, 3, *size), dtype=torch.uint8)
    batch = ImageBatch(images, torch.zeros(len(images), dtype=torch.int64), {})
    train_step(run, networks, [batch] * run.accumulation, [], run.config.losses.adversarial_start + 1)


def reconstruction_terms(
    images: Tensor, targets: Tensor, losses: LossSection, perceptual: dict[str, nn.Module]
) -> dict[str, Tensor]:
    """The reconstruction and perceptual losses, unweighted scalars by name, of images (B, 3, H, W)."""
    distance = F.l1_loss if losses.reconstruction == "l1" else F.mse_loss
    terms = {"reconstruction": distance(images, targets)}
    return terms | {name: network(images, targets).mean() for name, network in perceptual.items()}


def weight_of(name: str, losses: LossSection, step: int) -> float:
    """A term's weight in the total at a step; the reconstruction's is 1, which the others are relative to."""
    if name == "entropy" and losses.entropy_decay_steps:
        done = min(1.0, (step - 1) / losses.entropy_decay_steps)
        return losses.entropy + (losses.entropy_end - losses.entropy) * done
    return 1.0 if name == "reconstruction" else getattr(losses, name)


def judge(discriminator: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of real images and of fakes, (B, 3, H, W) each.

    In one pass where a logit depends on its own image alone; batch norm's statistics are of either kind.
    """
    if any(isinstance(module, nn.BatchNorm2d) for module in discriminator.modules()):
        return discriminator(real), discriminator(fake)
    return discriminator(torch.cat([real, fake])).chunk(2)


@torch.no_grad()
def evaluate(
    run: Run,
    tokenizer: nn.Module,
    val_set: FrameDataset,
    losses: LossSection,
    perceptual: dict[str, nn.Module],
    step: int,
) -> dict[str, float]:
    """Losses, PSNR and codebook statistics of the EMA tokenizer over the whole validation set.

    Each process takes its share of the frames, and the sums are exact over all. Writes samples/ and
    analysis/ on the way.
    """
    loader = evaluation_loader(
        val_set, run.micro_batch_size, run.loader_workers, run.accelerator.process_index, run.processes
    )
    analysis = CodebookAnalysis(tokenizer.codebook_size, run.device)
    names = ["reconstruction", *perceptual, "psnr"]
    sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=run.device)
    samples = []
    for batch in loader:
        images = run.images_of(batch, val_set.frames, "val")
        if len(images) == 0:
            continue
        with run.accelerator.autocast():
            output = tokenizer(images)
        restored = output.images.float().clamp(0, 1)
        analysis.update(batch.indices, output.quantized)
        terms = reconstruction_terms(restored, images, losses, perceptual)
        terms["psnr"] = psnr(restored, images).mean()
        sums += torch.stack([*(terms[name] for name in names), sums.new_ones(())]) * len(images)
        if run.is_main and sum(map(len, samples)) < SAMPLE_IMAGES:
            samples.append(torch.stack([images, restored], dim=1))
    sums = run.accelerator.reduce(sums)
    analysis.gather(run.accelerator)
    if sums[-1] == 0:
        raise UserError(f"{val_set.folder}: none of its frames can be read")

    if run.is_main:
        if samples:  # none of this process's share may be readable
            pairs = torch.cat(samples)[:SAMPLE_IMAGES]
            grid = make_grid(pairs.transpose(0, 1).flatten(0, 1), nrow=len(pairs), pad_value=1)
            (run.folder / "samples").mkdir(exist_ok=True)
            save_image(grid, run.folder / "samples" / f"step_{step:08d}.png")
        analysis.save(run.folder, step, tokenizer.quantizer.codes_as_used())
    scalars = {f"val/{name}": value for name, value in zip(names, (sums[:-1] / sums[-1]).tolist())}
    usage = analysis.usage
    return scalars | {"val/codebook_usage": usage.usage(), "val/perplexity": usage.perplexity()}


@torch.no_grad()
def analyse(run: Run, tokenizer: nn.Module, val_set: FrameDataset, step: int) -> None:
    """Write analysis/ from at most ANALYSIS_FRAMES validation frames, through the encoder only."""
    few = FrameDataset(val_set.folder, val_set.frames[:ANALYSIS_FRAMES], val_set.size, val_set.resize)
    loader = evaluation_loader(
        few, run.micro_batch_size, run.loader_workers, run.accelerator.process_index, run.processes
    )
    analysis = CodebookAnalysis(tokenizer.codebook_size, run.device)
    for batch in loader:
        images = run.images_of(batch, few.frames, "val")
        if len(images) > 0:
            with run.accelerator.autocast():
                analysis.update(batch.indices, tokenizer.quantizer(tokenizer.to_latents(images)))
    analysis.gather(run.accelerator)
    if run.is_main and analysis.frames > 0:
        analysis.save(run.folder, step, tokenizer.quantizer.codes_as_used())


if __name__ == "__main__":
    main()
