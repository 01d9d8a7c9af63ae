"""The sections of a config that are of training, data, losses and sampling, with every key's default."""

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from training.precision import Precision

Share = Annotated[float, Field(ge=0, le=1)]
ShareBelow1 = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e6)]
Rate = Annotated[float, Field(gt=0, le=10)]  # of learning
Weight = Annotated[float, Field(ge=0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=10**12)]
CountOr0 = Annotated[int, Field(ge=0, le=10**12)]


def a_path(text: str) -> str:
    """A path or a name itself. Raises ValueError where it has characters that can't be seen."""
    if not text or not text.isprintable():
        raise ValueError("is empty, or has characters that can't be seen")
    return text


PathText = Annotated[str, AfterValidator(a_path)]


def _a_name(text: str) -> str:
    """The name of a folder of its own, and of nothing else."""
    if (
        not text
        or text.startswith(".")
        or len(text.encode()) > 200
        or not re.fullmatch(r"[^/\\\x00-\x1f]+", text)
    ):
        raise ValueError("a name is a folder's in run.dir: no slash, no newline, and no dot at its beginning")
    return text


def without_repetition(values: list[str]) -> list[str]:
    """A list itself. Raises ValueError where it names something twice."""
    if len(set(values)) < len(values):
        raise ValueError("names something twice")
    return values


Names = Annotated[list[str], AfterValidator(without_repetition)]


class Section(BaseModel):
    """A mapping in a config; it refuses keys that it doesn't know, numbers that are none, and yes for 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _yes_is_no_number(cls, values: object) -> object:
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if (
                isinstance(value, bool)
                and field
                and bool not in (field.annotation, *get_args(field.annotation))
            ):
                raise ValueError(f"{name}: {str(value).lower()} is no value for it")
        return values


class RunSection(Section):
    """Where a run lives and how it reports."""

    name: Annotated[str, AfterValidator(_a_name)] | None = None  # by default the config file's name
    dir: PathText = "runs"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    deterministic: bool = False  # on a GPU, too, the same to the bit each time, and slower
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"


class Subset(Section):
    """Which frames of a split: those with one of each listed attribute, the first `count` in salted order."""

    timeofday: Names | None = None
    weather: Names | None = None
    scene: Names | None = None
    count: Count | None = None


class DataSection(Section):
    """Frames, and how they are loaded."""

    frames: PathText = "frames"
    train: Subset = Subset()
    val: Subset = Subset()
    # How a frame becomes the image: its short side is resized to the image's size, or its pixels stay as
    # they are; then a square is cut out.
    resize: Literal["short_side", "none"] = "short_side"
    random_crop: bool = True  # in training, otherwise the centre square
    flip: bool = True  # left to right, half of the time
    workers: CountOr0 = 8  # loader processes of each training process
    strict: bool = False  # a broken JPEG stops the run, otherwise it is skipped and named


class GeneratorData(DataSection):
    """Frames whose tokens are learned; the tokens are kept in a folder of their own."""

    tokens: PathText = "tokens"
    tokens_from: PathText | None = None  # a dataset of pretokenize.py --export, which then has them all
    precision: Precision = "fp32"  # in which they are computed; see training.precision


class TrainingSection(Section):
    """The recipe of one optimizer, or of two alike. Training stops at the nearer of epochs and max_steps."""

    epochs: PositiveFloat | None = None
    max_steps: Count | None = None
    global_batch_size: Count = 128
    # At most so many images at once on a device; auto: as many as fit into a GPU's memory
    device_batch_size: Count | Literal["auto"] = 32
    precision: Precision = "bf16"  # where there is bfloat16, otherwise fp32; see training.precision
    learning_rate: Rate = 1e-4
    warmup_steps: CountOr0 = 5000
    schedule: Literal["constant", "cosine"] = "constant"  # after the warm-up
    # muon: for the matrices of transformer blocks, the rest stays AdamW's (training.optimizer); fewer steps
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[ShareBelow1, ShareBelow1] = (0.9, 0.99)
    weight_decay: Weight = 1e-4
    clip_norm: PositiveFloat | None = 1.0  # of all gradients; null: they are not clipped
    ema_decay: ShareBelow1 = 0.999  # 0: no average, the weights themselves
    compile: bool | None = None  # networks and perceptual losses, with torch.compile; by default on GPUs
    gradient_checkpointing: bool = False  # less memory: the blocks' insides are computed twice
    log_every: Count = 50
    validate_every: Count = 2000  # validation, samples and analysis, which comes at 1, 2, 5, 10, … too
    checkpoint_every: Count = 1000
    keep_checkpoints: Count = 2
    patience: Count = 20  # steps in a row without finite gradients, each skipped, before the run stops

    @model_validator(mode="after")
    def _ends(self):
        if self.epochs is None and self.max_steps is None:
            raise ValueError("give epochs or max_steps, or training never ends")
        return self


class TokenizerTraining(TrainingSection):
    """A tokenizer's recipe: how to treat what starts from weights."""

    freeze_encoder_steps: CountOr0 = 0  # the encoder's weights stay as they are for so many steps
    pretrained_rate: Annotated[float, Field(gt=0, le=1e6)] = (
        1.0  # learning rate of what starts from weights, over learning_rate
    )
    # TiTok's projection to tokens stays as it was drawn; in the study's code it is in no optimizer
    freeze_projection: bool = False


