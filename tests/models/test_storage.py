"""Models to a folder and back through the public API."""

import pytest
import torch

from errors import UserError
from models import load_generator, load_tokenizer
from models.maskgit import MaskGIT
from models.storage import read_provenance, save_model
from tests.models.test_titok import small_titok


def test_tokenizer_round_trip(tmp_path):
    torch.manual_seed(0)
    tokenizer = small_titok().eval()
    save_model(tokenizer, tmp_path / "run" / "model", step="7")
    images = torch.rand(2, 3, 32, 32)
    for name in (tmp_path / "run", str(tmp_path / "run" / "model")):
        loaded = load_tokenizer(name)
        assert not loaded.training
        assert torch.equal(loaded.encode(images), tokenizer.encode(images))
        assert torch.equal(
            loaded.decode(tokenizer.encode(images)), tokenizer.decode(tokenizer.encode(images))
        )
    assert read_provenance(tmp_path / "run" / "model")["step"] == "7"


def test_generator_round_trip(tmp_path):
    torch.manual_seed(0)
    generator = MaskGIT(num_tokens=6, codebook_size=50, width=16, depth=1, heads=2).eval()
    save_model(generator, tmp_path)
    assert torch.equal(load_generator(tmp_path).generate(num=3, seed=4), generator.generate(num=3, seed=4))


def test_clear_refusals(tmp_path):
    with pytest.raises(UserError, match="holds no model yet"):
        load_tokenizer(tmp_path)
    save_model(MaskGIT(num_tokens=6, codebook_size=50, width=16, depth=1, heads=2), tmp_path)
    with pytest.raises(UserError, match="not a tokenizer"):
        load_tokenizer(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_generator(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        load_generator(tmp_path)
