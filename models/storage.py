"""Models on disk and on the Hub: a folder with config.json and model.safetensors."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from errors import UserError
from files import write_whole
from models import study_checkpoints, titok_original
from models.elastic import ElasticTiTok
from models.maskgit import MaskGIT
from models.maskgit_as_run import MaskGITAsRun
from models.titok import TiTok
from models.tokenizer import Tokenizer
from models.vqgan import VQGAN

TOKENIZERS = {network.kind: network for network in (TiTok, ElasticTiTok, titok_original.TwoStageTiTok, VQGAN)}
GENERATORS = {network.kind: network for network in (MaskGIT, MaskGITAsRun)}

LARGEST = {"depth": 1024, "blocks": 1024, "width": 2**14, "channels": 2**14, "image_size": 2**13, "": 2**24}
CHECKSUM, PROVENANCE = "weights_sha256", "provenance"  # in config.json, beside the architecture


def build_tokenizer(config: dict) -> Tokenizer:
    """The tokenizer that `config` describes: its `kind`, and the constructor's arguments of that kind.

    Raises UserError where it describes none.
    """
    return _build(TOKENIZERS, config)


def build_generator(config: dict) -> MaskGIT:
    """The generator that `config` describes: its `kind`, and the constructor's arguments of that kind.

    Raises UserError where it describes none.
    """
    return _build(GENERATORS, config)


def _build(kinds: dict[str, type[nn.Module]], config: dict) -> nn.Module:
    try:
        _check_sizes(config)
        return kinds[config["kind"]](**_arguments(config))
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError) as error:
        # Whatever a wrong description makes of itself: it is a file's, and anybody's.
        raise UserError(
            f"describes no model ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    except RuntimeError as error:
        raise UserError(f"describes a model that can't be had ({str(error).splitlines()[0]})") from error


def _check_sizes(config: object) -> None:
    """Raise ValueError where a number is so large that building would take all memory, or for ever."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if name not in (CHECKSUM, PROVENANCE, "conditions"):
            most = LARGEST.get(name, LARGEST[""])
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int | float) and not abs(number) <= most:
                    raise ValueError(f"{name} {number} is more than {most:,}")
            _check_sizes(value)


def save_model(model: nn.Module, folder: str | Path, **provenance: str) -> None:
    """Write a model as save_weights does."""
    save_weights(model.config, model.state_dict(), folder, **provenance)


def save_weights(config: dict, weights: dict[str, Tensor], folder: str | Path, **provenance: str) -> None:
    """Write a model's config and weights to the folder's config.json and model.safetensors, each whole.

    provenance: where the weights come from (the step, …), kept in config.json and read by read_provenance.
    config.json has, too, the SHA-256 of the weights' file, which is the same for the same weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.safetensors"
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with write_whole(file) as part:
        save_file(state, part, metadata={"format": "pt"})  # of more entries the order would be any
        config = {**config, PROVENANCE: provenance, CHECKSUM: _sha256(part)}
    with write_whole(folder / "config.json") as part:
        part.write_text(json.dumps(config, indent=2) + "\n")


def model_is_of(folder: str | Path, step: str) -> bool:
    """Whether a whole model of that step's weights is in the folder."""
    try:
        config = _read_config(Path(folder))
        return config[CHECKSUM] == fingerprint(folder) and read_provenance(folder).get("step") == step
    except (UserError, KeyError, OSError, SafetensorError):
        return False


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
    if config.get("kind") not in list(TOKENIZERS):
        raise UserError(f"{folder}: a {config.get('kind')} model, not a tokenizer ({', '.join(TOKENIZERS)})")
    return _with_weights(build_tokenizer, config, folder)


def load_generator(name: str | Path) -> MaskGIT:
    """The generator of a run folder, a model folder or a Hub id, in eval mode on the CPU.

    The study's own are read from their `.ckpt` files. Raises UserError where there is none, or it is
    something else.
    """
    if Path(name).suffix == study_checkpoints.SUFFIX:
        return study_checkpoints.load_study_generator(name)
    folder = model_folder(name)
    config = _read_config(folder)
    if config.get("kind") not in list(GENERATORS):
        raise UserError(f"{folder}: a {config.get('kind')} model, not a generator ({', '.join(GENERATORS)})")
    return _with_weights(build_generator, config, folder)


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
        before = file.metadata() or {}  # where it was written before
    return _read_config(Path(folder)).get(PROVENANCE, before)


def fingerprint(name: str | Path) -> str:
    """SHA-256, in hex, of the weights' file of what load_tokenizer or load_generator takes."""
    single = Path(name).suffix in (".bin", study_checkpoints.SUFFIX)
    path = Path(name) if single else model_folder(name) / "model.safetensors"
    return _sha256(path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _arguments(config: dict) -> dict:
    return {key: value for key, value in config.items() if key not in ("kind", CHECKSUM, PROVENANCE)}


def _read_config(folder: Path) -> dict:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: describes no model, it is a {type(config).__name__}")
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not readable ({str(error).splitlines()[0]})") from error


def _with_weights(build: Callable[[dict], nn.Module], config: dict, folder: Path) -> nn.Module:
    file, checksum = folder / "model.safetensors", config.get(CHECKSUM)
    if checksum is not None and file.exists() and _sha256(file) != checksum:
        raise UserError(f"{file}: damaged, or of another model: not what its config.json was written with")
    try:
        model = build(config)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error
    try:
        model.load_state_dict(_read_weights(folder))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: not the weights of its config ({reason})") from error
    return model.eval()
