"""The `model` sections of configs: each kind of network, its sizes, and what weights it starts from."""

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from models import open_clip_weights
from models.elastic import ElasticTiTok
from models.encoder import FROM_SCRATCH
from models.encoder_as_run import LOST
from models.patches import doublings
from sizes import Size, as_written, height_and_width
from training.sections import PathText, PositiveFloat, Section, Share, ShareBelow1, Weight, without_repetition

Width = Annotated[int, Field(ge=1, le=16384)]
Depth = Annotated[int, Field(ge=1, le=256)]
Side = Annotated[int, Field(ge=1, le=4096)]


def _a_size(size: object) -> object:
    if not (isinstance(size, int) or (isinstance(size, list | tuple) and len(size) == 2)):
        raise ValueError("one number of pixels, or [height, width]")
    return size


def _square_as_number(size: int | tuple[int, int]) -> int | tuple[int, int]:
    return size[0] if isinstance(size, tuple) and size[0] == size[1] else size


ImageSize = Annotated[Side | tuple[Side, Side], BeforeValidator(_a_size), AfterValidator(_square_as_number)]


class VitSize(Section):
    """A transformer's size; ViT-B by default."""

    width: Width = 768
    depth: Depth = 12
    heads: Width = 12

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
    weights: PathText | None = None  # a file in the authors' or timm's format; by default it is fetched


class EncoderSection(PretrainedVit):
    """TiTok's encoder. With init clip its weights may also be open_clip:<model>/<pretrained tag or file>."""

    # as_run: as the study's own code built it and loaded its weights; see models.encoder_as_run
    loading: Literal["exact", "as_run"] = "exact"
    stem: Literal["linear", "conv"] = "linear"  # of patches; conv learns faster from scratch
    mixing: bool = False  # each latent begins with a learned mix of all patches

    @model_validator(mode="after")
    def _has_a_loading(self):
        if self.loading == "as_run" and self.init != "none" and self.init not in LOST:
            raise ValueError(f"loading: the study's code has no encoder from {self.init}; take exact")
        if self.stem == "conv" and (self.init not in FROM_SCRATCH or self.loading == "as_run"):
            raise ValueError("stem: conv is for an encoder from scratch")
        if open_clip_weights.is_named(self.weights) and self.init != "clip":
            raise ValueError(f"weights: {self.weights} are a CLIP's, the init is {self.init}")
        return self


class VitDecoderSection(PretrainedVit):
    """TiTok's ViT decoder."""

    kind: Literal["vit"] = "vit"
    head: Literal["linear", "conv"] = "linear"  # conv sees across the borders of patches
    mixing: bool = False  # each place begins with a learned mix of all tokens

    @model_validator(mode="after")
    def _has_no_open_clip(self):
        if open_clip_weights.is_named(self.weights):
            raise ValueError(f"weights: {self.weights} are for the encoder; give a file of OpenAI's CLIP")
        return self


class AlignmentSection(PretrainedVit):
    """A frozen source, like whose features of patches the ViT decoder's are to be; see models.alignment."""

    weight: Weight = 0.0  # of the loss, beside the reconstruction's (GigaTok: 0.5); 0: there is none
    block: Depth = 3  # of the decoder, counted from 1, whose outputs are aligned

    @model_validator(mode="after")
    def _has_a_source(self):
        if self.weight and self.init in (*FROM_SCRATCH, "titok"):
            raise ValueError(f"init: {self.init} has no weights; name a source to align with")
        return self


class ConvDecoderSection(Section):
    """The study's decoder of VQGAN's convolutions; see models.conv_decoder."""

    kind: Literal["conv"]
    width: Width = 768
    channels: Annotated[int, Field(ge=32, le=16384, multiple_of=32)] = 128
    multipliers: list[Depth] = Field([1, 1, 2, 2, 4], min_length=1)
    blocks: Depth = 2
    attention: bool = True  # at the lowest level, over the grid


