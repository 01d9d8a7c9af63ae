"""The checkpoints that the study's own code wrote, as our tokenizers and generators.

Its tokenizers are TiToks (github.com/sejal-0502/1d-tokenizer), from scratch or from weights, its generators
MaskGITs (github.com/sejal-0502/Maskgit), whose files hold their tokenizer, too. Both are Lightning's
`last.ckpt`. Sizes are read from the tensors' shapes; what no shape tells stands in the `config.yaml` beside
the file: the name of what an encoder started from, and a generator's heads.
"""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor

from errors import UserError
from models.encoder_as_run import UNNAMED
from models.maskgit_as_run import MaskGITAsRun
from models.titok import TiTok

SUFFIX = ".ckpt"
# What the study calls the sources
INITS = {"MAE": "mae", "CLIP": "clip", "DINO_TITOK": "dino", "DINO_V2": "dinov2"}
INITS |= {"DEPTH_ANYTHING_V2": "depth_anything_v2"}
# Of a tokenizer's keys, those of what is of training only, or in no forward pass
UNUSED = ("loss.", "post_quant_conv.", "latent_tokens", "encoder.head.")
TOKENIZER_PREFIX, GENERATOR_PREFIX = "ae.", "vit."  # in a generator's file
UNUSED_OF_GENERATOR = ("criterion.", "scheduler.")
GENERATOR_HEADS = 8  # of all of the study's
# What sizes that don't belong together raise while they are read and a network of them is built
NO_SIZES = (AssertionError, IndexError, KeyError, RuntimeError, ValueError, ZeroDivisionError)


class Checkpoint(NamedTuple):
    """A file of the study's."""

    path: Path
    state: dict[str, Tensor]
    updates: int  # of the network: Lightning counts those of the discriminator, too

    @property
    def is_generator(self) -> bool:
        """Whether it is a MaskGIT's, otherwise it is a tokenizer's."""
        return any(key.startswith(GENERATOR_PREFIX) for key in self.state)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a Lightning checkpoint. Raises UserError where it is none, or its reading would run code."""
    path = Path(path)
    try:
        file = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # unpickling a broken file can raise anything
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"its {code[1]} could run code" if code else type(error).__name__
        raise UserError(f"{path}: not readable as a checkpoint ({reason})") from error
    state = file.get("state_dict") if isinstance(file, dict) else None
    if not isinstance(state, dict) or not all(isinstance(each, Tensor) for each in state.values()):
        raise UserError(f"{path}: no checkpoint of the study's code (no state_dict)")
    steps = int(file.get("global_step") or 0)
    found = Checkpoint(path, state, steps)
    return found if found.is_generator else found._replace(updates=steps // 2)


def load_study_tokenizer(path: str | Path) -> TiTok:
    """The tokenizer of a checkpoint, also of a generator's. Raises UserError where it isn't the study's."""
    checkpoint = read_checkpoint(path)
    state = checkpoint.state
    if checkpoint.is_generator:
        state = _below(TOKENIZER_PREFIX, state)
    unused = UNUSED if "encoder.pos_embed" in state else (*UNUSED, "ln.")  # from scratch, ln is unused, too
    state = {key: tensor for key, tensor in state.items() if not key.startswith(unused)}
    tokenizer = _build(TiTok, lambda: tokenizer_config(state, checkpoint.path), path)
    return _fill(tokenizer, state, tokenizer_names(state, tokenizer), path)


def load_study_generator(path: str | Path) -> MaskGITAsRun:
    """The generator of a checkpoint. Raises UserError where it isn't the study's."""
    checkpoint = read_checkpoint(path)
    if not checkpoint.is_generator:
        raise UserError(f"{path}: a tokenizer of the study's, not a generator")
    state = _below(GENERATOR_PREFIX, checkpoint.state)
    others = (GENERATOR_PREFIX, TOKENIZER_PREFIX, *UNUSED_OF_GENERATOR)
    state |= {key: tensor for key, tensor in checkpoint.state.items() if not key.startswith(others)}
    generator = _build(MaskGITAsRun, lambda: generator_config(state, checkpoint.path), path)
    return _fill(generator, state, generator_names(state), path)


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What has a prefix, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def _build(network: type[torch.nn.Module], config: Callable[[], dict], path: str | Path) -> torch.nn.Module:
    """A network of the arguments that `config` reads. Raises UserError where none fit."""
    try:
        return network(**config())
    except NO_SIZES as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{path}: no {network.kind} of the study's code ({reason})") from error


