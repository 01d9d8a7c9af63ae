"""The card of a dataset of tokens: its README.md, which is the dataset's page on the Hub."""

from pathlib import Path

from huggingface_hub import DatasetCardData

from files import write_whole
from sizes import in_words
from training.card import as_text

CARD = """\
---
{card_data}
---

# Tokens of driving video

Frames of driving video, each as {size}. The frames of a clip follow one another in order of time,
all in one file.

| | |
|---|---|
{facts}

| column | |
|---|---|
| `file_name`, `video`, `frame`, `timestamp_ms` | the frame's file; its clip, number and time there |
| `weather`, `scene`, `timeofday` | BDD100K's labels of the clip, null where it has none |
| `tokens` | the frame's codes in the tokenizer's order, each from 0 to {last_code:,} |
| `tokens_flipped` | those of the frame flipped left to right, null where they weren't computed |

{reading}

With the code of Driving tokens and the tokenizer codes are images again:

```python
import torch
from models import load_tokenizer

tokenizer = load_tokenizer({tokenizer!r})
images = tokenizer.decode(torch.tensor(codes)[None].long())  # float (1, 3, H, W) in [0, 1]
```
"""
READING = {
    "parquet": """\
```python
from datasets import load_dataset

dataset = load_dataset("path/to/this/folder", split="train")
codes = dataset[0]["tokens"]
```""",
    "webdataset": """\
A sample's `json` has the columns but the last two, which are `tokens.npy` and `tokens_flipped.npy`:

```python
from glob import glob

import webdataset

files = sorted(glob("path/to/this/folder/data/train-*.tar"))
sample = next(iter(webdataset.WebDataset(files, shardshuffle=False).decode()))
codes = sample["tokens.npy"].astype(int)
```""",
}


def write_dataset_card(folder: Path, record: dict) -> None:
    """Write the README.md of a dataset's folder, whose YAML names its files by split."""
    splits = record["splits"]
    suffix = Path(next(iter(splits["train"]["files"]))).suffix
    data_files = [{"split": split, "path": f"data/{split}-*{suffix}"} for split in splits]
    card_data = DatasetCardData(
        pretty_name="Tokens of driving video",
        tags=["driving-tokens", "image-tokens"],
        configs=[{"config_name": "default", "data_files": data_files}],
    )
    facts = {
        "tokenizer": f"{record['tokenizer']}, a {record['kind']}",
        "SHA-256 of its weights": record["tokenizer_sha256"],
        "images": f"{in_words(record['image_size'])} pixels, resize: {record['resize']}",
        "computed in": record["precision"],
    }
    for split, told in splits.items():
        broken = f"; {len(told['broken']):,} more could not be read" if told["broken"] else ""
        facts[f"frames of {split}"] = f"{told['frames']:,} in {len(told['files']):,} files{broken}"
    text = CARD.format(
        card_data=card_data.to_yaml(),
        size=tokens_in_bytes(record),
        facts="\n".join(f"| {name} | {as_text(value)} |" for name, value in facts.items()),
        last_code=record["codebook_size"] - 1,
        reading=READING[record["format"]],
        tokenizer=record["tokenizer"],
    )
    with write_whole(folder / "README.md") as part:
        part.write_text(text)


def tokens_in_bytes(record: dict) -> str:
    """What the tokens of a frame hold, in words: as many bits each as tell the codes apart."""
    bits = (record["codebook_size"] - 1).bit_length()
    return f"{record['num_tokens']} tokens of {bits} bits, {record['num_tokens'] * bits / 8:g} bytes"
