"""How well a generator fills in masked tokens of frames."""

from accelerate import Accelerator
from torch import Tensor, nn

from evaluation.frames import ValidationFrames, add_up, gather, mean, spread
from evaluation.networks import build_similarities, sources_of
from evaluation.results import save_result
from metrics.features import FeatureSet
from metrics.frechet import frechet_distance
from metrics.similarity import MeanSimilarity
from models.editing import MASK_RATIOS, random_masks
from models.maskgit import MaskGIT
from models.tokenizer import Tokenizer


def measure_fill(
    accelerator: Accelerator,
    frames: ValidationFrames,
    generator: MaskGIT,
    tokenizer: Tokenizer,
    extractor: nn.Module | None,
    real: dict[str, Tensor],
    sampling: dict,
) -> None:
    """Mask a share of each validation frame's tokens, fill them in, and compare with the frame, by share.

    A conditional generator is told the frame's own conditions. sampling: options of MaskGIT.fill_steps.
    """
    device, arguments = accelerator.device, frames.arguments
    unavailable = []
    ratios = sorted(set(arguments.mask_ratio or MASK_RATIOS))
    similarities = build_similarities(accelerator, ["psnr", "lpips"], sources_of(arguments), unavailable)
    for line in unavailable:
        accelerator.print(f"--fill leaves out {line}")
    functions = {name: each.function for name, each in similarities.items()}
    means = {
        ratio: {name: MeanSimilarity(function, device) for name, function in functions.items()}
        for ratio in ratios
    }
    made = {ratio: FeatureSet([extractor] if extractor else []) for ratio in ratios}
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
            row[f"fd_{extractor.suffix}" if extractor.suffix else "fid"] = frechet_distance(*sides)
        table.append({"mask_ratio": ratio, **row})
    if accelerator.is_main_process:
        value = sum(row["psnr"] for row in table) / len(table)
        result = {"value": value, "value_is": "PSNR in dB, mean over the mask ratios", "ratios": table}
        save_result(frames, "fill", result, num_images, extractor, biased=True)
        for row in table:
            print("  " + ", ".join(f"{name} {value:.4f}" for name, value in row.items()))