# --- sizes --------------------------------------------------------------------------------------------------


def tokenizer_config(state: dict[str, Tensor], path: Path) -> dict:
    """TiTok's arguments for a tokenizer's state, which has what is in use only."""
    num_tokens, width = state["decoder.latent_token_positional_embedding"].shape
    codebook_size, token_size = state["quantize.embedding.weight"].shape
    if "encoder.pos_embed" in state:
        init = _read_init(path)
        patch = state["encoder.patch_embed.proj.weight"]
        places = state["encoder.pos_embed"].shape[1] - 1 - num_tokens
        depth = _count(state, "encoder.blocks.")
    else:
        init, patch = "none", state["encoder.to_patch_embedding.0.weight"]
        places = state["encoder.en_pos_embedding"].shape[1]
        depth = _count(state, "encoder.transformer.layers.")
    levels = _count(state, "decoder.up.")
    channels = state["decoder.conv_out.weight"].shape[1]
    widths = [state[f"decoder.up.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    return {
        "image_size": math.isqrt(places) * patch.shape[-1],
        "patch_size": patch.shape[-1],
        "num_tokens": num_tokens,
        "encoder": {
            "init": init,
            "loading": "as_run",
            "width": patch.shape[0],
            "depth": depth,
            "heads": max(1, patch.shape[0] // 64),
        },
        "decoder": {
            "kind": "conv",
            "width": width,
            "channels": channels,
            "multipliers": [each // channels for each in widths],
            "blocks": _count(state, "decoder.up.0.block.") - 1,
            "attention": any(key.startswith(f"decoder.up.{levels - 1}.attn.") for key in state),
        },
        "quantizer": {
            "codebook_size": codebook_size,
            "token_size": token_size,
            "normalize_in_place": True,
        },
    }


def generator_config(state: dict[str, Tensor], path: Path) -> dict:
    """MaskGITAsRun's arguments for a generator's state."""
    rows, width = state["tok_emb.weight"].shape
    try:
        heads = int(_read_parameters(path)[1]["predictor_config"]["params"]["heads"])
    except (KeyError, TypeError, ValueError):
        heads = GENERATOR_HEADS
    return {
        "num_tokens": state["pos_emb"].shape[1],
        "codebook_size": rows - 1,
        "width": width,
        "depth": _count(state, "transformer.layers."),
        "heads": heads,
    }


def _count(state: dict[str, Tensor], prefix: str) -> int:
    """How many modules a list has, whose name with the dot is the prefix."""
    numbers = {int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix)}
    if not numbers:
        raise KeyError(prefix)
    return max(numbers) + 1


def _read_init(path: Path) -> str:
    """What an encoder with weights started from; UNNAMED where no tokenizer's config is there."""
    config, parameters = _read_parameters(path)
    name = parameters.get("pretrained_model_name")
    if name is not None and name not in INITS:
        raise UserError(f"{config}: pretrained_model_name {name}: known are {', '.join(INITS)}")
    return UNNAMED if name is None else INITS[name]


def _read_parameters(path: Path) -> tuple[Path | None, dict]:
    """The config.yaml beside a file, or up to two folders above it, and its model's parameters."""
    for folder in Path(os.path.abspath(path)).parents[:3]:
        config = folder / "config.yaml"
        if config.is_file():
            try:
                parameters = yaml.safe_load(config.read_text())["model"]["params"]
            except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
                return config, {}
            return config, parameters if isinstance(parameters, dict) else {}
    return None, {}


# --- names --------------------------------------------------------------------------------------------------

# How a part of our names is written in theirs. A name of ours is theirs part by part.
ENCODER_BLOCK = {
    "norm1": "0.norm",
    "attn.qkv": "0.fn.to_qkv",
    "attn.proj": "0.fn.to_out",
    "norm2": "1.norm",
    "mlp.fc1": "1.fn.net.0",
    "mlp.fc2": "1.fn.net.2",
}
GENERATOR_BLOCK = {
    "norm1": "0.norm",
    "attn.proj": "0.fn.mha.out_proj",
    "norm2": "1.norm",
    "mlp.fc1": "1.fn.net.0",
    "mlp.fc2": "1.fn.net.3",
}


def tokenizer_names(state: dict[str, Tensor], tokenizer: TiTok) -> dict[str, str | tuple[str, ...]]:
    """By our parameters' names the study's; several are put one below the other."""
    names = {
        "encoder.latents": "encoder.prompt_tokens",
        "encoder.vit.patch_embed.proj": "encoder.patch_embed.proj",
        "encoder.vit.cls_token": "encoder.cls_token",
        "encoder.vit.norm": "encoder.norm",
        "to_tokens": "ln",
        "quantizer.codebook": "quantize.embedding.weight",
        "decoder.from_tokens": "decoder.decoder_embed",
        "decoder.class_token": "decoder.class_embedding",
        "decoder.mask_token": "decoder.mask_token",
        "decoder.positions": "decoder.positional_embedding",
        "decoder.token_positions": "decoder.latent_token_positional_embedding",
    }
    depth = len(tokenizer.encoder.vit.blocks)
    if "encoder.pos_embed" in state:
        blocks = {part: part for part in ENCODER_BLOCK}
        theirs = "encoder.blocks"
    else:
        names |= {
            "encoder.latents": "encoder.latent_tokens",
            "encoder.latent_positions": "encoder.latent_token_positional_embedding",
            "encoder.vit.patch_embed.proj": "encoder.to_patch_embedding.0",
            "encoder.vit.cls_token": "encoder.class_embedding",
            "encoder.vit.pos_embed": "encoder.en_pos_embedding",
            "encoder.vit.norm": "encoder.transformer.norm",
            "to_tokens": "encoder.conv_out",
        }
        blocks, theirs = ENCODER_BLOCK, "encoder.transformer.layers"
    for number in range(depth):
        for part, name in blocks.items():
            names[f"encoder.vit.blocks.{number}.{part}"] = f"{theirs}.{number}.{name}"
    names |= _decoder_names(tokenizer.config["decoder"])
    return _with_weights_and_biases(names, state)


def _decoder_names(decoder: dict) -> dict[str, str]:
    """Of ConvDecoder's modules, in their order."""
    middle = ["decoder.mid.block_1", "decoder.mid.attn_1", "decoder.mid.block_2"]
    names = {"decoder.mix.0": "decoder.conv_in"}
    for place, theirs in enumerate(middle, start=1):
        names |= _module_names(f"decoder.mix.{place}", theirs)
    place = 0
    lowest = len(decoder["multipliers"]) - 1
    for level in range(lowest, -1, -1):
        if level < lowest:
            names[f"decoder.levels.{place + 1}"] = f"decoder.up.{level + 1}.upsample.conv"
            place += 2  # the enlarging itself has no weights
        for block in range(decoder["blocks"] + 1):
            names |= _module_names(f"decoder.levels.{place}", f"decoder.up.{level}.block.{block}")
            place += 1
            if level == lowest and decoder["attention"]:
                names |= _module_names(f"decoder.levels.{place}", f"decoder.up.{level}.attn.{block}")
                place += 1
    return names | {
        f"decoder.levels.{place}": "decoder.norm_out",
        f"decoder.levels.{place + 2}": "decoder.conv_out",
    }


def _module_names(ours: str, theirs: str) -> dict[str, str | tuple[str, ...]]:
    if "attn" in theirs:
        qkv = tuple(f"{theirs}.{part}" for part in "qkv")
        return {f"{ours}.norm": f"{theirs}.norm", f"{ours}.qkv": qkv, f"{ours}.out": f"{theirs}.proj_out"}
    parts = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.5": "conv2"}
    parts["shortcut"] = "nin_shortcut"
    return {f"{ours}.{part}": f"{theirs}.{name}" for part, name in parts.items()}


def generator_names(state: dict[str, Tensor]) -> dict[str, str | tuple[str, ...]]:
    """By our parameters' names the study's."""
    names = {"embedding.weight": "tok_emb.weight", "positions": "pos_emb", "bias": "bias"}
    names |= {f"stem.{place}": f"first_layer.{place}" for place in (0, 2, 4, 6)}
    names |= {f"norm.{place}": f"last_layer.{place}" for place in (0, 2, 4)}
    for number in range(_count(state, "transformer.layers.")):
        theirs = f"transformer.layers.{number}"
        names |= {f"blocks.{number}.{part}": f"{theirs}.{name}" for part, name in GENERATOR_BLOCK.items()}
        for kind in ("weight", "bias"):  # of q, k and v, which nn.MultiheadAttention has as no module
            names[f"blocks.{number}.attn.qkv.{kind}"] = f"{theirs}.0.fn.mha.in_proj_{kind}"
    return _with_weights_and_biases(names, state)


def _with_weights_and_biases(
    names: dict[str, str | tuple[str, ...]], state: dict[str, Tensor]
) -> dict[str, str | tuple[str, ...]]:
    """Names of parameters from those of modules, of which the state says what they have."""
    whole = {}
    for ours, theirs in names.items():
        parts = (theirs,) if isinstance(theirs, str) else theirs
        kinds = [kind for kind in ("weight", "bias") if f"{parts[0]}.{kind}" in state]
        for kind in kinds:
            whole[f"{ours}.{kind}"] = tuple(f"{part}.{kind}" for part in parts)
        if not kinds and parts[0] in state:
            whole[ours] = parts
    return whole


def _fill(
    network: torch.nn.Module,
    state: dict[str, Tensor],
    names: dict[str, tuple[str, ...]],
    path: str | Path,
) -> torch.nn.Module:
    """The network with the study's tensors. Raises UserError where a key lacks, is left over or misshapen."""
    own = network.state_dict()
    filled = {
        name: {key: state[key] for key in keys}
        for name, keys in names.items()
        if name in own and all(key in state for key in keys)
    }
    if "bias" in filled and state["bias"].shape[1:] == (own["bias"].shape[1] + 1,):
        filled["bias"] = {"bias": state["bias"][:, :-1]}  # without the logit of the mask
    if "encoder.pos_embed" in state:  # class token, patches and latents in one
        positions, split = state["encoder.pos_embed"], own["encoder.vit.pos_embed"].shape[1]
        filled["encoder.vit.pos_embed"] = {"encoder.pos_embed": positions[:, :split]}
        filled["encoder.latent_positions"] = {"encoder.pos_embed": positions[:, split:]}
    misshapen = [
        key
        for name, tensors in filled.items()
        for (key, tensor), part in zip(tensors.items(), own[name].chunk(len(tensors)))
        if _without_ones(tensor) != _without_ones(part)
    ]
    problems = {
        "lacks what fills": sorted(own.keys() - filled.keys()),
        "also holds": sorted(state.keys() - {key for tensors in filled.values() for key in tensors}),
        "has other shapes for": list(dict.fromkeys(misshapen)),
    }
    for problem, found in problems.items():
        if found:
            more = f" and {len(found) - 4} more" if len(found) > 4 else ""
            raise UserError(
                f"{path}: not the weights of its sizes: it {problem} {', '.join(found[:4])}{more}"
            )
    for name, tensors in filled.items():
        tensor = torch.cat(list(tensors.values())) if len(tensors) > 1 else next(iter(tensors.values()))
        own[name] = tensor.float().reshape(own[name].shape)
    network.load_state_dict(own)
    return network.eval()


def _without_ones(tensor: Tensor) -> list[int]:
    """A tensor's shape without axes of length 1, of which the study's parameters have more than ours."""
    return [length for length in tensor.shape if length != 1]
