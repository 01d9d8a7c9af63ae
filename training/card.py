"""The card of a run's model: model/README.md with its sample grid, which is the model's page on the Hub."""

import html
import json
import math
import re
import shutil
from pathlib import Path, PurePath

import jinja2
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from files import remove_leftovers, write_whole
from metrics.frechet import OTHER_DISTANCES
from models.encoder import FROM_SCRATCH
from models.storage import build_tokenizer, read_provenance
from sizes import in_words
from training.finished import FinishedRun, read_run

CARD = """\
---
{{ card_data }}
---

# {{ name | text }}

{% if generator %}
A masked generative transformer over the tokens of an image tokenizer, trained on frames of driving video.
{% else %}
An image tokenizer, trained on frames of driving video: images to discrete tokens, and back.
{% endif %}

| | |
|---|---|
{% for name, value in facts.items() %}
| {{ name }} | {{ value | text }} |
{% endfor %}

## Use

With the code of Driving tokens:

```python
{% if generator %}
from models import load_generator, load_tokenizer

generator = load_generator({{ source | exact }})
tokenizer = load_tokenizer({{ config.tokenizer | exact }})  # the one whose tokens it was trained on
sampling = {{ sampling }}
{% if config.guide %}
sampling["guide"] = load_generator({{ config.guide | exact }})
{% endif %}
codes = generator.generate(num=16, seed=0, **sampling)  # int64 (16, {{ facts.tokens }})
images = tokenizer.decode(codes)  # float (16, 3, H, W) in [0, 1]
{% else %}
from models import load_tokenizer

tokenizer = load_tokenizer({{ source | exact }})
# images: float (B, 3, {{ size }}, {{ size }}) in [0, 1]
codes = tokenizer.encode(images)  # int64 (B, {{ facts.tokens }})
images = tokenizer.decode(codes)  # and back
{% endif %}
```
{% if results %}

## Results

| metric | value | images | frames | feature extractor | step |
|---|---|---|---|---|---|
{% for each in results %}
| {{ [each.metric, each.value | exact, each.images, each.frames, each.extractor, each.step] | join(" | ") }} |
{% endfor %}
{% for name, network in other_distances.items() if name in results | map(attribute="metric") %}

`{{ name }}` is a Fréchet distance of features of {{ network }}. It compares only with
other `{{ name }}` values on as many images.
{% endfor %}
{% endif %}
{% if validation %}

## Last validation in training

| at step {{ validation.step }} | |
|---|---|
{% for name, value in validation.items() if name.startswith("val/") %}
| {{ name }} | {{ value | exact }} |
{% endfor %}
{% endif %}
{% if samples_step is not none %}

## Samples

![Samples of step {{ samples_step }}](samples.png)

{% if generator %}
Generated images, at step {{ samples_step }}.
{% else %}
Validation frames above, their reconstructions below, at step {{ samples_step }}.
{% endif %}
{% endif %}

## Config

```yaml
{{ config_yaml }}```
"""

# What every file of evaluate.py has.
OF_A_RESULT = {
    "metric",
    "value",
    "num_images",
    "frames",
    "split",
    "subset",
    "feature_extractor",
    "checkpoint_step",
}


def write_card(run_folder: str | Path, repo: str | None = None) -> None:
    """Write model/README.md of a run, and the newest grid of samples/ as model/samples.png, each whole.

    The card tells what the model is, how to load it, what it was trained on, every result in eval/, the last
    validation and the config. Paths that lead out of the working folder are cut to their last part.

    repo: the Hub id that the card's example loads; by default it loads the run. Raises UserError where there
    is no run with a model.
    """
    run = read_run(run_folder)
    model = run.folder / "model"
    config = shareable(run.config.model_dump(mode="json"))
    name = run.config.run.name
    task = "unconditional-image-generation" if run.is_generator else "image-to-image"
    results = read_results(run)

    remove_leftovers(model)
    samples = max((run.folder / "samples").glob("step_????????.png"), default=None)
    if samples:
        with write_whole(model / "samples.png") as part:
            shutil.copyfile(samples, part)

    card_data = ModelCardData(
        library_name="driving-tokens",
        pipeline_tag=task,
        tags=[run.config.model.kind, "image-generation" if run.is_generator else "image-tokenizer"],
        model_name=name,
        eval_results=[as_eval_result(result, task) for result in results] or None,
    )
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["exact"] = json.dumps  # every digit, as in the file that the value comes from
    environment.filters["text"] = as_text
    text = environment.from_string(CARD).render(
        card_data=card_data.to_yaml(),
        name=name,
        generator=run.is_generator,
        facts=facts_of(run, config),
        source=repo or str(PurePath(config["run"]["dir"]) / name),
        size=None if run.is_generator else run.config.model.image_size,
        sampling=config.get("sampling"),
        other_distances=OTHER_DISTANCES,
        results=[result | {"frames": as_text(result["frames"])} for result in results],
        validation=last_validation(run),
        samples_step=int(samples.stem.removeprefix("step_")) if samples else None,
        config=config,
        config_yaml=yaml.safe_dump(config, sort_keys=False, width=math.inf),  # no line is only a name's end
    )
    with write_whole(model / "README.md") as part:
        ModelCard(text).save(part)


