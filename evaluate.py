"""Measure a run's model over its validation frames; each result is a file under runs/<run>/eval/."""

import argparse
import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from tqdm import tqdm

from data.frames import (
    FrameDataset,
    content_fingerprint,
    evaluation_loader,
    frames_fingerprint,
    list_frames,
    to_unit_range,
)
from errors import UserError, command
from files import holding, remove_leftovers, write_whole
from metrics import as_run
from metrics import features as feature_files
from metrics.codebook import CodebookUsage
from metrics.dinov2 import DINOv2Features
from metrics.distribution import inception_score, kernel_distance, precision_recall
from metrics.features import FeatureCache, FeatureSet, load_features, save_features
from metrics.frechet import frechet_distance
from metrics.inception import InceptionFeatures, RandomInceptionFeatures
from metrics.similarity import MeanSimilarity, psnr, ssim
from models.editing import (
    MASK_RATIOS,
    change_by_region,
    random_box,
    random_masks,
    share_inside,
    token_influence,
    tokens_of_box,
)
from models.maskgit import MaskGIT
from models.perceptual import LPIPS
from models.storage import fingerprint, load_tokenizer
from models.tokenizer import Tokenizer
from options import number
from training.card import write_card
from training.finished import (
    FinishedRun,
    list_runs,
    load_with_tokenizer,
    newest_run,
    read_run,
    tokenizer_of,
)
from training.precision import PRECISIONS, computing_in
from training.speed import compile_for
from training.tokens import condition_array, labels_fingerprint

OF_BOTH = ("isc", "kid", "prc", "fd_dinov2")
OF_TOKENIZERS = ("rfid", *OF_BOTH, "psnr", "ssim", "lpips", "codebook")
OF_GENERATORS = ("gfid", *OF_BOTH, "fill", "locality")
NOT_OF_ALL = ("fill", "locality")
OF_INCEPTION = ("rfid", "gfid", "isc", "kid", "prc", "fill")
# Distances of features with random weights have names of their own.
RANDOM_NAMES = {"rfid": "fd_random", "gfid": "fd_random", "kid": "kid_random", "prc": "prc_random"}
FRAMES_TO_EDIT = 64  # of --locality, without --num
FEW_IMAGES = 10_000  # features of fewer give a biased value; it compares only with one of as many


@command
def main() -> None:
    arguments = parse_arguments()
    accelerator = Accelerator()
    failures = []
    for run, metrics in what_to_do(arguments):
        results = run.folder / "eval"
        if accelerator.is_main_process and results.is_dir() and os.access(results, os.W_OK):
            remove_leftovers(results)
        measure = measure_generator if run.is_generator else measure_tokenizer
        with torch.inference_mode(), computing_in(arguments.precision, accelerator.device):
            measure(accelerator, run, metrics, arguments, failures)
        if accelerator.is_main_process:
            try:
                write_card(run.folder)
            except OSError as error:
                failures.append(f"{run.folder}'s card: not written ({error.strerror})")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if failures:
        raise UserError("; ".join(failures))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in dict.fromkeys(OF_TOKENIZERS + OF_GENERATORS):
        parser.add_argument(option(name), action="append_const", dest="metrics", const=name, default=[])
    parser.add_argument(
        "--all", action="store_true", help="every metric that suits the run, but --fill and --locality"
    )
    parser.add_argument(
        "--as-run",
        action="store_true",
        help="--rfid, --gfid and --codebook as the study's scripts measure them, on 1,000 images and under "
        f"names of their own: rfid{as_run.SUFFIX}, …",
    )
    parser.add_argument("--run", help="a run folder; by default the newest under --runs")
    parser.add_argument("--runs", default="runs", help="folder of runs")
    parser.add_argument("--frames", help="folder of frames; by default the run's own")
    parser.add_argument(
        "--num",
        type=number(1),
        help="images to generate, by default as many as real ones; frames for --locality to edit, by default "
        f"at most {FRAMES_TO_EDIT}",
    )
    parser.add_argument(
        "--seed", type=number(0, 2**62), default=0, help="of generation, --fill's masks, --locality's boxes"
    )
    parser.add_argument(
        "--mask-ratio", type=float, action="append", help="of --fill, repeatable; by default four up to 1"
    )
    parser.add_argument("--batch-size", type=number(1), default=256 if torch.cuda.is_available() else 32)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the run's networks, and with tf32 of the metrics' too",
    )
    parser.add_argument("--workers", type=number(0, 1000), default=min(8, os.cpu_count() or 1))
    parser.add_argument("--feature-extractor", choices=["inception", "random-inception"], default="inception")
    parser.add_argument("--inception-weights", help="torch-fidelity's InceptionV3 file")
    parser.add_argument("--dinov2-weights", help="DINOv2's ViT-L/14 file, the authors' or timm's")
    parser.add_argument("--lpips-weights", help="torchvision's VGG16 file")
    arguments = parser.parse_args()
    if not arguments.metrics and not arguments.all:
        parser.error("name at least one metric, or --all")
    others = [name for name in arguments.metrics if name not in as_run.METRICS]
    if arguments.as_run and (others or arguments.all):
        other = option(others[0]) if others else "--all"
        parser.error(f"--as-run is for {', '.join(map(option, as_run.METRICS))}; {other} has no such measure")
    for ratio in arguments.mask_ratio or []:
        if not 0 < ratio <= 1:
            parser.error(f"--mask-ratio {ratio}: a share of tokens is above 0 and at most 1")
    return arguments


