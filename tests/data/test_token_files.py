"""Files of tokens: what datasets and webdataset read of them, and what is read back here."""

import json

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from data.token_files import COLUMNS, FORMATS, TokenFile, smallest_dtype

ABOUT = {"tokenizer": "runs/some", "tokenizer_sha256": "ab" * 32}


def some_rows():
    """Of names and labels as they come: with dots, spaces and other letters; with nothing told."""
    told = [
        ("a.b", 1, 0, "clear"),
        ("a_b", 1, None, None),
        ("__c__", 30, 967, "rainy"),
        ("Süd 1", 2, 33, "clear"),
    ]
    return [
        {
            **dict.fromkeys(COLUMNS),
            **{"file_name": f"{video}/{video}-{frame:07d}.jpg", "video": video, "frame": frame},
            **{"timestamp_ms": time, "weather": weather},
        }
        for video, frame, time, weather in told
    ]


def some_codes(views, codebook_size):
    codes = np.random.default_rng(0).integers(codebook_size, size=(4, views, 6))
    codes[0, 0, :2] = 0, codebook_size - 1
    return codes.astype(smallest_dtype(codebook_size))


@pytest.fixture(params=[(1, 64), (2, 2**16), (2, 2**18)], ids=str)
def file(request):
    return TokenFile(some_rows(), some_codes(*request.param), ABOUT, first=7)


def test_a_code_has_as_few_bytes_as_hold_it():
    assert [smallest_dtype(size) for size in (64, 2**16, 2**16 + 1)] == [np.uint16, np.uint16, np.int32]


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read_back(tmp_path, file, name):
    FORMATS[name].write(tmp_path / "file", file)
    rows, codes = FORMATS[name].read(tmp_path / "file")
    assert rows == file.rows
    assert np.array_equal(codes, file.codes) and codes.dtype == file.codes.dtype
    FORMATS[name].write(tmp_path / "again", file)
    assert (tmp_path / "file").read_bytes() == (tmp_path / "again").read_bytes()


def test_datasets_reads_parquet(tmp_path, file):
    path = tmp_path / "file.parquet"
    FORMATS["parquet"].write(path, file)
    read = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [{name: row[name] for name in COLUMNS} for row in read] == file.rows
    assert read.features["tokens"] == datasets.List(datasets.Value(str(file.codes.dtype)))
    assert np.array_equal(read["tokens"], file.codes[:, 0])
    flipped = file.codes[:, 1].tolist() if file.codes.shape[1] == 2 else [None] * 4
    assert list(read["tokens_flipped"]) == flipped
    assert json.loads(pq.read_schema(path).metadata[b"tokens"]) == ABOUT


def test_webdataset_reads_tars(tmp_path, file):
    webdataset = pytest.importorskip("webdataset", reason="the webdataset library isn't installed")
    path = tmp_path / "file.tar"
    FORMATS["webdataset"].write(path, file)
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"{place:09d}" for place in range(7, 11)]
    assert [sample["json"] for sample in samples] == [row | ABOUT for row in file.rows]
    for view in range(file.codes.shape[1]):
        read = [sample[("tokens.npy", "tokens_flipped.npy")[view]] for sample in samples]
        assert np.array_equal(read, file.codes[:, view]) and read[0].dtype == file.codes.dtype


def test_tokens_take_as_many_bits_as_tell_codes_apart(tmp_path):
    """Of random codes, which nothing can press below that; 4,000 frames of 64 tokens of 12 bits: 96 bytes."""
    rows = some_rows() * 1000
    codes = np.random.default_rng(0).integers(4096, size=(4000, 1, 64)).astype(np.uint16)
    FORMATS["parquet"].write(tmp_path / "file.parquet", TokenFile(rows, codes, ABOUT))
    group = pq.read_metadata(tmp_path / "file.parquet").row_group(0)
    columns = {group.column(place).path_in_schema: group.column(place) for place in range(group.num_columns)}
    (name,) = [name for name in columns if name.startswith("tokens.")]
    assert 96 <= columns[name].total_compressed_size / 4000 < 100
