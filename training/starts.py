"""The weights that a tokenizer's networks start from, as a config says."""

from torch import nn

from errors import UserError
from models.dino_discriminator import DinoDiscriminator, Discriminators
from models.discriminator import PatchGAN
from models.encoder import LatentEncoder
from models.pretrained import SOURCES, build_encoder, load_pretrained, load_pretrained_decoder
from models.storage import load_tokenizer
from models.titok import TiTok
from models.tokenizer import Tokenizer
from sizes import Size
from training.model_sections import PretrainedVit, TiTokSection, VQGANSection
from training.run import Run
from training.sections import DiscriminatorSection


def load_start(run: Run, tokenizer: Tokenizer, model: TiTokSection | VQGANSection) -> list[nn.Parameter]:
    """Load the weights that the config starts from, unless the run goes on; returns what they fill."""
    if model.init_from:
        if not run.checkpoint:
            start = load_tokenizer(model.init_from)
            check_same_architecture(tokenizer.config, start.config, model.init_from)
            tokenizer.load_state_dict(start.state_dict())
            run.say(f"tokenizer: starts from {model.init_from}")
        return list(tokenizer.parameters())
    filled = []
    if isinstance(tokenizer, TiTok):
        for part, network, section, load in (
            ("encoder", tokenizer.encoder, model.encoder, load_pretrained),
            ("decoder", tokenizer.decoder, model.decoder, load_pretrained_decoder),
        ):
            if getattr(section, "init", None) in SOURCES:
                if not run.checkpoint:
                    loaded = load(network, section.init, section.weights)
                    run.say(f"{part}: starts from {section.init}: {loaded.summary()}")
                filled += network.pretrained_parameters()
    return filled


def check_same_architecture(config: dict, start: dict, name: str, above: str = "model") -> None:
    """Raise UserError where the tokenizer to start from is another than the config's."""
    for key, value in start.items():
        own = config.get(key)
        if isinstance(value, dict) and isinstance(own, dict):
            check_same_architecture(own, value, name, f"{above}.{key}")
        elif own != value and key != "entropy_temperature":  # which is the loss's
            raise UserError(f"model.init_from: {name} has {above}.{key} {value}, the config {own}")


def build_discriminator(section: DiscriminatorSection, image_size: Size) -> nn.Module:
    """PatchGAN, or that and a head on DINO's frozen ViT-S."""
    patch_gan = PatchGAN(section.channels, section.layers, section.norm)
    if not section.dino:
        return patch_gan
    source = build_encoder(
        *("dino", section.dino_weights, image_size),
        **{"width": 384, "heads": 6, "num_latents": 1, "prefix": "discriminator.dino_"},
    )
    return Discriminators(patch_gan, DinoDiscriminator(source))


def build_source(
    section: PretrainedVit, image_size: Size, patch_size: int, prefix: str = "model.encoder."
) -> LatentEncoder:
    """The published ViT of a section, frozen, for images and patches of a size.

    Raises UserError, with the section's keys behind a prefix, where its weights can't be had.
    """
    source = build_encoder(
        *(section.init, section.weights, image_size, patch_size, 1),
        **{"width": section.width, "depth": section.depth, "heads": section.heads, "prefix": prefix},
    )
    return source.eval().requires_grad_(False)
