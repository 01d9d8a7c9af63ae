"""Write a run's networks as files that need nothing of this project, for onnxruntime or for torch.export.

A tokenizer's are its encoder (images → codes) and decoder (codes → images), a generator's these two and its
step (codes with masked ones → logits). Each is compared with PyTorch before it is there, and timed beside it.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from data.frames import FrameDataset, collate_images, list_frames, to_unit_range
from errors import UserError, command
from files import remove_leftovers, remove_whole, write_whole
from models.elastic import ElasticTiTok
from models.maskgit import MaskGIT
from models.storage import fingerprint, load_tokenizer
from models.tokenizer import Tokenizer
from sizes import height_and_width
from training.finished import FinishedRun, load_with_tokenizer, read_run, tokenizer_of

ABOUT = "export.json"  # beside the files: what a program has to know of them
BATCHES = (1, 7)  # sizes in which images are compared
TOLERANCE = 1e-4  # of images and logits
NEAR_TIE = 1e-5  # of a latent's norm: so close to the border of two codes, float noise chooses
REPEATS = 5  # of which the median is the time


class Part(NamedTuple):
    """A network to export. Its inputs and its output have the batch first."""

    module: nn.Module
    inputs: dict[str, dict]  # what the sidecar says of each, in the order of the module's arguments
    outputs: dict[str, dict]


class Encoder(nn.Module):
    """A tokenizer's encode."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images)


class Decoder(nn.Module):
    """A tokenizer's decode."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, codes: Tensor) -> Tensor:
        return self.tokenizer.decode(codes)


@command
@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="a run folder, a tokenizer's or a generator's")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--out", type=Path, help="folder for the files; by default RUN/export/FORMAT")
    arguments = parser.parse_args()
    if arguments.format == "onnx":
        check_packages()
    for name in ("torch", "onnxscript", "onnx_ir"):  # they talk to their own developers
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    run = read_run(arguments.run)
    out = arguments.out or run.folder / "export" / arguments.format
    if out.exists() and not (out / ABOUT).is_file():
        raise UserError(f"--out {out}: is there already, and no export; name another folder")
    if run.is_generator:
        generator, tokenizer, _ = load_with_tokenizer(run)
    else:
        generator, tokenizer = None, load_tokenizer(run.folder)
    export(run, tokenizer, generator, arguments.format, out)


def export(run: FinishedRun, tokenizer: Tokenizer, generator: MaskGIT | None, format: str, out: Path) -> None:
    """Write the networks' files and what is to be known of them to `out`, whole or not at all.

    Raises UserError where one can't be exported, or is not what PyTorch has.
    """
    images, source = images_of(run, tokenizer)
    parts = parts_of(tokenizer, generator)
    examples = examples_of(tokenizer, generator, images)
    kind = FORMATS[format]
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out.parent)
    files, rows, compared = {}, [], {}
    with write_whole(out) as folder:
        folder.mkdir()
        for name, part in parts.items():
            path = folder / f"{name}{kind.suffix}"
            print(f"{name}: exporting", flush=True)
            try:
                kind.write(to_program(part, examples[name]), path, part)
                exported = kind.load(path)
            except Exception as error:  # of many kinds, and none is ours
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                raise UserError(
                    f"{run.folder}: its {name} can't be exported to {format} ({reason})"
                ) from error
            compared[name] = compare(name, part, exported, examples[name], tokenizer)
            size = sum(file.stat().st_size for file in folder.glob(f"{path.name}*"))  # with external weights
            rates = [images_per_second(each, examples[name]) for each in (exported, part.module)]
            rows.append((path.name, size / 1e6, *rates))
            files[name] = {"file": path.name, "inputs": part.inputs, "outputs": part.outputs}
        about = describe(run, tokenizer, generator) | {"files": files}
        about["compared_with_pytorch"] = {"on": source, "batch_sizes": BATCHES, **compared}
        (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        if out.exists():
            remove_whole(out)

    print(f"{out}: compared with PyTorch on {source}, in batches of {BATCHES[0]} and {BATCHES[1]}")
    for name, found in compared.items():
        shown = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in found.items())
        print(f"  {name}: {shown}")
    print(f"{'file':<14} {'MB':>8} {'images/s':>9} {'PyTorch':>9}  on {torch.get_num_threads()} CPU threads")
    for file, size, *rates in rows:
        print(f"{file:<14} {size:>8.1f} {rates[0]:>9.1f} {rates[1]:>9.1f}")


def parts_of(tokenizer: Tokenizer, generator: MaskGIT | None) -> dict[str, Part]:
    """What of the networks is exported, by the files' names."""
    height, width = height_and_width(tokenizer.image_size)
    last, count = tokenizer.codebook_size - 1, tokenizer.num_tokens
    images = {"dtype": "float32", "shape": ["batch", 3, height, width], "range": [0, 1]}
    codes = {"dtype": "int64", "shape": ["batch", count], "range": [0, last]}
    with_absent = codes | {"range": [0, last + 1]}  # or masked
    elastic = isinstance(tokenizer, ElasticTiTok)
    parts = {
        "encoder": Part(Encoder(tokenizer), {"images": images}, {"codes": codes}),
        "decoder": Part(Decoder(tokenizer), {"codes": with_absent if elastic else codes}, {"images": images}),
    }
    if generator is not None:
        inputs = {"tokens": with_absent}
        if generator.conditions:
            most = max(map(len, generator.conditions.values()))
            shape = ["batch", len(generator.conditions)]
            inputs["conditions"] = {"dtype": "int64", "shape": shape, "range": [0, most]}
        logits = {"dtype": "float32", "shape": ["batch", count, last + 1], "range": None}
        parts["step"] = Part(generator, inputs, {"logits": logits})
    return parts


