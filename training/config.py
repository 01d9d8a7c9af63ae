"""Experiment configs: YAML files on a common base, checked against the models below."""

import argparse
import difflib
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from errors import UserError
from models.encoder import FROM_SCRATCH

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
    random_crop: bool = True  # otherwise the centre square
    flip: bool = True  # left to right, half of the time
    workers: NonNegativeInt = 8  # loader processes of each training process
    strict: bool = False  # a broken JPEG stops the run, otherwise it is skipped and named


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
    clip_norm: PositiveFloat = 1.0
    ema_decay: Share = 0.999
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


class VitSize(Section):
    """A transformer's size; ViT-B by default."""

    width: PositiveInt = 768
    depth: PositiveInt = 12
    heads: PositiveInt = 12

    @model_validator(mode="after")
    def _heads_divide_width(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class PretrainedVit(VitSize):
    """A ViT of TiTok's, and the weights that it starts from."""

    # mimetic: from scratch too, for small ViTs and short training (models.mimetic); titok: the architecture
    # of the TiTok authors' own weights, for model.init_from
    init: Literal["none", "mimetic", "mae", "clip", "dino", "dinov2", "depth_anything_v2", "titok"] = "none"
    weights: str | None = None  # a file in the authors' or timm's format; by default it is fetched


class QuantizerSection(Section):
    """Vector quantization; see models.quantizer."""

    codebook_size: Annotated[int, Field(ge=2)] = 4096
    token_size: PositiveInt = 16
    l2_normalize: bool = True
    entropy_temperature: PositiveFloat = 0.01


class TokenizerSection(Section):
    """What every tokenizer has."""

    init_from: str | None = None  # a trained tokenizer of this architecture: a run, a model folder, a Hub id
    image_size: PositiveInt = 256
    quantizer: QuantizerSection = QuantizerSection()

    def architecture(self) -> dict:
        """The config of models.storage.build_tokenizer: the section without where its weights come from."""
        weights = {"init_from": True, "encoder": {"weights"}, "decoder": {"weights"}}
        return self.model_dump(exclude=weights)


class TiTokSection(TokenizerSection):
    """The arguments of models.titok.TiTok."""

    kind: Literal["titok", "two_stage_titok"] = "titok"
    patch_size: PositiveInt = 16
    num_tokens: Annotated[int, Field(ge=1, le=1024)] = 64
    encoder: PretrainedVit = PretrainedVit()
    decoder: PretrainedVit = PretrainedVit()

    @property
    def has_pretrained_encoder(self) -> bool:
        """Whether the encoder starts from weights."""
        return self.init_from is not None or self.encoder.init not in FROM_SCRATCH

    @model_validator(mode="after")
    def _patches_tile_image(self):
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if "titok" in (self.encoder.init, self.decoder.init) and self.init_from is None:
            raise ValueError(
                "init titok has no ViT weights of its own; give init_from a TiTok of the authors"
            )
        return self


class VQGANSection(TokenizerSection):
    """The arguments of models.vqgan.VQGAN."""

    kind: Literal["vqgan"]
    channels: Annotated[int, Field(ge=32, multiple_of=32)] = 128  # the norms have 32 groups
    multipliers: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 1, 2, 2, 4]
    blocks: PositiveInt = 2

    @property
    def has_pretrained_encoder(self) -> bool:
        """Whether the encoder starts from weights."""
        return self.init_from is not None

    @model_validator(mode="after")
    def _levels_halve_image(self):
        factor = 2 ** (len(self.multipliers) - 1)
        if self.image_size % factor:
            raise ValueError(f"image_size {self.image_size} is no multiple of {factor}, the downsampling")
        return self


class LossSection(Section):
    """Weights of the tokenizer's losses; 0 switches a term off."""

    reconstruction: Literal["l1", "l2"] = "l2"
    codebook: NonNegativeFloat = 1.0
    commitment: NonNegativeFloat = 0.25
    entropy: NonNegativeFloat = 0.02
    lpips: NonNegativeFloat = 1.0
    lpips_weights: str | None = None  # torchvision's VGG16 file; by default it is fetched
    convnext: NonNegativeFloat = 0.1
    convnext_weights: str | None = None  # torchvision's ConvNeXt-S file; by default it is fetched
    adversarial: NonNegativeFloat = 0.1
    adversarial_start: NonNegativeInt = 5000  # optimizer steps before the discriminator joins
    lecam: NonNegativeFloat = 0.0