def as_text(value: object) -> str:
    """What Markdown shows as it is: people name files as they like."""
    return re.sub(r"([\\`*\[\]|$])", r"\\\1", html.escape(str(value), quote=False))


def shareable(value):
    """A config without its machine: a path that is absolute or leads upwards becomes its last part."""
    if isinstance(value, dict):
        return {key: shareable(item) for key, item in value.items()}
    if isinstance(value, str) and (PurePath(value).is_absolute() or ".." in PurePath(value).parts):
        return PurePath(value).name
    return value


def facts_of(run: FinishedRun, config: dict) -> dict[str, str | int]:
    """What the model is and was trained on, by name."""
    facts = {"kind": run.config.model.kind}
    architecture = json.loads((run.folder / "model" / "config.json").read_text())
    if run.is_generator:
        facts["tokens"] = architecture["num_tokens"]
        facts["codebook size"] = architecture["codebook_size"]
        facts["tokenizer"] = config["tokenizer"]
        facts["tokenizer's weights"] = f"SHA-256 {read_provenance(run.folder / 'model')['tokenizer_sha256']}"
    else:
        with torch.device("meta"):
            tokenizer = build_tokenizer(architecture)
        facts["image size"] = in_words(tokenizer.image_size)
        facts["tokens"] = tokenizer.num_tokens
        facts["codebook size"] = tokenizer.codebook_size
        init = config["model"].get("encoder", {}).get("init")
        if init:
            facts["encoder starts from"] = "random weights" if init in FROM_SCRATCH else init
    frames = config["data"].get("tokens_from") or config["data"]["frames"]
    facts["training frames"] = describe_frames(frames, "train", config["data"]["train"])
    facts["step"] = f"{run.step} (EMA weights)"
    return facts


def describe_frames(frames: str, split: str, subset: dict) -> str:
    """A folder of frames and what is chosen of it, in one line."""
    chosen = [
        f"{key} {' or '.join(value) if isinstance(value, list) else value}"
        for key, value in subset.items()
        if value is not None
    ]
    return ", ".join([f"{frames}/{split}", *chosen])


def read_results(run: FinishedRun) -> list[dict]:
    """The values in eval/, each with what it was measured on; one file may hold several.

    A value has the name of its metric, and a further one the name of its field behind that. Files that
    evaluate.py did not write are passed over.
    """
    results = []
    for path in sorted((run.folder / "eval").glob("*.json")):
        try:
            record = json.loads(path.read_text())
        except ValueError:
            continue
        if not isinstance(record, dict) or not OF_A_RESULT <= record.keys():
            continue  # somebody's own file
        for field, value in record.items():
            if field == "value" or isinstance(value, float):
                results.append(
                    {
                        "metric": record["metric"] if field == "value" else f"{record['metric']} {field}",
                        "value": value,
                        "images": record["num_images"],
                        "split": record["split"],
                        "frames": describe_frames(
                            shareable(record["frames"]), record["split"], record["subset"]
                        ),
                        "extractor": record["feature_extractor"] or "",
                        "step": record["checkpoint_step"],
                    }
                )
    return results


def as_eval_result(result: dict, task: str) -> EvalResult:
    """A value as the Hub's model-index has it. The frames are a dataset of the library's imagefolder type."""
    return EvalResult(
        task_type=task,
        dataset_type="imagefolder",
        dataset_name=result["frames"],
        dataset_config=result["frames"],  # the Hub's client takes results of one config for one dataset
        dataset_split=result["split"],
        metric_type=result["metric"],
        metric_value=result["value"],
        metric_args={
            "num_images": result["images"],
            "feature_extractor": result["extractor"] or None,
            "checkpoint_step": result["step"],
        },
    )


def last_validation(run: FinishedRun) -> dict[str, float] | None:
    """The last line of metrics.jsonl that has validation scalars, if there is one."""
    path = run.folder / "metrics.jsonl"
    for line in reversed(path.read_text().splitlines() if path.exists() else []):
        try:
            record = json.loads(line)
        except ValueError:  # the line that is being written, or that the run was cut off in
            continue
        if any(name.startswith("val/") for name in record):
            return record
    return None