def what_to_do(arguments: argparse.Namespace) -> list[tuple[FinishedRun, list[str]]]:
    """The runs to measure, each with its metrics.

    Without --run it is the newest run of each kind that the metrics call for; ones that suit both kinds, and
    --all, go to those kinds that there are.
    """
    suited = {False: OF_TOKENIZERS, True: OF_GENERATORS}  # by whether a run is a generator's
    if arguments.run:
        run = read_run(arguments.run)
        for name in arguments.metrics:
            if name not in suited[run.is_generator]:
                kind = "a generator" if run.is_generator else "a tokenizer"
                known = ", ".join(map(option, suited[run.is_generator]))
                raise UserError(f"{option(name)}: {run.folder} is {kind}'s run; it has {known}")
        runs = [run]
    else:
        kinds = [kind for kind in suited if set(arguments.metrics) & set(suited[kind]) - set(OF_BOTH)]
        if arguments.all or not kinds:
            kinds = sorted({run.is_generator for run in list_runs(arguments.runs)[0]}) or [False]
        runs = [newest_run(arguments.runs, kind) for kind in kinds]
    asked = set(arguments.metrics)
    if arguments.all:
        asked |= set(OF_TOKENIZERS + OF_GENERATORS) - set(NOT_OF_ALL)
    return [(run, [name for name in suited[run.is_generator] if name in asked]) for run in runs]


# --- the passes over images ---------------------------------------------------------------------------------


def measure_tokenizer(
    accelerator: Accelerator,
    run: FinishedRun,
    metrics: list[str],
    arguments: argparse.Namespace,
    failures: list[str],
) -> None:
    """All of a tokenizer's metrics from one pass over the validation frames and their reconstructions."""
    extractors = build_extractors(accelerator, metrics, arguments, failures)
    similarities = build_similarities(accelerator, metrics, arguments, failures)
    if not extractors and not similarities and "codebook" not in metrics:
        return
    tokenizer = load_tokenizer(run.folder).to(accelerator.device)
    usage = CodebookUsage(tokenizer.codebook_size, accelerator.device)
    frames = ValidationFrames(accelerator, run, tokenizer.image_size, arguments, failures)
    compile_for(len(frames.listed), tokenizer)
    kept, real = frames.features(extractors)
    made = FeatureSet(unique(extractors))
    count = 0
    for _, images in frames.batches():
        codes = tokenizer.encode(images)
        restored = tokenizer.decode(codes)
        if arguments.as_run:
            images, restored = (as_run.saved(2 * each - 1) for each in (images, restored))
        usage.update(codes)
        for similarity in similarities.values():
            similarity.update(restored, images)
        real.update(images)
        made.update(restored)
        count += len(images)

    num_images = add_up(accelerator, count)
    usage.counts = accelerator.reduce(usage.counts)
    results = {name: {"value": mean(accelerator, each)} for name, each in similarities.items()}
    if "codebook" in metrics:
        results["codebook"] = {"value": usage.usage(), "perplexity": usage.perplexity()}
    real, made = gather(accelerator, real), gather(accelerator, made)
    if accelerator.is_main_process:
        for name, result in results.items():
            save_result(frames, name, result, num_images)
        frames.keep(real)
        save_feature_results(frames, extractors, made, kept | real)