class GeneratorTraining(TrainingSection):
    """A generator's recipe."""

    # Each process has a part of the generator only (FSDP2): for one that a GPU can't hold
    shard: bool = False

    @model_validator(mode="after")
    def _has_whole_matrices(self):
        if self.shard and self.optimizer == "muon":
            raise ValueError("optimizer: muon needs whole matrices, shard leaves parts; take adamw")
        return self


class LossSection(Section):
    """Weights of the tokenizer's losses; 0 switches a term off."""

    reconstruction: Literal["l1", "l2"] = "l2"
    codebook: Weight = 1.0
    commitment: Weight = 0.25
    entropy: Weight = 0.02
    # That is its weight at the first step, from where it falls linearly, over so many steps, to its end
    # (as MAGVIT-v2's does, arXiv 2310.05737); with 0 steps it is constant
    entropy_decay_steps: CountOr0 = 0
    entropy_end: Weight = 0.0
    # So many images have an entropy loss of their own; by default all that are on the devices at one time
    entropy_images: Count | None = None
    lpips: Weight = 1.0
    lpips_weights: PathText | None = None  # torchvision's VGG16 file; by default it is fetched
    convnext: Weight = 0.1
    convnext_weights: PathText | None = None  # torchvision's ConvNeXt-S file; by default it is fetched
    adversarial: Weight = 0.1
    # The weight is times the ratio of two gradients' norms at the last layer, the reconstruction's to the
    # adversarial term's (VQGAN, arXiv 2012.09841, eq. 7)
    adaptive_adversarial: bool = False
    adversarial_start: CountOr0 = 5000  # optimizer steps before the discriminator joins
    lecam: Weight = 0.0


class CorruptionSection(Section):
    """What training hides of an image, so that its tokens are easier to generate; see training.corruption."""

    # Of the patches that a TiTok's encoder sees a share of at most so many is hidden, at each step another
    # (l-DeTok: 0.7)
    patches: ShareBelow1 = 0.0
    tokens: ShareBelow1 = 0.0  # of the tokens that the decoder sees, of each image another
    noise: Weight = 0.0  # standard deviation of what latents are mixed with before quantization (l-DeTok: 3)


class DiscriminatorSection(Section):
    """PatchGAN and what may be beside it, and their optimizer where that differs from the tokenizer's."""

    channels: Count = 64
    layers: Count = 3
    norm: Literal["group", "batch"] = "group"  # batch: over the images of a part, as the original's
    # DINO's ViT-S, frozen, judges beside it (models.dino_discriminator)
    dino: bool = False
    dino_weights: PathText | None = None  # the authors' file or timm's; by default it is fetched
    learning_rate: Rate | None = None
    betas: tuple[ShareBelow1, ShareBelow1] | None = None


class SamplingSection(Section):
    """How a generator is sampled; see models.maskgit.MaskGIT.fill_steps."""

    steps: Count = 8
    schedule: Literal["arccos", "cosine", "linear", "square"] = "arccos"
    temperature: PositiveFloat = 1.0
    randomness: Weight = 4.5
    top_k: Count | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    # halton is for 2D tokens, coarse_first for those of an elastic tokenizer
    order: Literal["confidence", "entropy", "halton", "coarse_first"] = "confidence"
    remask: ShareBelow1 = 0.0  # how often a token that was final is drawn again, at each step
    plan: Literal["exact", "as_run"] = "exact"  # as_run: models.sampling.as_run_plan, the study's
    guidance: Weight = 1.0  # 0: as without the conditions, or as the guide, where there is one
    guidance_schedule: Literal["constant", "linear"] = "constant"

    @model_validator(mode="after")
    def _has_tokens_to_draw_again(self):
        if self.plan == "as_run" and (self.remask or self.order == "entropy"):
            raise ValueError("plan: the study's sampler has neither remask nor order entropy; take exact")
        return self