class DiscriminatorSection(Section):
    """The PatchGAN discriminator's size."""

    channels: PositiveInt = 64
    layers: PositiveInt = 3


class TokenizerTraining(TrainingSection):
    """A tokenizer's recipe: how to treat what starts from weights."""

    freeze_encoder_steps: NonNegativeInt = 0  # the encoder's weights stay as they are for so many steps
    pretrained_rate: PositiveFloat = 1.0  # learning rate of what starts from weights, over learning_rate


def _with_kind(model: object) -> object:
    return {"kind": "titok", **model} if isinstance(model, dict) else model


class TokenizerConfig(Section):
    """What train_tokenizer.py is told."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    model: Annotated[
        TiTokSection | VQGANSection, Field(discriminator="kind"), BeforeValidator(_with_kind)
    ] = TiTokSection()
    discriminator: DiscriminatorSection = DiscriminatorSection()
    losses: LossSection = LossSection()
    training: TokenizerTraining

    @model_validator(mode="after")
    def _has_what_to_freeze(self):
        if self.training.freeze_encoder_steps and not self.model.has_pretrained_encoder:
            raise ValueError("training.freeze_encoder_steps: the encoder starts from random weights")
        return self


class GeneratorData(DataSection):
    """Frames whose tokens are learned; the tokens are kept in a folder of their own."""

    tokens: str = "tokens"


class MaskGITSection(VitSize):
    """The arguments of models.maskgit.MaskGIT that the tokenizer doesn't set, and its training loss."""

    kind: Literal["maskgit"] = "maskgit"
    depth: PositiveInt = 24
    heads: PositiveInt = 16
    dropout: Share = 0.1
    tied_embeddings: bool = False  # the codes' embeddings are the output's weights too
    conditions: list[Literal["timeofday", "weather", "scene"]] = []  # the attributes that it is told
    condition_dropout: Share = 0.1  # how often training leaves out all of a frame's; of the rest, each one
    mask_schedule: Literal["arccos", "cosine", "linear", "square"] = "arccos"
    label_smoothing: Share = 0.1
    unmasked_weight: NonNegativeFloat = 0.0  # of the known tokens in the loss, where a masked one has 1


class SamplingSection(Section):
    """How a generator is sampled; see models.maskgit.MaskGIT.fill_steps."""

    steps: PositiveInt = 8
    schedule: Literal["arccos", "cosine", "linear", "square"] = "arccos"
    temperature: PositiveFloat = 1.0
    randomness: NonNegativeFloat = 4.5
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    order: Literal["confidence", "halton"] = "confidence"  # halton is for 2D tokens
    guidance: NonNegativeFloat = 1.0  # of a conditional generator: 0 ignores the conditions
    guidance_schedule: Literal["constant", "linear"] = "constant"


class GeneratorConfig(Section):
    """What train_maskgit.py is told."""

    run: RunSection = RunSection()
    tokenizer: str  # a run, a model folder or a Hub id
    data: GeneratorData = GeneratorData()
    model: MaskGITSection = MaskGITSection()
    training: TrainingSection
    sampling: SamplingSection = SamplingSection()

    @model_validator(mode="after")
    def _has_what_to_guide_by(self):
        if self.sampling.guidance != 1 and not self.model.conditions:
            raise ValueError(
                f"sampling.guidance {self.sampling.guidance:g}: the generator has no model.conditions"
            )
        return self


