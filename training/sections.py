"""The sections of a config that are of training, data, losses and sampling, with every key's default."""

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

Share = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A mapping in a config; it refuses keys that it doesn't know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RunSection(Section):
    """Where a run lives and how it reports."""

    name: str | None = None  # by default the config file's name
    dir: str = "runs"
    seed: NonNegativeInt = 42
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"


class Subset(Section):
    """Which frames of a split: those with one of each listed attribute, the first `count` in salted order."""

    timeofday: list[str] | None = None
    weather: list[str] | None = None
    scene: list[str] | None = None
    count: PositiveInt | None = None


class DataSection(Section):
    """Frames, and how they are loaded."""

    frames: str = "frames"
    train: Subset = Subset()
    val: Subset = Subset()
    # How a frame becomes the image: its short side is resized to the image's size, or its pixels stay as
    # they are; then a square is cut out.
    resize: Literal["short_side", "none"] = "short_side"
    random_crop: bool = True  # in training, otherwise the centre square
    flip: bool = True  # left to right, half of the time
    workers: NonNegativeInt = 8  # loader processes of each training process
    strict: bool = False  # a broken JPEG stops the run, otherwise it is skipped and named


class GeneratorData(DataSection):
    """Frames whose tokens are learned; the tokens are kept in a folder of their own."""

    tokens: str = "tokens"


class TrainingSection(Section):
    """The recipe of one optimizer, or of two alike. Training stops at the nearer of epochs and max_steps."""

    epochs: PositiveFloat | None = None
    max_steps: PositiveInt | None = None
    global_batch_size: PositiveInt = 128
    device_batch_size: PositiveInt = 32  # at most so many images at once on a device
    precision: Literal["bf16", "fp32"] = "bf16"
    learning_rate: PositiveFloat = 1e-4
    warmup_steps: NonNegativeInt = 5000
    schedule: Literal["constant", "cosine"] = "constant"  # after the warm-up
    betas: tuple[Share, Share] = (0.9, 0.99)
    weight_decay: NonNegativeFloat = 1e-4
    clip_norm: PositiveFloat | None = 1.0  # of all gradients; null: they are not clipped
    ema_decay: Share = 0.999  # 0: no average, the weights themselves
    compile: bool = False  # the networks and perceptual losses, with torch.compile
    gradient_checkpointing: bool = False  # less memory: the blocks' insides are computed twice
    log_every: PositiveInt = 50
    validate_every: PositiveInt = 2000  # validation, samples and analysis, which comes at 1, 2, 5, 10, … too
    checkpoint_every: PositiveInt = 1000
    keep_checkpoints: PositiveInt = 2

    @model_validator(mode="after")
    def _ends(self):
        if self.epochs is None and self.max_steps is None:
            raise ValueError("give epochs or max_steps, or training never ends")
        return self


class TokenizerTraining(TrainingSection):
    """A tokenizer's recipe: how to treat what starts from weights."""

    freeze_encoder_steps: NonNegativeInt = 0  # the encoder's weights stay as they are for so many steps
    pretrained_rate: PositiveFloat = 1.0  # learning rate of what starts from weights, over learning_rate
    # TiTok's projection to tokens stays as it was drawn; in the study's code it is in no optimizer
    freeze_projection: bool = False


class LossSection(Section):
    """Weights of the tokenizer's losses; 0 switches a term off."""

    reconstruction: Literal["l1", "l2"] = "l2"
    codebook: NonNegativeFloat = 1.0
    commitment: NonNegativeFloat = 0.25
    entropy: NonNegativeFloat = 0.02
    # That is its weight at the first step, from where it falls linearly, over so many steps, to its end
    # (as MAGVIT-v2's does, arXiv 2310.05737); with 0 steps it is constant
    entropy_decay_steps: NonNegativeInt = 0
    entropy_end: NonNegativeFloat = 0.0
    # So many images have an entropy loss of their own; by default all that are on the devices at one time
    entropy_images: PositiveInt | None = None
    lpips: NonNegativeFloat = 1.0
    lpips_weights: str | None = None  # torchvision's VGG16 file; by default it is fetched
    convnext: NonNegativeFloat = 0.1
    convnext_weights: str | None = None  # torchvision's ConvNeXt-S file; by default it is fetched
    adversarial: NonNegativeFloat = 0.1
    # The weight is times the ratio of two gradients' norms at the last layer, the reconstruction's to the
    # adversarial term's (VQGAN, arXiv 2012.09841, eq. 7)
    adaptive_adversarial: bool = False
    adversarial_start: NonNegativeInt = 5000  # optimizer steps before the discriminator joins
    lecam: NonNegativeFloat = 0.0


class DiscriminatorSection(Section):
    """The PatchGAN discriminator, and its optimizer where that differs from the tokenizer's."""

    channels: PositiveInt = 64
    layers: PositiveInt = 3
    norm: Literal["group", "batch"] = "group"  # batch: over the images of a part, as the original's
    learning_rate: PositiveFloat | None = None
    betas: tuple[Share, Share] | None = None


class SamplingSection(Section):
    """How a generator is sampled; see models.maskgit.MaskGIT.fill_steps."""

    steps: PositiveInt = 8
    schedule: Literal["arccos", "cosine", "linear", "square"] = "arccos"
    temperature: PositiveFloat = 1.0
    randomness: NonNegativeFloat = 4.5
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    order: Literal["confidence", "halton"] = "confidence"  # halton is for 2D tokens
    plan: Literal["exact", "as_run"] = "exact"  # as_run: models.sampling.as_run_plan, the study's
    guidance: NonNegativeFloat = 1.0  # of a conditional generator: 0 ignores the conditions
    guidance_schedule: Literal["constant", "linear"] = "constant"
