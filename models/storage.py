"""Models on disk and on the Hub: a folder with config.json and model.safetensors."""

import hashlib
import json
import os
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from errors import UserError
from models import study_checkpoints, titok_original
from models.maskgit import MaskGIT
from models.maskgit_as_run import MaskGITAsRun
from models.titok import TiTok
from models.tokenizer import Tokenizer
from models.vqgan import VQGAN

TOKENIZERS = {network.kind: network for network in (TiTok, titok_original.TwoStageTiTok, VQGAN)}
GENERATORS = {network.kind: network for network in (MaskGIT, MaskGITAsRun)}


def build_tokenizer(config: dict) -> Tokenizer:
    """The tokenizer that `config` describes: its `kind`, and the constructor's arguments of that kind."""
    return TOKENIZERS[config["kind"]](**_arguments(config))


def build_generator(config: dict) -> MaskGIT:
    """The generator that `config` describes: its `kind`, and the constructor's arguments of that kind."""
    return GENERATORS[config["kind"]](**_arguments(config))


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

    The TiTok authors' own (github.com/bytedance/1d-tokenizer) are read as they published them: a folder or a
    Hub id, or a `.bin` file with its config beside it. So are the study's (models.study_checkpoints): a
    `.ckpt` file, a generator's too. Raises UserError where there is no tokenizer.
    """
    if Path(name).suffix == study_checkpoints.SUFFIX:
        return study_checkpoints.load_study_tokenizer(name)
    if Path(name).suffix == ".bin":
        return titok_original.convert(*titok_original.read_bin(name), name).eval()
    folder = model_folder(name)
    config = _read_config(folder)
    if titok_original.is_original(config):
        return titok_original.convert(config, _read_weights(folder), folder).eval()
    if config.get("kind") not in TOKENIZERS:
        raise UserError(f"{folder}: a {config.get('kind')} model, not a tokenizer ({', '.join(TOKENIZERS)})")
    return _with_weights(build_tokenizer(config), folder)


def load_generator(name: str | Path) -> MaskGIT:
    """The generator of a run folder, a model folder or a Hub id, in eval mode on the CPU.

    The study's own are read from their `.ckpt` files. Raises UserError where there is none, or it is
    something else.
    """
    if Path(name).suffix == study_checkpoints.SUFFIX:
        return study_checkpoints.load_study_generator(name)
    folder = model_folder(name)
    config = _read_config(folder)
    if config.get("kind") not in GENERATORS:
        raise UserError(f"{folder}: a {config.get('kind')} model, not a generator ({', '.join(GENERATORS)})")
    return _with_weights(build_generator(config), folder)


def model_folder(name: str | Path) -> Path:
    """The local folder with config.json of a run, a model folder or a Hub id, which is downloaded."""
    for folder in (Path(name) / "model", Path(name)):
        if (folder / "config.json").is_file():
            return folder
    if Path(name).exists():
        raise UserError(f"{name}: holds no model yet (no model/config.json); train it first")
    try:
        return Path(snapshot_download(str(name), allow_patterns=["config.json", "model.safetensors"]))
    except (HTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{name}: no such run or model folder, and not to be had from the Hub ({type(error).__name__})"
        ) from error


def read_provenance(folder: str | Path) -> dict[str, str]:
    """What was noted with a model folder's weights: `step`, and a generator's `tokenizer_sha256`."""
    with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
        return file.metadata() or {}


def fingerprint(name: str | Path) -> str:
    """SHA-256, in hex, of the weights' file of what load_tokenizer or load_generator takes."""
    single = Path(name).suffix in (".bin", study_checkpoints.SUFFIX)
    path = Path(name) if single else model_folder(name) / "model.safetensors"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _arguments(config: dict) -> dict:
    return {key: value for key, value in config.items() if key != "kind"}


def _read_config(folder: Path) -> dict:
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'}: not readable ({error})") from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not readable ({str(error).splitlines()[0]})") from error


def _with_weights(model: nn.Module, folder: Path) -> nn.Module:
    try:
        model.load_state_dict(_read_weights(folder))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder / 'model.safetensors'}: not the weights of its config ({reason})"
        ) from error
    return model.eval()
