"""Make a run of a checkpoint of the study's own, to be evaluated, sampled and reported with nothing trained.

python import_study.py --checkpoint mae_64/checkpoints/last.ckpt --out runs/as_run_mae_64
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import torch

from errors import UserError, command
from models.encoder_as_run import LOST, UNNAMED
from models.storage import fingerprint, load_generator, load_tokenizer, save_model
from models.study_checkpoints import read_checkpoint
from models.titok import TiTok
from models.tokenizer import Tokenizer
from training.cells import CONFIGS, cells_of, is_generator, read_cell
from training.config import GeneratorConfig, TokenizerConfig, load_config, save_config


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="a tokenizer's or a generator's last.ckpt")
    add("--out", type=Path, required=True, help="the run's folder, which is made")
    add("--frames", help="folder of frames to evaluate on; by default the config's")
    add("--tokenizer", type=Path, help="of a generator: the run of its tokenizer; by default made, too")
    add("--init", choices=[*LOST], help="what the encoder started from, where no config.yaml says it")
    arguments = parser.parse_args()
    checkpoint = read_checkpoint(arguments.checkpoint)
    check_new(arguments.out)
    placed = [f"data.frames={quoted(arguments.frames)}"] if arguments.frames else []
    if not checkpoint.is_generator:
        if arguments.tokenizer:
            raise UserError(f"--tokenizer: {arguments.checkpoint} is a tokenizer's; it is for a generator's")
        tokenizer = named_tokenizer(arguments)
        config = tokenizer_config(tokenizer, checkpoint.updates, arguments.out, placed)
        write_run(config, tokenizer, arguments.out, checkpoint.updates)
        return

    folder = arguments.tokenizer or arguments.out.with_name(f"{arguments.out.name}_tokenizer")
    generator = load_generator(arguments.checkpoint)
    sizes = {name: generator.config[name] for name in ("width", "depth", "heads")}
    overrides = [*place(arguments.out), *placed, f"tokenizer={quoted(folder)}", f"model={json.dumps(sizes)}"]
    config = load_config(CONFIGS / "as_run" / "maskgit.yaml", GeneratorConfig, overrides)
    if arguments.tokenizer:
        check_same(load_tokenizer(arguments.checkpoint), load_tokenizer(folder), folder)
    else:
        check_new(folder)
        tokenizer = named_tokenizer(arguments)
        write_run(tokenizer_config(tokenizer, None, folder, placed), tokenizer, folder, 0)
    write_run(config, generator, arguments.out, checkpoint.updates, tokenizer_sha256=fingerprint(folder))


def check_new(folder: Path) -> None:
    """Raise UserError where a run's folder can't be made."""
    if folder.exists() or not folder.name:
        raise UserError(f"{folder}: is there already; name another --out")


def named_tokenizer(arguments: argparse.Namespace) -> TiTok:
    """The checkpoint's tokenizer, whose encoder's source is known. Raises UserError where it isn't."""
    tokenizer = load_tokenizer(arguments.checkpoint)
    encoder = tokenizer.config["encoder"]
    if arguments.init and encoder["init"] not in (UNNAMED, arguments.init):
        known = {"none": "is from scratch"}.get(encoder["init"], f"started from {encoder['init']}")
        raise UserError(f"--init {arguments.init}: the encoder of {arguments.checkpoint} {known}")
    if encoder["init"] == UNNAMED:
        if not arguments.init:
            raise UserError(
                f"{arguments.checkpoint}: no config.yaml of its tokenizer's says what the encoder started "
                f"from; say it with --init"
            )
        encoder["init"] = arguments.init
    return tokenizer


def tokenizer_config(
    tokenizer: TiTok, updates: int | None, folder: Path, placed: list[str]
) -> TokenizerConfig:
    """The config of the study's training that a tokenizer is of, or comes nearest to.

    Of several of its architecture it is the one with about as many updates. Where these are not known, as in
    a generator's file, it is the first in the study's order, which is what its generators are trained on.
    """
    overrides = [*place(folder), *placed]
    base = "tokenizer" if tokenizer.config["encoder"]["init"] == "none" else "with_weights"
    sizes = f"model={json.dumps(tokenizer.config)}"
    config = load_config(CONFIGS / "as_run" / f"{base}.yaml", TokenizerConfig, [*overrides, sizes])
    same = [
        cell
        for cell in cells_of("as_run")
        if not is_generator(cell) and read_cell(cell).model.architecture() == config.model.architecture()
    ]
    if not same:
        return config
    if updates is not None:
        same.sort(key=lambda cell: abs(steps_of(cell) - updates))
    return load_config(CONFIGS / f"{same[0]}.yaml", TokenizerConfig, overrides)


def steps_of(cell: str) -> float:
    """How many updates a tokenizer's training has."""
    config = read_cell(cell)
    return config.training.epochs * config.data.train.count / config.training.global_batch_size


def place(folder: Path) -> list[str]:
    """What puts a run into a folder."""
    return [f"run.name={quoted(folder.name)}", f"run.dir={quoted(folder.parent)}"]


def quoted(text: str | Path) -> str:
    """A text as a config's value, whatever YAML would take it for."""
    return json.dumps(str(text), ensure_ascii=False)


def check_same(tokenizer: TiTok, other: Tokenizer, folder: Path) -> None:
    """Raise UserError where a tokenizer isn't the one that a generator's checkpoint holds.

    Codes are compared as they are used: those of the generator's file were normalised once more.
    """
    ours, theirs = (
        {**each.state_dict(), "quantizer.codebook": each.quantizer.codes_as_used()}
        for each in (tokenizer, other)
    )
    if ours.keys() != theirs.keys() or any(
        ours[name].shape != theirs[name].shape or not torch.allclose(ours[name], theirs[name], atol=1e-6)
        for name in ours
    ):
        raise UserError(f"{folder}: not the tokenizer that the generator's checkpoint holds")


def write_run(
    config: TokenizerConfig | GeneratorConfig, network: torch.nn.Module, folder: Path, step: int, **more: str
) -> None:
    """Write the folder of a run whose training is behind it, whole or not at all."""
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        save_model(network, part / "model", step=str(step), **more)
        save_config(config, part / "config.yaml")
        os.rename(part, folder)
    except OSError as error:
        raise UserError(f"{folder}: can't be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    updates = f"{step:,}" if step else "an unknown number of"
    print(f"{folder}: {network.kind} after {updates} updates")


if __name__ == "__main__":
    main()