CodebookSize = Annotated[int, Field(ge=2, le=2**24)]


class VQSection(Section):
    """Vector quantization; see models.quantizer."""

    kind: Literal["vq"] = "vq"
    codebook_size: CodebookSize = 4096
    token_size: Width = 16
    l2_normalize: bool = True
    entropy_temperature: PositiveFloat = 0.01
    normalize_in_place: bool = False  # the codes, at each forward pass in training, as the study's code does
    rotation: bool = False  # of gradients, as codes are turned from their latents; otherwise as they come


class SimVQSection(Section):
    """Fixed random codes times one learned matrix; see models.quantizers."""

    kind: Literal["simvq"]
    codebook_size: CodebookSize = 4096
    token_size: Width = 16
    entropy_temperature: PositiveFloat = 0.01


class LFQSection(Section):
    """A bit for each dimension; see models.quantizers."""

    kind: Literal["lfq"]
    codebook_size: Annotated[int, Field(ge=2, le=2**18)] = 4096
    entropy_temperature: PositiveFloat = 0.01

    @model_validator(mode="after")
    def _has_whole_bits(self):
        if self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"codebook_size {self.codebook_size} is no power of two")
        return self

    @property
    def token_size(self) -> int:
        """The bits of a code."""
        return self.codebook_size.bit_length() - 1


class FSQSection(Section):
    """A few levels for each dimension; see models.quantizers."""

    kind: Literal["fsq"]
    # 4,375 codes, the paper's for 2**12
    levels: list[Annotated[int, Field(ge=3, le=2**12)]] = Field([7, 5, 5, 5, 5], min_length=1, max_length=24)

    @model_validator(mode="after")
    def _has_a_codebooks_size(self):
        if self.codebook_size > 2**24:
            raise ValueError(f"levels {self.levels} are {self.codebook_size:,} codes, above {2**24:,}")
        return self

    @property
    def codebook_size(self) -> int:
        """The number of codes."""
        return math.prod(self.levels)

    @property
    def token_size(self) -> int:
        """The dimension of a code."""
        return len(self.levels)


def with_kind(default: str) -> Callable[[object], object]:
    """What gives a section without a `kind` the default one."""
    return lambda section: {"kind": default, **section} if isinstance(section, dict) else section


QuantizerSection = Annotated[
    VQSection | SimVQSection | LFQSection | FSQSection,
    Field(discriminator="kind"),
    BeforeValidator(with_kind("vq")),
]


class TokenizerSection(Section):
    """What every tokenizer has."""

    init_from: PathText | None = (
        None  # a trained tokenizer of this architecture: a run, a model folder, a Hub id
    )
    image_size: ImageSize = 256  # a square; [height, width] of anything else
    quantizer: QuantizerSection = VQSection()

    def architecture(self) -> dict:
        """The config of models.storage.build_tokenizer: the section without where its weights come from.

        Raises UserError where an encoder's weights have a name that open_clip doesn't know.
        """
        weights = {"init_from": True, "encoder": {"weights"}, "decoder": {"weights"}}
        return self.model_dump(exclude=weights)


def _check_multiple(image_size: Size, factor: int, name: str) -> None:
    if any(side % factor for side in height_and_width(image_size)):
        raise ValueError(f"image_size {as_written(image_size)} is no multiple of {name}")


def _check_levels(image_size: Size, multipliers: list[int]) -> None:
    factor = 2 ** (len(multipliers) - 1)
    _check_multiple(image_size, factor, f"{factor}, the downsampling")