def measure_generator(
    accelerator: Accelerator,
    run: FinishedRun,
    metrics: list[str],
    arguments: argparse.Namespace,
    failures: list[str],
) -> None:
    """All of a generator's metrics: generated images against the validation frames, then fills and edits."""
    extractors = build_extractors(accelerator, metrics, arguments, failures)
    if not extractors and not set(metrics) & set(NOT_OF_ALL):
        return
    generator, tokenizer = (network.to(accelerator.device) for network in load_with_tokenizer(run))
    frames = ValidationFrames(accelerator, run, tokenizer.image_size, arguments, failures)
    compile_for(arguments.num or len(frames.listed), generator, tokenizer)
    real, missing = frames.features(extractors)
    if missing.extractors:
        for _, images in frames.batches():
            missing.update(as_run.saved(2 * images - 1) if arguments.as_run else images)
        gathered = gather(accelerator, missing)
        real |= gathered
        if accelerator.is_main_process:
            frames.keep(gathered)

    to_fill = extractors.pop("fill", None)
    if extractors:
        folder, files = generated_parts(frames, generator, unique(extractors))
        with ExitStack() as held:
            if accelerator.is_main_process:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(holding(folder / ".lock", f"{run.folder}: this evaluation"))
            accelerator.wait_for_everyone()
            generate_features(accelerator, frames, generator, tokenizer, unique(extractors), files)
            if accelerator.is_main_process:
                parts = [load_features(path) for path in files.values()]
                made = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                save_feature_results(frames, extractors, made, real)
                shutil.rmtree(folder)
    if "fill" in metrics:
        measure_fill(accelerator, frames, generator, tokenizer, to_fill, real)
    if "locality" in metrics:
        measure_locality(accelerator, frames, generator, tokenizer)


def generated_parts(
    frames: "ValidationFrames", generator: MaskGIT, extractors: list[nn.Module]
) -> tuple[Path, dict[int, Path]]:
    """Where the features of generated images are kept until all are there: a folder, and in it the file of
    each CHUNK images by the first one's number.

    Its name has a key of the weights and all options.
    """
    run, arguments = frames.run, frames.arguments
    num, chunk = arguments.num or len(frames.listed), feature_files.CHUNK
    sampling = run.config.sampling.model_dump()
    recipe = [fingerprint(run.folder), fingerprint(tokenizer_of(run)), sampling, arguments.seed, num]
    recipe += [chunk, *sorted(extractor.name for extractor in extractors)]
    recipe += [as_run.SUFFIX] if arguments.as_run else []
    recipe += [arguments.precision] if arguments.precision != "fp32" else []
    if generator.conditions:
        recipe.append(labels_fingerprint(frames.listed, list(generator.conditions)))
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    folder = run.folder / "eval" / f".generated-{key}"
    return folder, {start: folder / f"{start:09d}.npz" for start in range(0, num, chunk)}


def generate_features(
    accelerator: Accelerator,
    frames: "ValidationFrames",
    generator: MaskGIT,
    tokenizer: Tokenizer,
    extractors: list[nn.Module],
    paths: dict[int, Path],
) -> None:
    """Generate images and keep their features in the files of generated_parts.

    Image i is generated under the i-th real frame's conditions, over and over where there are fewer frames.
    Files that an earlier evaluation left when it was interrupted are taken as they are.
    """
    run, arguments = frames.run, frames.arguments
    num, chunk = arguments.num or len(frames.listed), feature_files.CHUNK
    sampling = run.config.sampling.model_dump()
    missing = [start for start, path in paths.items() if not path.exists()]
    accelerator.wait_for_everyone()  # nobody writes one before all have seen which are missing
    if len(missing) < len(paths):
        accelerator.print(f"{run.folder}: {len(paths) - len(missing)} of {len(paths)} parts are generated")
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


