"""What a tokenizer's tokens tell of weather, scene and time of day."""

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from data.bdd100k import ATTRIBUTES
from data.frames import Frame, list_frames
from errors import UserError
from evaluation.frames import ValidationFrames
from evaluation.reconstruction import by_length
from evaluation.results import save_result
from metrics.probe import most_frequent, probe, score
from models.elastic import doubled_lengths
from models.encoder import LatentEncoder
from models.pretrained import SOURCES
from models.tokenizer import Tokenizer
from training.model_sections import TiTokSection
from training.starts import build_source
from training.tokens import UNLABELLED

TRAINING_FRAMES = 10_000  # at most, of which the probes learn: the first in salted order
OF_TOKENS = ("latents", "codes")


class Labels(NamedTuple):
    """What frames are labelled with, of one attribute."""

    known: np.ndarray  # bool (N,): which frames are
    values: np.ndarray  # str (n,): of those

    @property
    def classes(self) -> list[str]:
        """The values that there are."""
        return sorted(set(self.values))


class Encoded(NamedTuple):
    """The frames of a split that can be read, and what networks make of them."""

    frames: list[Frame]
    features: dict[str, np.ndarray]  # of tokens (N, K, D), of a source (N, width)

    def first(self, name: str, num_tokens: int | None) -> np.ndarray:
        """Features (N, …) by their name; of tokens those of the first `num_tokens`."""
        features = self.features[name][:, :num_tokens]
        return features.reshape(len(features), -1)

    def labels(self, attribute: str) -> Labels:
        """Those of the frames."""
        values = [getattr(frame, attribute) for frame in self.frames]
        known = np.array([value not in UNLABELLED for value in values], dtype=bool)
        return Labels(known, np.array([value for value in values if value not in UNLABELLED], dtype=str))


def measure_probe(frames: ValidationFrames, tokenizer: Tokenizer) -> None:
    """Learn labels from features of training frames, tell those of validation frames, write eval/probe.json.

    The features are the tokens' latents as they are quantized and the vectors of their codes, each of all
    tokens and of the first 1, 2, 4, … or --num-tokens (but not of a grid, whose first are its upper rows);
    and those of the published ViT that the encoder starts from, where its weights are at hand.
    """
    accelerator = frames.accelerator
    try:
        listed = list_frames(frames.folder, "train", **frames.run.config.data.train.model_dump())
    except UserError as error:
        frames.failures.append(f"--probe: {error}")
        return
    source = source_at_hand(frames)
    train = encode(frames, "train", listed[:TRAINING_FRAMES], tokenizer, source)
    val = encode(frames, "val", frames.listed, tokenizer, source)
    labels, left_out = labels_to_tell(train, val)
    for line in left_out:
        accelerator.print(f"--probe leaves out {line}")
    if not labels:
        frames.failures.append(f"--probe: {frames.folder} has no labels to tell; extract it with --labels")
        return

    lengths = frames.arguments.num_tokens
    if not lengths and tokenizer.grid is None:
        lengths = doubled_lengths(tokenizer.num_tokens)
    lengths = sorted({*lengths, tokenizer.num_tokens})
    rows = [*product(OF_TOKENS, lengths), *((name, None) for name in train.features if name not in OF_TOKENS)]
    tasks = list(product(rows, labels))[accelerator.process_index :: accelerator.num_processes]
    own = {}
    for row, attribute in tqdm(tasks, desc="probes", disable=not accelerator.is_main_process):
        learned, told = labels[attribute]
        features, others = train.first(*row)[learned.known], val.first(*row)[told.known]
        own[row, attribute] = probe(features, learned.values, others, told.values)
    scores = {key: each for part in gather_object([own]) for key, each in part.items()}
    if not accelerator.is_main_process:
        return

    table = [
        {"features": row[0], "num_tokens": row[1]} | {name: scores[row, name] for name in labels}
        for row in rows
    ]
    values = {
        row["num_tokens"]: float(np.mean([row[name]["linear"]["balanced_accuracy"] for name in labels]))
        for row in table
        if row["features"] == "codes"
    }
    result = by_length(values) | {
        "value_is": "balanced accuracy of linear probes of the codes, mean over the labels",
        "num_train": len(train.frames),
        "source": frames.run.config.model.encoder.init if source else None,
        "labels": {name: about(*both) for name, both in labels.items()},
        "probes": table,
    }
    save_result(frames, "probe", result, len(val.frames))
    print_table(result)


