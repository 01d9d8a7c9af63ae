"""Models on disk and on the Hub: a folder with config.json and model.safetensors."""

import hashlib
import json
import os
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from errors import UserError
from models.maskgit import MaskGIT
from models.titok import TiTok
from models.tokenizer import Tokenizer

TOKENIZERS = {TiTok.kind: TiTok}


def build_tokenizer(config: dict) -> Tokenizer:
    """The tokenizer that `config` describes: its `kind`, and the constructor's arguments of that kind."""
    arguments = {key: value for key, value in config.items() if key != "kind"}
    return TOKENIZERS[config["kind"]](**arguments)


def save_model(model: nn.Module, folder: str | Path, **provenance: str) -> None:
    """Write `model.config` and the weights to the folder's config.json and model.safetensors, each whole.

    provenance: where the weights come from (the step, …), kept in their file and read by read_provenance.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights, config = folder / "model.safetensors", folder / "config.json"
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, f"{weights}.part", metadata={"format": "pt", **provenance})
    Path(f"{config}.part").write_text(json.dumps(model.config, indent=2) + "\n")
    os.replace(f"{weights}.part", weights)
    os.replace(f"{config}.part", config)


def load_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer of a run folder, a model folder or a Hub id, in eval mode on the CPU.

    Raises UserError where there is none, or it is something else.
    """
    folder = model_folder(name)
    config = _read_config(folder)
    if config.get("kind") not in TOKENIZERS:
        raise UserError(f"{folder}: a {config.get('kind')} model, not a tokenizer ({', '.join(TOKENIZERS)})")
    return _with_weights(build_tokenizer(config), folder)


def load_generator(name: str | Path) -> MaskGIT:
    """The generator of a run folder, a model folder or a Hub id, in eval mode on the CPU.

    Raises UserError where there is none, or it is something else.
    """
    folder = model_folder(name)
    config = _read_config(folder)
    if config.get("kind") != MaskGIT.kind:
        raise UserError(f"{folder}: a {config.get('kind')} model, not a generator ({MaskGIT.kind})")
    return _with_weights(MaskGIT(**{key: value for key, value in config.items() if key != "kind"}), folder)


def model_folder(name: str | Path) -> Path:
    """The local folder with config.json of a run, a model folder or a Hub id, which is downloaded."""
    for folder in (Path(name) / "model", Path(name)):
        if (folder / "config.json").is_file():
            return folder
    if Path(name).exists():
        raise UserError(f"{name}: holds no model yet (no model/config.json); train it first")
    try:
        return Path(snapshot_download(str(name), allow_patterns=["config.json", "model.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{name}: no such run or model folder, and not to be had from the Hub ({type(error).__name__})"
        ) from error


def read_provenance(folder: str | Path) -> dict[str, str]:
    """What was noted with a model folder's weights: `step`, and a generator's `tokenizer_sha256`."""
    with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
        return file.metadata() or {}


def fingerprint(folder: str | Path) -> str:
    """SHA-256 of a model folder's weights, in hex."""
    with open(Path(folder) / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_config(folder: Path) -> dict:
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'}: not readable ({error})") from error


def _with_weights(model: nn.Module, folder: Path) -> nn.Module:
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder / 'model.safetensors'}: not the weights of its config ({reason})"
        ) from error
    return model.eval()
