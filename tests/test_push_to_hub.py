"""push_to_hub.py and back: a model goes to a Hub, and is loaded from there by its name."""

import shutil
import socket

import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image

from models import load_generator, load_tokenizer
from models.maskgit import MaskGIT
from models.storage import build_tokenizer, fingerprint, save_model
from tests.conftest import TINY_GENERATOR, TINY_TOKENIZER, run_script
from tests.hub import FORBIDDEN, TOKEN, serve_hub
from training.config import GeneratorConfig, TokenizerConfig, load_config, save_config

TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, frames):
    """Two runs with random weights: a tokenizer's, `tok`, and a newer one of a generator on it, `gen`."""
    root = tmp_path_factory.mktemp("hub")
    runs = root / "runs"
    torch.manual_seed(0)
    (root / "tok.yaml").write_text(TINY_TOKENIZER.format(frames=frames, runs=runs))
    config = load_config(root / "tok.yaml", TokenizerConfig)
    tokenizer = build_tokenizer(config.model.architecture())
    save_model(tokenizer, runs / "tok" / "model", step="4")
    save_config(config, runs / "tok" / "config.yaml")
    (runs / "tok" / "samples").mkdir()
    Image.new("RGB", (8, 8), "green").save(runs / "tok" / "samples" / "step_00000004.png")

    (root / "gen.yaml").write_text(
        TINY_GENERATOR.format(tokenizer=runs / "tok", frames=frames, tokens=root / "tokens", runs=runs)
    )
    generator = MaskGIT(num_tokens=8, codebook_size=64, width=32, depth=2, heads=2)
    weights = fingerprint(runs / "tok" / "model")
    save_model(generator, runs / "gen" / "model", step="4", tokenizer_sha256=weights)
    save_config(load_config(root / "gen.yaml", GeneratorConfig), runs / "gen" / "config.yaml")
    return runs


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that this process has for the Hub, with an empty cache and a token that may write to it."""
    with serve_hub() as server:
        # What the client took from HF_ENDPOINT, HF_HOME and the like when it was imported
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + TEMPLATE)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def push(run, repo, *options, **variables):
    return run_script("push_to_hub.py", "--run", run, "--repo", repo, *options, **variables)


def test_tokenizer_there_and_back(runs, hub):
    (runs / "tok" / "model" / "notes.txt").write_text("my own")
    printed = push(runs / "tok", "somebody/tok")
    assert f"{hub.url}/somebody/tok" in printed
    assert printed.splitlines()[-1] == 'load_tokenizer("somebody/tok")'

    repository = hub.repositories["somebody/tok"]
    assert not repository.private
    assert repository.files.keys() == {"config.json", "model.safetensors", "README.md", "samples.png"}
    for name, content in repository.files.items():
        assert content == (runs / "tok" / "model" / name).read_bytes()
    card = ModelCard(repository.files["README.md"].decode())
    assert card.data.to_dict()["library_name"] == "driving-tokens"
    assert printed.splitlines()[-1] in card.text

    images = torch.rand(4, 3, 32, 32)
    codes = load_tokenizer(runs / "tok").encode(images)
    assert torch.equal(load_tokenizer("somebody/tok").encode(images), codes)


def test_newest_run_there_and_back(runs, hub):
    printed = run_script("push_to_hub.py", "--runs", runs, "--repo", "somebody/gen", "--private")
    assert printed.splitlines()[-1] == 'load_generator("somebody/gen")'
    repository = hub.repositories["somebody/gen"]
    assert repository.private
    assert repository.files.keys() == {"config.json", "model.safetensors", "README.md"}
    codes = load_generator(runs / "gen").generate(num=3, seed=1)
    assert torch.equal(load_generator("somebody/gen").generate(num=3, seed=1), codes)


def test_second_push_replaces_the_first(runs, hub, tmp_path):
    push(runs / "tok", "somebody/tok")
    later = shutil.copytree(runs / "tok", tmp_path / "later")
    save_model(build_tokenizer(load_tokenizer(later).config), later / "model", step="8")
    push(later, "somebody/tok")
    assert "8 (EMA weights)" in hub.repositories["somebody/tok"].files["README.md"].decode()
    images = torch.rand(4, 3, 32, 32)
    codes = load_tokenizer(later).encode(images)
    assert torch.equal(load_tokenizer("somebody/tok").encode(images), codes)
    assert not torch.equal(load_tokenizer(runs / "tok").encode(images), codes)


def test_refused_by_the_hub(runs, hub):
    assert "403 No rights in this namespace" in push(runs / "tok", f"{FORBIDDEN}/tok", fails=True)
    printed = push(runs / "tok", "somebody/tok", fails=True, HF_TOKEN="hf_old")
    assert "401 Invalid credentials" in printed and "hf auth login" in printed
    assert "not logged in" in push(runs / "tok", "somebody/tok", fails=True, HF_TOKEN="")
    assert hub.repositories == {}


def test_public_stays_no_secret(runs, hub):
    """A repository that is public already is not taken for a private one."""
    push(runs / "gen", "somebody/open")
    assert "is public already" in push(runs / "tok", "somebody/open", "--private", fails=True)
    assert "samples.png" not in hub.repositories["somebody/open"].files


def test_no_network(runs, hub, monkeypatch):
    with socket.socket() as nobody:  # a port on which nothing answers
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        assert "not to be reached" in push(runs / "tok", "somebody/tok", fails=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not to be reached" in push(runs / "tok", "somebody/tok", fails=True)


@pytest.mark.parametrize("name", ["tok", "some/body/tok", "some body/tok", "somebody/tok.git", "somebody/-"])
def test_names_that_cannot_be(runs, name):
    assert "write it as name/repo" in push(runs / "tok", name, fails=True)


def test_nothing_to_push(runs, tmp_path):
    assert "no run there" in push(tmp_path / "x", "somebody/tok", fails=True)
    none = ("--runs", tmp_path, "--repo", "somebody/tok")
    assert "no finished run" in run_script("push_to_hub.py", *none, fails=True)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("")
    assert "no model yet" in push(tmp_path / "begun", "somebody/tok", fails=True)
