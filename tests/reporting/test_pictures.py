import shutil

import pytest
import torch
from PIL import Image

from comparison.runs import read_runs
from data.frames import cut
from models.maskgit import MaskGIT
from models.storage import build_tokenizer, fingerprint, load_generator, load_tokenizer, save_model
from reporting.pictures import BATCH, choose_frames, make_pictures
from tests.comparison.made import make_run
from training.config import TokenizerConfig, load_config

CPU = torch.device("cpu")
SIZE = "{width: 32, depth: 1, heads: 2}"


@pytest.fixture(scope="module")
def root(tmp_path_factory, frames):
    """Runs `small` of 24 pixels and `large` of 32, then `gen` on the first."""
    root = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    for name, size in {"large": 32, "small": 24}.items():
        path = root / f"{name}.yaml"
        path.write_text(
            f"data: {{frames: {frames}}}\n"
            f"model: {{image_size: {size}, patch_size: 8, num_tokens: 4, encoder: {SIZE}, decoder: {SIZE},\n"
            f"        quantizer: {{codebook_size: 16, token_size: 4}}}}\n"
            f"training: {{max_steps: 20}}\n"
        )
        network = build_tokenizer(load_config(path, TokenizerConfig).model.architecture())
        make_run(root / "runs", name, path, network=network)
    tokenizer = root / "runs" / "small"
    path = root / "gen.yaml"
    path.write_text(f"tokenizer: small\nmodel: {SIZE}\ntraining: {{max_steps: 20}}\nsampling: {{steps: 3}}\n")
    folder = make_run(root / "runs", "gen", path)
    weights = fingerprint(tokenizer / "model")
    save_model(MaskGIT(4, 16, 32, 1, 2), folder / "model", step="20", tokenizer_sha256=weights)
    return root / "runs"


def test_reconstructions_are_the_tokenizers(root, frames):
    runs, _ = read_runs(root)
    pictures, missing = make_pictures(runs, 3, 0, 0, CPU)
    assert missing == [] and pictures.generated == {}
    assert list(pictures.images) == ["input", "TiTok-4 (large)", "TiTok-4 (small)"]
    for name, size in {"large": 32, "small": 24}.items():
        tokenizer = load_tokenizer(root / name)
        for place, frame in enumerate(pictures.frames):
            pixels = torch.from_numpy(cut(Image.open(frames / "val" / frame.file_name), size).copy())
            image = pixels.permute(2, 0, 1)[None] / 255
            restored = tokenizer.decode(tokenizer.encode(image))[0]
            torch.testing.assert_close(pictures.images[f"TiTok-4 ({name})"][place], restored)
            if size == 32:  # the largest
                assert torch.equal(pictures.images["input"][place], image[0])


def test_generated_images_are_the_generators(root):
    runs, _ = read_runs(root)
    pictures, missing = make_pictures(runs, 0, BATCH + 2, 7, CPU)
    assert missing == [] and pictures.images == {}
    codes = load_generator(root / "gen").generate(num=BATCH + 2, steps=3, seed=7)
    wanted = load_tokenizer(root / "small").decode(codes)
    torch.testing.assert_close(pictures.generated["MaskGIT on TiTok-4 (gen)"], wanted)


def test_a_frame_of_each_video_comes_first(root, frames, tmp_path):
    copied = shutil.copytree(frames, tmp_path / "frames")
    (copied / "val" / "video0" / "video0-0000001.jpg").write_bytes(b"no picture")
    run = read_runs(root)[0][0]
    data = run.config.data.model_copy(update={"frames": str(copied)})
    run = run._replace(config=run.config.model_copy(update={"data": data}))
    folder, chosen = choose_frames(run, 5)
    assert folder == copied / "val"
    videos = [frame.file_name.split("/")[0] for frame in chosen]
    assert sorted(videos) == [f"video{number}" for number in range(5)]
    assert len(choose_frames(run, 100)[1]) == 6  # of 7


def test_what_does_not_load_is_named(root, tmp_path):
    copied = shutil.copytree(root, tmp_path / "runs")
    shutil.copytree(copied / "large" / "model", copied / "small" / "model", dirs_exist_ok=True)
    path = copied / "large" / "model" / "config.json"
    path.write_text(path.read_text().replace('"patch_size": 8', '"patch_size": 16'))
    config = copied / "gen" / "config.yaml"
    config.write_text(config.read_text().replace(str(root), str(copied)))
    runs, _ = read_runs(copied)
    pictures, (broken, changed) = make_pictures(runs, 2, 2, 0, CPU)
    assert list(pictures.images) == ["input", "TiTok-4 (small)"] and pictures.generated == {}
    assert broken.startswith(f"reconstructions by {copied / 'large'}: {copied / 'large' / 'model'}")
    assert changed.startswith(f"images by {copied / 'gen'}: {copied / 'small'}: has other weights")