def parse_arguments(config_class: type[Section], description: str) -> tuple[Section, argparse.Namespace]:
    """Read the command line of a training script: `--config`, `--set section.key=value`, `--restart`.

    Returns the checked config, with `run.name` filled in, and the arguments.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, type=Path, help="YAML file under configs/")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    parser.add_argument("--restart", action="store_true", help="remove the run's folder and start over")
    arguments = parser.parse_args()
    return load_config(arguments.config, config_class, arguments.overrides), arguments


def load_config(path: str | Path, config_class: type[Section], overrides: list[str] = ()) -> Section:
    """Read a YAML config on its bases, put `section.key=value` overrides over it, and check the result.

    Raises UserError naming the file (or --set), the key's path and, for a typo, the nearest valid key.
    """
    path = Path(path)
    values, origins = _read_with_bases(path, config_class, ())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"--set {override}: write it as section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {override}: the value is not YAML") from error
        for part in reversed(key.split(".")):
            value = {part: value}
        _check_keys(value, config_class, f"--set {key}", values)
        _merge(values, value, origins, f"--set {key}")
    try:
        config = config_class.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        tags = set(_kinds(config_class.model_fields["model"].annotation))  # pydantic's, not the file's
        keys = tuple(part for part in first["loc"] if isinstance(part, str) and part not in tags)
        origin = next((origins[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in origins), str(path))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] not in ("missing", "value_error"):
            message += f", not {first['input']!r}"
        message = message[:1].lower() + message[1:]
        raise UserError(": ".join(filter(None, (origin, ".".join(keys), message)))) from error
    if config.run.name is None:
        config = config.model_copy(update={"run": config.run.model_copy(update={"name": path.stem})})
    return config


def save_config(config: Section, path: str | Path) -> None:
    """Write the whole resolved config as YAML."""
    Path(path).write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _read_with_bases(path: Path, config_class: type[Section], above: tuple[Path, ...]) -> tuple[dict, dict]:
    """A file's values over its base's, and which file set each key path."""
    if path.resolve() in above:
        raise UserError(f"{path}: base: the bases go in a circle")
    try:
        own = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UserError(f"{path}: no such config ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(own, dict):
        raise UserError(f"{path}: a config is a mapping of sections, not a {type(own).__name__}")
    base = own.pop("base", None)
    values, origins = {}, {}
    if base is not None:
        values, origins = _read_with_bases(path.parent / base, config_class, (*above, path.resolve()))
    _check_keys(own, config_class, str(path), values)
    _merge(values, own, origins, str(path))
    return values, origins


def _check_keys(
    values: dict, section: type[BaseModel], origin: str, base: dict, above: tuple[str, ...] = ()
) -> None:
    """Refuse a key that the section doesn't know, with the nearest that it knows."""
    for key, value in values.items():
        field = section.model_fields.get(key)
        key_path = ".".join((*above, str(key)))
        if field is None:
            near = difflib.get_close_matches(str(key), section.model_fields, n=1, cutoff=0.5)
            known = f"did you mean {'.'.join((*above, near[0]))}?" if near else _known_keys(section, above)
            raise UserError(f"{origin}: unknown key {key_path}; {known}")
        kinds = _kinds(field.annotation)
        if kinds:
            below = base.get(key) if isinstance(base.get(key), dict) else {}
            default = next(iter(kinds))
            if not isinstance(value, dict):
                raise UserError(f"{origin}: {key_path} is a section; {_known_keys(kinds[default], above)}")
            kind = value.get("kind", below.get("kind", default))
            if kind not in kinds:
                raise UserError(f"{origin}: {key_path}.kind: no kind {kind!r}; known: {', '.join(kinds)}")
            _check_keys(value, kinds[kind], origin, below, (*above, key))


def _kinds(annotation: object) -> dict[str, type[BaseModel]]:
    """The sections that a key may have, by their kind; the first is the default. Empty for a plain value."""
    sections = [part for part in (annotation, *get_args(annotation)) if isinstance(part, type)]
    kinds = {}
    for section in sections:
        if issubclass(section, Section):
            kind = section.model_fields.get("kind")
            kinds |= dict.fromkeys(get_args(kind.annotation) if kind else [""], section)
    return kinds


def _known_keys(section: type[BaseModel], above: tuple[str, ...]) -> str:
    return f"known in {'.'.join(above) or 'a config'}: {', '.join(section.model_fields)}"


def _merge(values: dict, over: dict, origins: dict, origin: str, above: tuple[str, ...] = ()) -> None:
    """Put `over` on `values` in place, mapping by mapping, noting where each key comes from.

    A section of another kind replaces its base's, of which nothing fits it.
    """
    for key, value in over.items():
        origins[(*above, key)] = origin
        below = values.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        if both and value.get("kind") in (None, below.get("kind")):
            _merge(below, value, origins, origin, (*above, key))
        else:
            values[key] = value