def measure_fill(
    accelerator: Accelerator,
    frames: "ValidationFrames",
    generator: MaskGIT,
    tokenizer: Tokenizer,
    extractor: nn.Module | None,
    real: dict[str, Tensor],
) -> None:
    """Mask a share of each validation frame's tokens, fill them in, and compare with the frame, by share.

    A conditional generator is told the frame's own conditions.
    """
    device, arguments = accelerator.device, frames.arguments
    unavailable = []
    ratios = sorted(set(arguments.mask_ratio or MASK_RATIOS))
    similarities = build_similarities(accelerator, ["psnr", "lpips"], arguments, unavailable)
    for line in unavailable:
        accelerator.print(f"--fill leaves out {line}")
    functions = {name: each.function for name, each in similarities.items()}
    means = {
        ratio: {name: MeanSimilarity(function, device) for name, function in functions.items()}
        for ratio in ratios
    }
    made = {ratio: FeatureSet([extractor] if extractor else []) for ratio in ratios}
    sampling = frames.run.config.sampling.model_dump()
    conditions = frames.conditions(generator)
    count = 0
    for places, images in frames.batches():
        first = int(places[0])
        rows, codes = spread(places, tokenizer.encode(images))
        own = conditions[first : first + len(codes)]
        for ratio in ratios:
            mask = random_masks(ratio, *codes.shape, arguments.seed, first).to(device)
            filled = generator.fill(codes, mask, own, seed=arguments.seed, first_index=first, **sampling)
            restored = tokenizer.decode(filled[rows])
            for similarity in means[ratio].values():
                similarity.update(restored, images)
            made[ratio].update(restored)
        count += len(images)

    num_images = add_up(accelerator, count)
    table = []
    for ratio in ratios:
        row = {name: mean(accelerator, each) for name, each in means[ratio].items()}
        features = gather(accelerator, made[ratio])
        if extractor and accelerator.is_main_process:
            sides = (side[extractor.name].to(device) for side in (features, real))
            row["fd_random" if extractor.is_random else "fid"] = frechet_distance(*sides)
        table.append({"mask_ratio": ratio, **row})
    if accelerator.is_main_process:
        value = sum(row["psnr"] for row in table) / len(table)
        result = {"value": value, "value_is": "PSNR in dB, mean over the mask ratios", "ratios": table}
        save_result(frames, "fill", result, num_images, extractor)
        for row in table:
            print("  " + ", ".join(f"{name} {value:.4f}" for name, value in row.items()))


def measure_locality(
    accelerator: Accelerator,
    frames: "ValidationFrames",
    generator: MaskGIT,
    tokenizer: Tokenizer,
) -> None:
    """Edit a random box of each of the first validation frames, and measure where the image changes.

    It is generate.py's edit, told the frame's own conditions, and compared with the reconstruction.
    """
    device, arguments, size = accelerator.device, frames.arguments, tokenizer.image_size
    sampling = frames.run.config.sampling.model_dump()
    conditions = frames.conditions(generator)
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # changes inside and outside, and frames
    for places, images in frames.batches(arguments.num or FRAMES_TO_EDIT):
        first = int(places[0])
        rows, codes = spread(places, tokenizer.encode(images))
        boxes = [random_box(size, arguments.seed, place) for place in places.tolist()]
        mask = torch.zeros_like(codes, dtype=torch.bool)
        for row, box in zip(rows, boxes):
            influence = token_influence(tokenizer, codes[row], seed=arguments.seed)
            mask[row, tokens_of_box(influence, box)] = True
        own = conditions[first : first + len(codes)]
        edited = generator.fill(codes, mask, own, seed=arguments.seed, first_index=first, **sampling)
        inside = torch.stack([box.pixels(size) for box in boxes]).to(device)
        changes = change_by_region(tokenizer.decode(edited[rows]), tokenizer.decode(codes[rows]), inside)
        sums += torch.stack([*(each.double().sum() for each in changes), sums.new_tensor(len(rows))])

    inside, outside, num_images = accelerator.reduce(sums).tolist()
    area = random_box(size, 0, 0).area / size**2  # of each
    share = share_inside(inside, outside, area)
    if share is None:
        frames.failures.append("--locality: no edit changed anything; the generator fills in what was there")
    elif accelerator.is_main_process:
        result = {
            "value": share,
            "value_is": "share of the edits' change that falls inside the box",
            "share_of_area": area,
            "inside": inside / num_images,
            "outside": outside / num_images,
        }
        save_result(frames, "locality", result, int(num_images))