def source_at_hand(frames: ValidationFrames) -> LatentEncoder | None:
    """The published ViT that the tokenizer's encoder starts from, if it does and its weights can be had."""
    accelerator, model = frames.accelerator, frames.run.config.model
    if not isinstance(model, TiTokSection) or model.encoder.init not in SOURCES:
        return None
    with accelerator.main_process_first():  # one process downloads, and the others find the file
        try:
            return build_source(model.encoder, model.image_size, model.patch_size).to(accelerator.device)
        except UserError as error:
            accelerator.print(f"--probe leaves out {model.encoder.init}'s own features: {error}")
            return None


def encode(
    frames: ValidationFrames,
    split: str,
    listed: list[Frame],
    tokenizer: Tokenizer,
    source: LatentEncoder | None,
) -> Encoded:
    """The listed frames of a split with all features, on every process."""
    own = []
    for places, images in frames.share(split, listed):
        quantized = tokenizer.quantizer(tokenizer.to_latents(images))
        features = dict(zip(OF_TOKENS, (quantized.latents, tokenizer.quantizer.lookup(quantized.codes))))
        if source:
            with torch.autocast(images.device.type, enabled=False):
                outputs = source.forward_features(images)
            features |= {"class token": outputs[:, 0], "mean patch": outputs[:, 1:].mean(dim=1)}
        own.append((places.tolist(), {name: each.float().cpu().numpy() for name, each in features.items()}))
    parts = gather_object(own)
    read = [listed[place] for places, _ in parts for place in places]
    names = parts[0][1] if parts else ()
    return Encoded(read, {name: np.concatenate([part[name] for _, part in parts]) for name in names})


def labels_to_tell(train: Encoded, val: Encoded) -> tuple[dict[str, tuple[Labels, Labels]], list[str]]:
    """By attribute the labels of training and of validation frames; a line for each that can't be told."""
    labels, left_out = {}, []
    for name in ATTRIBUTES:
        learned, told = train.labels(name), val.labels(name)
        if len(learned.classes) < 2:
            found = f"only {learned.classes[0]}" if learned.classes else "none of it"
            left_out.append(f"{name}: the training frames have {found}")
        elif not told.classes:
            left_out.append(f"{name}: the validation frames have none of it")
        else:
            labels[name] = learned, told
    return labels, left_out


def about(learned: Labels, told: Labels) -> dict:
    """How many classes and frames an attribute has, and the score of training's most frequent class."""
    common = most_frequent(learned.values)
    chance = score(np.full(len(told.values), common), told.values)
    return {
        "classes": len(learned.classes),
        "num_train": len(learned.values),
        "num_val": len(told.values),
        "most_frequent": {"class": common, **chance},
    }


def print_table(result: dict) -> None:
    """A line of accuracies for each row of features, after chance."""
    chance = (f"{name} {each['most_frequent']['accuracy']:.3f}" for name, each in result["labels"].items())
    print(f"  accuracy of the most frequent class: {', '.join(chance)}")
    for row in result["probes"]:
        told = (
            f"{name} {row[name]['linear']['accuracy']:.3f} linear {row[name]['knn']['accuracy']:.3f} kNN"
            for name in result["labels"]
        )
        whose = f"{row['num_tokens']} tokens" if row["num_tokens"] else result["source"]
        print(f"  {row['features']} of {whose}: {', '.join(told)}")
