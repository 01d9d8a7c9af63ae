"""The study's cells: which configs train them, in an order that gives each question a first answer early."""

from functools import cache
from pathlib import Path

from training.config import GeneratorConfig, TokenizerConfig, load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

CELLS = [
    # 1D tokens beside VQGAN's grid, with and without initialisation, and what they are worth for generation
    "mae_64",
    "vqgan",
    "titok_64_150ep",
    "maskgit_mae_64",
    "maskgit_vqgan",
    "maskgit_titok_64",
    # How many tokens are needed
    "mae_128",
    "mae_32",
    "mae_256",
    "mae_16",
    # The other initialisations, and generation on their tokens
    "dinov2_64",
    "dino_64",
    "clip_64",
    "depth_anything_v2_64",
    "maskgit_dinov2_64",
    "maskgit_dino_64",
    "maskgit_clip_64",
    "maskgit_depth_anything_v2_64",
    # From scratch by number of tokens, and the big set
    "titok_64",
    "titok_128",
    "titok_32",
    "titok_16",
    "titok_256",
    "mae_64_big",
    "titok_64_big",
]

# Each cell twice: as the study's text says, and as its code ran it. Folders of the configs.
FAMILIES = {"text": "", "as_run": "as_run/"}

# From TiTok-64 + MAE as run to our own recipe: what each rung puts right beside all that those before it did
LADDER = {
    "as_run/mae_64": "as the study's code ran it",
    "ladder/1_loading": "MAE's weights as they are: positions and the normalisation of the input",
    "ladder/2_projection": "the projection to tokens is trained",
    "ladder/3_decoder": "a ViT for the decoder, as the text has it",
    "ladder/4_quantizer": "the codebook's and the latents' terms weighed as meant, codes normalised in use",
    "ladder/5_entropy": "an entropy loss over all images on the devices, of constant weight",
    "ladder/6_adversarial": "a discriminator that judges each image alone, of constant weight",
    "ladder/7_losses": "squared error, and ConvNeXt beside LPIPS",
    "ladder/8_optimizer": "momenta, decay, clipped gradients, and an average of the weights",
    "ladder/9_crop": "the picture's whole height, a random square of it, flipped half of the time",
}


def cells_of(family: str) -> list[str]:
    """A family's cells, each the path of its config below configs/ without the suffix."""
    return [f"{FAMILIES[family]}{cell}" for cell in CELLS]


def is_generator(cell: str) -> bool:
    """Whether a cell is a generator, otherwise it is a tokenizer."""
    return Path(cell).name.startswith("maskgit")


@cache
def read_cell(cell: str) -> TokenizerConfig | GeneratorConfig:
    """A cell's config; its run is named run.name."""
    return load_config(CONFIGS / f"{cell}.yaml", GeneratorConfig if is_generator(cell) else TokenizerConfig)