class TiTokSection(TokenizerSection):
    """The arguments of models.titok.TiTok."""

    kind: Literal["titok", "two_stage_titok"] = "titok"
    patch_size: Width = 16
    num_tokens: Annotated[int, Field(ge=1, le=1024)] = 64
    elastic: bool = False  # one model for every length: an image's first tokens are one, too (models.elastic)
    encoder: EncoderSection = EncoderSection()
    decoder: Annotated[
        VitDecoderSection | ConvDecoderSection, Field(discriminator="kind"), BeforeValidator(with_kind("vit"))
    ] = VitDecoderSection()

    def architecture(self) -> dict:
        """As TokenizerSection's; an encoder of open_clip's weights has what their config says of it."""
        architecture = super().architecture()
        if architecture.pop("elastic"):
            architecture["kind"] = ElasticTiTok.kind
        if open_clip_weights.is_named(self.encoder.weights):
            architecture["encoder"]["variant"] = open_clip_weights.variant(self.encoder.weights)
        return architecture

    @property
    def has_pretrained_encoder(self) -> bool:
        """Whether the encoder starts from weights."""
        return self.init_from is not None or self.encoder.init not in FROM_SCRATCH

    @model_validator(mode="after")
    def _patches_tile_image(self):
        _check_multiple(self.image_size, self.patch_size, f"patch_size {self.patch_size}")
        if "conv" in (self.encoder.stem, getattr(self.decoder, "head", None)):
            doublings(self.patch_size)
        if self.kind == "two_stage_titok" and getattr(self.decoder, "head", None) == "conv":
            raise ValueError("decoder.head: a two-stage TiTok has its own")
        if self.elastic and isinstance(self.decoder, ConvDecoderSection):
            raise ValueError("elastic: a convolutional decoder has one length; take decoder.kind vit")
        if self.kind == "two_stage_titok" and self.elastic:
            raise ValueError("elastic: a two-stage TiTok has one length")
        inits = {self.encoder.init, getattr(self.decoder, "init", None)}
        if isinstance(self.decoder, ConvDecoderSection):
            _check_levels(self.image_size, self.decoder.multipliers)
        if "titok" in inits and self.init_from is None:
            raise ValueError(
                "init titok has no ViT weights of its own; give init_from a TiTok of the authors"
            )
        return self


class VQGANSection(TokenizerSection):
    """The arguments of models.vqgan.VQGAN."""

    kind: Literal["vqgan"]
    channels: Annotated[int, Field(ge=32, le=16384, multiple_of=32)] = 128  # the norms have 32 groups
    multipliers: list[Depth] = Field([1, 1, 2, 2, 4], min_length=1)
    blocks: Depth = 2

    @property
    def has_pretrained_encoder(self) -> bool:
        """Whether the encoder starts from weights."""
        return self.init_from is not None

    @model_validator(mode="after")
    def _levels_halve_image(self):
        _check_levels(self.image_size, self.multipliers)
        return self


class MaskGITSection(VitSize):
    """The arguments of models.maskgit.MaskGIT that the tokenizer doesn't set, and its training loss."""

    kind: Literal["maskgit", "maskgit_as_run"] = "maskgit"  # as_run: models.maskgit_as_run
    depth: Depth = 24
    heads: Width = 16
    dropout: ShareBelow1 = 0.1
    tied_embeddings: bool = False  # the codes' embeddings are the output's weights too
    output_bias: Literal["code", "place"] = "code"  # place: each code has a bias of its own at each place
    # The attributes that it is told
    conditions: Annotated[
        list[Literal["timeofday", "weather", "scene"]], AfterValidator(without_repetition)
    ] = Field([])
    condition_dropout: Share = 0.1  # how often training leaves out all of a frame's; of the rest, each one
    mask_schedule: Literal["arccos", "cosine", "linear", "square"] = "arccos"
    label_smoothing: ShareBelow1 = 0.1
    unmasked_weight: Weight = 0.0  # of the known tokens in the loss, where a masked one has 1

    def architecture(self) -> dict:
        """The config of models.storage.build_generator, but for what the tokenizer and the frames set."""
        names = ("kind", "width", "depth", "heads", "dropout", "tied_embeddings", "output_bias")
        return {name: getattr(self, name) for name in names}