def spread(places: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (B, K) of frames at places (B,), among zeros for the places between them that lack one.

    Returns their rows there, (B,), and the whole: masks and the sampler's noise go by consecutive places.
    """
    rows = (places - places[0]).to(codes.device)
    whole = codes.new_zeros(int(rows[-1]) + 1, codes.shape[1])
    whole[rows] = codes
    return rows, whole


class ValidationFrames:
    """The validation frames of a run's config: their images, and their features where these are kept."""

    def __init__(
        self,
        accelerator: Accelerator,
        run: FinishedRun,
        size: int,
        arguments: argparse.Namespace,
        failures: list[str],
    ):
        self.accelerator = accelerator
        self.failures = failures  # what can't be measured, or kept
        self.run = run
        self.size = size
        self.arguments = arguments
        self.folder = Path(arguments.frames or run.config.data.frames)
        self.listed = list_frames(self.folder, "val", **run.config.data.val.model_dump())
        kind = run.config.data.resize
        if arguments.as_run:
            self.listed, kind = self.listed[: as_run.NUM_IMAGES], kind + as_run.SUFFIX
        kind += " tf32" if arguments.precision == "tf32" else ""  # in which the extractors compute, too
        content = f"{size} {kind} {content_fingerprint(self.folder / 'val', self.listed)}"
        self.cache = FeatureCache(content, (self.folder / ".features", run.folder / "eval" / ".features"))

    def conditions(self, generator: MaskGIT) -> Tensor:
        """What the frames' labels say of a generator's conditions: int64 (N, C), C = 0 if it has none."""
        array = condition_array(self.listed, generator.conditions)
        return torch.from_numpy(array).to(self.accelerator.device)

    def batches(self, num: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share, a stretch of the list or of its first `num`: places (B,) in it, and images
        (B,3,H,W) in [0,1].

        Over all processes each frame comes exactly once, but for those that can't be read, which are named.
        """
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        listed = self.listed[:num]
        start, end = (len(listed) * each // processes for each in (index, index + 1))
        dataset = FrameDataset(self.folder / "val", listed[start:end], self.size, self.run.config.data.resize)
        loader = evaluation_loader(dataset, self.arguments.batch_size, self.arguments.workers)
        broken = {}
        for batch in tqdm(loader, desc=f"{self.folder}/val", disable=not self.accelerator.is_main_process):
            broken |= batch.broken
            if len(batch.images):
                yield start + batch.indices, to_unit_range(batch.images, self.accelerator.device)
        for place, reason in broken.items():
            tqdm.write(f"{self.folder}/val/{dataset.frames[place].file_name}: {reason}, left out")

    def features(self, extractors: dict[str, nn.Module]) -> tuple[dict[str, Tensor], FeatureSet]:
        """The features (n, dim) that are kept, on the main process, and a set for those that aren't."""
        kept = {}
        if self.accelerator.is_main_process:
            loaded = {each.name: self.cache.load(each.name) for each in unique(extractors)}
            kept = {name: features for name, features in loaded.items() if features is not None}
        (names,) = broadcast_object_list([list(kept)])
        return kept, FeatureSet([each for each in unique(extractors) if each.name not in names])

    def keep(self, features: dict[str, Tensor]) -> None:
        """Keep features of all frames, by extractor, for the next evaluation on them."""
        for name, array in features.items():
            self.cache.save(name, array)


# --- over all processes -------------------------------------------------------------------------------------


def gather(accelerator: Accelerator, features: FeatureSet) -> dict[str, Tensor]:
    """The features of all processes, in the order of the processes' shares."""
    shares = gather_object([features.features()])
    return {name: torch.cat([share[name] for share in shares]) for name in shares[0]}


def add_up(accelerator: Accelerator, count: int) -> int:
    """A count summed over all processes."""
    return int(accelerator.reduce(torch.tensor(count, device=accelerator.device)))


def mean(accelerator: Accelerator, similarity: MeanSimilarity) -> float:
    """A mean over the images of all processes."""
    similarity.sum, similarity.count = map(accelerator.reduce, (similarity.sum, similarity.count))
    return similarity.mean


# --- what to measure with, and what comes of it -------------------------------------------------------------


def build_extractors(
    accelerator: Accelerator, metrics: list[str], arguments: argparse.Namespace, failures: list[str]
) -> dict[str, nn.Module]:
    """The network of each metric on features; metrics whose network can't be had go to `failures`."""

    def inception() -> InceptionFeatures | RandomInceptionFeatures:
        if arguments.feature_extractor == "random-inception":
            return RandomInceptionFeatures()
        return InceptionFeatures(arguments.inception_weights)

    on_inception = [name for name in metrics if name in OF_INCEPTION]
    if "isc" in metrics and arguments.feature_extractor == "random-inception":
        on_inception.remove("isc")
        failures.append("--isc: random-inception knows no classes; it takes the published weights")
    on_dinov2 = [name for name in metrics if name == "fd_dinov2"]
    extractors = {}
    for names, build in (
        (on_inception, inception),
        (on_dinov2, lambda: DINOv2Features(arguments.dinov2_weights)),
    ):
        if names:
            with accelerator.main_process_first():  # one process downloads, and the others find the file
                try:
                    extractors |= dict.fromkeys(names, build().to(accelerator.device))
                except UserError as error:
                    failures.append(f"{', '.join(map(option, names))}: {error}")
    return extractors


def unique(extractors: dict[str, nn.Module]) -> list[nn.Module]:
    """Each network once, however many metrics it serves."""
    return list(dict.fromkeys(extractors.values()))


def build_similarities(
    accelerator: Accelerator, metrics: list[str], arguments: argparse.Namespace, failures: list[str]
) -> dict[str, MeanSimilarity]:
    """The metrics of an image beside its original; LPIPS, where it can't be had, goes to `failures`."""
    functions = {name: function for name, function in (("psnr", psnr), ("ssim", ssim)) if name in metrics}
    if "lpips" in metrics:
        with accelerator.main_process_first():
            try:
                lpips = LPIPS(arguments.lpips_weights, option="--lpips-weights")
                functions["lpips"] = lpips.to(accelerator.device)
            except UserError as error:
                failures.append(f"--lpips: {error}")
    return {name: MeanSimilarity(function, accelerator.device) for name, function in functions.items()}


def save_feature_results(
    frames: ValidationFrames,
    extractors: dict[str, nn.Module],
    made: dict[str, Tensor],
    real: dict[str, Tensor],
) -> None:
    """Compute and save each metric on features (n, dim); sets too small for it are failures."""
    for name, extractor in extractors.items():
        sides = [side[extractor.name].to(frames.accelerator.device) for side in (made, real)]
        try:
            if name == "isc":
                result = inception_score(extractor.logits(sides[0]))
            elif name == "kid":
                result = kernel_distance(*sides)
            elif name == "prc":
                result = precision_recall(*sides)
            else:
                result = {"value": frechet_distance(*sides)}
        except UserError as error:
            frames.failures.append(f"{option(name)}: {error}")
            continue
        result["num_real"] = len(sides[1])
        own_name = RANDOM_NAMES[name] if extractor.is_random else name
        save_result(frames, own_name, result, len(sides[0]), extractor)


def save_result(
    frames: ValidationFrames, name: str, result: dict, num_images: int, extractor: nn.Module | None = None
) -> None:
    """Print the value, and write eval/<name>.json in the run's folder; where that can't be is a failure."""
    run, arguments = frames.run, frames.arguments
    name += as_run.SUFFIX if arguments.as_run else ""
    record = {
        "metric": name,
        **result,
        "num_images": num_images,
        "frames": str(frames.folder),
        "split": "val",
        "subset": run.config.data.val.model_dump(),
        "frames_sha256": frames_fingerprint(frames.listed),
        "feature_extractor": extractor.name if extractor else None,
        "precision": arguments.precision,
        "checkpoint_step": run.step,
        "seed": arguments.seed if run.is_generator else None,
        "sampling": run.config.sampling.model_dump() if run.is_generator else None,
        "conditions": "those of the real frames"
        if run.is_generator and run.config.model.conditions
        else None,
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "torch-fidelity")},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    few = extractor and min(num_images, result.get("num_real", num_images)) < FEW_IMAGES
    note = (
        f"; fewer than {FEW_IMAGES:,} images bias it, compare it only with a value on as many" if few else ""
    )
    print(f"{run.folder}: {name} {result['value']:.4f} on {num_images:,} images, step {run.step}{note}")
    path = run.folder / "eval" / f"{name}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        with write_whole(path) as part:
            part.write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        frames.failures.append(f"{path}: not written ({error.strerror})")


def option(metric: str) -> str:
    """What asks for a metric on the command line."""
    return f"--{metric.replace('_', '-')}"


if __name__ == "__main__":
    main()