def describe(run: FinishedRun, tokenizer: Tokenizer, generator: MaskGIT | None) -> dict:
    """What a program without this project has to know of the networks."""
    about = {
        "run": run.folder.resolve().name,
        "step": run.step,
        "tokenizer": {
            "kind": tokenizer.kind,
            "fingerprint": fingerprint(tokenizer_of(run) if run.is_generator else run.folder),
            "image_size": list(height_and_width(tokenizer.image_size)),
            "num_tokens": tokenizer.num_tokens,
            "codebook_size": tokenizer.codebook_size,
            "grid": tokenizer.grid and list(tokenizer.grid),
            "absent_token": tokenizer.codebook_size if isinstance(tokenizer, ElasticTiTok) else None,
        },
    }
    if generator is not None:
        about["generator"] = {
            "kind": generator.kind,
            "fingerprint": fingerprint(run.folder),
            "mask_token": generator.mask_token,
            # a column each: 0 where it is absent, otherwise 1 + the value's place
            "conditions": generator.conditions,
            "sampling": run.config.sampling.model_dump(),
        }
    return about


def images_of(run: FinishedRun, tokenizer: Tokenizer) -> tuple[Tensor, str]:
    """Images float (sum(BATCHES), 3, H, W) in [0, 1] to compare on, and what they are.

    They are the run's first validation frames, and where there are too few, made pictures of smooth colours.
    """
    count, size = sum(BATCHES), height_and_width(tokenizer.image_size)
    data = run.config.data
    try:
        listed = list_frames(data.frames, "val", **data.val.model_dump())[:count]
    except (UserError, OSError):
        listed = []
    dataset = FrameDataset(Path(data.frames) / "val", listed, size, data.resize)
    frames = collate_images([dataset[place] for place in range(len(listed))]).images
    missing = count - len(frames)
    coarse = torch.rand(missing, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    made = F.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    if not len(frames):
        return made, f"{missing} made images (no validation frames at {data.frames})"
    source = f"{len(frames)} validation frames" + (f" and {missing} made images" if missing else "")
    return torch.cat([to_unit_range(frames, torch.device("cpu")), made]), source


def examples_of(tokenizer: Tokenizer, generator: MaskGIT | None, images: Tensor) -> dict[str, tuple]:
    """Inputs of each part: the images, their codes, and these with a rising share of masked ones.

    An elastic tokenizer's decoder gets rising lengths, a generator random conditions.
    """
    codes = tokenizer.encode(images)
    shares = torch.arange(1, 1 + len(images)) / len(images)
    examples = {"encoder": (images,), "decoder": (codes,)}
    if isinstance(tokenizer, ElasticTiTok):
        lengths = (shares * tokenizer.num_tokens).ceil().long()
        examples["decoder"] = (tokenizer.shorten(codes, lengths),)
    if generator is not None:
        rng = torch.Generator().manual_seed(0)
        masked = torch.rand(codes.shape, generator=rng) < shares[:, None]
        examples["step"] = (codes.masked_fill(masked, generator.mask_token),)
        if generator.conditions:
            columns = [
                torch.randint(1 + len(values), (len(images),), generator=rng)
                for values in generator.conditions.values()
            ]
            examples["step"] += (torch.stack(columns, dim=1),)
    return examples


def compare(
    name: str, part: Part, exported: Callable[..., Tensor], inputs: tuple[Tensor, ...], tokenizer: Tokenizer
) -> dict[str, float]:
    """How the exported part's outputs differ from PyTorch's. Raises UserError where that is no float noise.

    A code may be another one only where float noise chooses between the two.
    """
    largest, other, ties = 0.0, 0, 0
    for batch in zip(*(each.split(BATCHES) for each in inputs)):
        ours, theirs = part.module(*batch), exported(*batch)
        if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
            raise UserError(
                f"{name}: exported, it gives {tuple(theirs.shape)}, not {tuple(ours.shape)}; removed"
            )
        if ours.is_floating_point():
            largest = max(largest, (theirs - ours).abs().nan_to_num(torch.inf).max().item())
        elif not torch.equal(ours, theirs):
            differ = ours != theirs
            latents = tokenizer.quantizer(tokenizer.to_latents(*batch)).latents[differ]
            vectors = [tokenizer.quantizer.lookup(each[differ]) for each in (ours, theirs)]
            near = int(are_near_ties(latents, *vectors).sum())
            ties, other = ties + near, other + int(differ.sum()) - near
    if other:
        raise UserError(f"{name}: exported, it gives {other} other codes than PyTorch; removed")
    if largest > TOLERANCE:
        raise UserError(
            f"{name}: exported, it differs from PyTorch by {largest:.2g} (> {TOLERANCE}); removed"
        )
    if name == "encoder":
        total = len(inputs[0]) * tokenizer.num_tokens
        return {"codes": total, "near_ties_with_another_code": ties}
    return {"largest_difference": largest}


def are_near_ties(latents: Tensor, codes: Tensor, others: Tensor) -> Tensor:
    """Whether latents (N, D), nearest to `codes`, are by float noise nearest to `others`: bool (N,).

    Noise moves a latent by NEAR_TIE, and its squared distances by some roundings.
    """
    latents, codes, others = latents.double(), codes.double(), others.double()
    further = (latents - others).square().sum(dim=1) - (latents - codes).square().sum(dim=1)
    moved = 2 * NEAR_TIE * latents.norm(dim=1).clamp(min=1) * (codes - others).norm(dim=1)
    rounded = 4 * torch.finfo(torch.float32).eps * (latents.square() + codes.square()).sum(dim=1)
    return further <= moved + rounded


def images_per_second(network: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> float:
    """How many images a network takes in a second in a batch of all inputs, the median of REPEATS."""
    network(*inputs)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        network(*inputs)
        times.append(time.perf_counter() - start)
    return len(inputs[0]) / statistics.median(times)


def to_program(part: Part, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """The part as a program for a batch of any size, with nothing but what it needs.

    What torch leaves in it besides are the weights of the whole model, the inputs, pictures perhaps, and the
    names of this machine's folders.
    """
    shapes = tuple({0: Dim("batch", min=1)} for _ in inputs)
    program = torch.export.export(part.module, inputs, dynamic_shapes=shapes, strict=True)
    used = {each.target for each in program.graph_signature.input_specs}
    for name in program.state_dict.keys() - used:
        del program.state_dict[name]
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def check_packages() -> None:
    """Raise UserError where a package of requirements-export.txt isn't installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--format onnx needs {error.name}: pip install -r requirements-export.txt"
        ) from error


def write_onnx(program: ExportedProgram, path: Path, part: Part) -> None:
    """Write an ONNX file, whose inputs and outputs have the part's names."""
    names = {"input_names": [*part.inputs], "output_names": [*part.outputs]}
    batch = tuple({0: "batch"} for _ in part.inputs)
    torch.onnx.export(program, f=path, dynamic_shapes=batch, external_data=False, verbose=False, **names)


def load_onnx(path: Path) -> Callable[..., Tensor]:
    """An ONNX file's network in onnxruntime, on as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        (output,) = session.run(None, {name: each.numpy() for name, each in zip(names, inputs)})
        return torch.from_numpy(output)

    return run


def write_program(program: ExportedProgram, path: Path, part: Part) -> None:
    """Write a torch.export program."""
    torch.export.save(program, path)


def load_program(path: Path) -> Callable[..., Tensor]:
    """A torch.export program's module."""
    return torch.export.load(path).module()


class Format(NamedTuple):
    """How a kind of file is written and run."""

    suffix: str
    write: Callable[[ExportedProgram, Path, Part], None]
    load: Callable[[Path], Callable[..., Tensor]]


FORMATS = {
    "onnx": Format(".onnx", write_onnx, load_onnx),
    "torch": Format(".pt2", write_program, load_program),
}


if __name__ == "__main__":
    main()
