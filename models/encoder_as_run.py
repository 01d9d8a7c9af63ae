"""TiTok's encoders as the study's own code built them, and what each source loses on its way into them.

The study's code is public (github.com/sejal-0502/1d-tokenizer); docs/study.md compares it with its text.
"""

import torch
from torch import Tensor, nn

from models.encoder import Architecture, LatentEncoder, untransposed
from models.mimetic import sincos_positions

# One ViT for every source, which takes images in [-1, 1]. What a source has beyond it is dropped.
PLAIN = Architecture((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SCRATCH = PLAIN._replace(norm_eps=1e-5, activation="tanh", qkv_bias=False, class_position=False)

POSITIONS = "positions of the class token and the patches (zero)"
# What each source loses. models.pretrained names a file's parameters that are lost, zeroed and random.
LOST = {
    "mae": (POSITIONS, "ImageNet's normalisation of its input"),
    "clip": (
        POSITIONS,
        "the norm before the first block",
        "QuickGELU (GELU)",
        "the norms' epsilon (1e-6 for 1e-5)",
        "CLIP's normalisation of its input",
        "a patch embedding without bias (a random one)",
        "OpenAI's weights (DFN-2B's)",
    ),
    "dino": (POSITIONS, "ImageNet's normalisation of its input"),
    "dinov2": (POSITIONS, "LayerScale", "ImageNet's normalisation of its input"),
    "depth_anything_v2": (POSITIONS, "LayerScale", "ImageNet's normalisation of its input"),
}


class AsRunEncoder(LatentEncoder):
    """The study's encoder for weights: a plain ViT whatever the source, latents and positions from zero.

    Each latent has a learned position of its own beside it.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.latent_positions = nn.Parameter(torch.zeros_like(self.latents))
        nn.init.zeros_(self.latents)
        nn.init.zeros_(self.vit.pos_embed)

    @staticmethod
    def architecture(init: str, variant: dict) -> Architecture:
        """That of the ViT: the same for all, so that a variant is lost as well."""
        return PLAIN

    def placed_latents(self) -> Tensor:
        """The learned latents (K, width) as they enter the ViT."""
        return self.latents + self.latent_positions

    def take(self, state: dict[str, Tensor]) -> dict[str, list[str]]:
        """Fill the ViT with what of a source's exact state fits, and return the names by their fate.

        filled, zeroed and random are the plain ViT's own parameters, dropped are the source's.
        """
        own = self.vit.state_dict()
        taken = {name: tensor for name, tensor in state.items() if name in own and name != "pos_embed"}
        self.vit.load_state_dict(own | taken)
        return {
            "filled": list(taken),
            "zeroed": ["pos_embed"],
            "random": [name for name in own if name not in taken and name != "pos_embed"],
            "dropped": [name for name in state if name not in own],
        }


class AsRunScratchEncoder(AsRunEncoder):
    """The study's encoder from scratch: tanh in its MLPs, no bias in qkv, and its outputs untransposed.

    Positions of patches start as sines and cosines and are learned; the class token has none. Class token,
    latents and their positions are drawn from N(0, 1/width), linear weights from Xavier's distribution.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        width = self.latents.shape[1]
        for module in self.vit.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for parameter in (self.vit.cls_token, self.latents, self.latent_positions):
            nn.init.normal_(parameter, std=width**-0.5)
        quarter = width // 4
        frequencies = 10_000 ** -(torch.arange(quarter) / quarter)
        rows_first = sincos_positions(self.vit.patch_embed.grid_size, width, frequencies)
        with torch.no_grad():
            self.vit.pos_embed.copy_(rows_first.roll(width // 2, dims=1))

    @staticmethod
    def architecture(init: str, variant: dict) -> Architecture:
        """That of the ViT."""
        return SCRATCH

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to latents (B, K, width), which each mix several of the ViT's."""
        return untransposed(super().forward(images, visible))


UNNAMED = "unnamed"  # the source of an encoder whose checkpoint doesn't tell it


def build_latent_encoder(init: str = "none", loading: str = "exact", **options) -> LatentEncoder:
    """The encoder of a source, `exact` or as the study's code ran it (`as_run`); LatentEncoder's arguments.

    As run there are the five sources and "none", from scratch. Raises ValueError for another.
    """
    if loading == "exact":
        return LatentEncoder(init, **options)
    if init == "none":
        return AsRunScratchEncoder(init, **options)
    if init not in (*LOST, UNNAMED):
        raise ValueError(f"the study's code has no {init} encoder")
    return AsRunEncoder(init, **options)
