"""Features of generated images, kept in parts until they are used, so that an interruption costs little."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from evaluation.frames import ValidationFrames
from files import holding
from metrics import as_run
from metrics import features as feature_files
from metrics.features import FeatureSet, load_features, save_features
from models.maskgit import MaskGIT
from models.storage import fingerprint
from models.tokenizer import Tokenizer
from training.finished import guide_of, tokenizer_of
from training.tokens import labels_fingerprint


@contextmanager
def generated_features(
    frames: ValidationFrames,
    generator: MaskGIT,
    tokenizer: Tokenizer,
    extractors: list[nn.Module],
    sampling: dict,
) -> Iterator[dict[str, Tensor]]:
    """Generate images, and give their features (n, dim) by extractor, on the main process; elsewhere none.

    Image i is generated under the i-th real frame's conditions, over and over where there are fewer frames.
    sampling: options of MaskGIT.fill_steps. Parts that an earlier evaluation left when it was interrupted
    are taken as they are; all of them go when the `with` ends well.
    """
    accelerator, run = frames.accelerator, frames.run
    num, chunk = num_images(frames), feature_files.CHUNK
    folder = run.folder / "eval" / f".generated-{key_of(frames, generator, extractors, sampling)}"
    paths = {start: folder / f"{start:09d}.npz" for start in range(0, num, chunk)}
    with ExitStack() as held:
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(holding(folder / ".lock", f"{run.folder}: this evaluation"))
        accelerator.wait_for_everyone()
        generate_parts(frames, generator, tokenizer, extractors, sampling, paths)
        made = {}
        if accelerator.is_main_process:
            parts = [load_features(path) for path in paths.values()]
            made = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        yield made
        if accelerator.is_main_process:
            shutil.rmtree(folder)


def num_images(frames: ValidationFrames) -> int:
    """How many images to generate."""
    return frames.arguments.num or len(frames.listed)


def key_of(frames: ValidationFrames, generator: MaskGIT, extractors: list[nn.Module], sampling: dict) -> str:
    """A key of all that features of generated images follow from: the weights, and all options."""
    run, arguments = frames.run, frames.arguments
    options = {name: value for name, value in sampling.items() if name != "guide"}
    recipe = [fingerprint(run.folder), fingerprint(tokenizer_of(run)), options, arguments.seed]
    recipe += [num_images(frames), feature_files.CHUNK, *sorted(each.name for each in extractors)]
    recipe += [as_run.SUFFIX] if arguments.as_run else []
    recipe += [arguments.precision] if arguments.precision != "fp32" else []
    if generator.conditions:
        recipe.append(labels_fingerprint(frames.listed, list(generator.conditions)))
    recipe += [fingerprint(guide_of(run))] if sampling["guide"] else []
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]


def generate_parts(
    frames: ValidationFrames,
    generator: MaskGIT,
    tokenizer: Tokenizer,
    extractors: list[nn.Module],
    sampling: dict,
    paths: dict[int, Path],
) -> None:
    """Generate images, each process its share, and keep features in files by the first image's number."""
    accelerator, arguments = frames.accelerator, frames.arguments
    num, chunk = num_images(frames), feature_files.CHUNK
    missing = [start for start, path in paths.items() if not path.exists()]
    accelerator.wait_for_everyone()  # nobody writes one before all have seen which are missing
    if len(missing) < len(paths):
        accelerator.print(
            f"{frames.run.folder}: {len(paths) - len(missing)} of {len(paths)} parts are generated"
        )
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    conditions = frames.conditions(generator)
    for start in tqdm(mine, desc="generated", unit="part", disable=not accelerator.is_main_process):
        made = FeatureSet(extractors)
        end = min(start + chunk, num)
        for first in range(start, end, arguments.batch_size):
            size = min(arguments.batch_size, end - first)
            asked = conditions[torch.arange(first, first + size) % len(conditions)]
            codes = generator.generate(
                num=size, conditions=asked, seed=arguments.seed, first_index=first, **sampling
            )
            if arguments.as_run:  # the script takes what is in [0, 1] for images in [-1, 1]
                made.update(as_run.saved(tokenizer.to_images(tokenizer.quantizer.lookup(codes))))
            else:
                made.update(tokenizer.decode(codes))
        save_features(paths[start], made.features())
    accelerator.wait_for_everyone()
