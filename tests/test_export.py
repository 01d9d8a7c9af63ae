"""export.py: what its files give in onnxruntime and as torch.export's programs, beside the models."""

import json
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from models import load_generator, load_tokenizer
from models.maskgit import GumbelNoise
from models.storage import build_generator, build_tokenizer, fingerprint, save_model
from tests.conftest import ROOT, TINY_GENERATOR, TINY_TOKENIZER, run_script
from training.config import GeneratorConfig, TokenizerConfig, load_config, save_config

# Every part that a tokenizer or a generator can have, in as few as hold them
SIZE = "image_size: 32, num_tokens: 8"
VIT = "width: 32, depth: 1, heads: 2"
TOKENIZERS = {
    "mixing": f"""{SIZE}, patch_size: 8,
      encoder: {{init: mimetic, stem: conv, mixing: true, {VIT}}},
      decoder: {{init: mimetic, head: conv, mixing: true, {VIT}}},
      quantizer: {{codebook_size: 64, token_size: 8, rotation: true}}""",
    "pretrained": f"""{SIZE}, patch_size: 8, encoder: {{init: clip, {VIT}}}, decoder: {{init: dinov2, {VIT}}},
      quantizer: {{kind: lfq, codebook_size: 64}}""",
    "as_run": f"""{SIZE}, patch_size: 8, encoder: {{init: none, loading: as_run, {VIT}}},
      decoder: {{kind: conv, width: 32, channels: 32, multipliers: [1, 1, 1], blocks: 1}},
      quantizer: {{kind: fsq, levels: [5, 4, 3]}}""",
    "elastic": f"""{SIZE}, patch_size: 8, elastic: true, encoder: {{{VIT}}}, decoder: {{{VIT}}},
      quantizer: {{kind: simvq, codebook_size: 64, token_size: 8}}""",
    "two_stage": f"""kind: two_stage_titok, {SIZE}, patch_size: 16, encoder: {{{VIT}}}, decoder: {{{VIT}}},
      quantizer: {{codebook_size: 64, token_size: 8}}""",
    "vqgan": """kind: vqgan, image_size: [16, 32], channels: 32, multipliers: [1, 1], blocks: 1,
      quantizer: {codebook_size: 64, token_size: 8}""",
}
CONDITIONS = {"weather": ["rainy", "clear"], "timeofday": ["night"]}
GENERATORS = {
    "mixing": {"kind": "maskgit", "width": 32, "depth": 1, "heads": 2, "conditions": CONDITIONS},
    "as_run": {"kind": "maskgit_as_run", "width": 32, "depth": 1, "heads": 2},
}


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    """A new model none of whose parameters is without effect, as zeros are at first."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def make_run(root, frames, name):
    """A run with random weights of a tokenizer, and of a generator on it where there is one; the last's."""
    torch.manual_seed(0)
    model = f"model: {{{TOKENIZERS[name]}}}\n"
    text = TINY_TOKENIZER.format(frames=frames, runs=root)
    (root / "tok.yaml").write_text(re.sub(r"^model:\n(  .*\n)+", model, text, flags=re.MULTILINE))
    config = load_config(root / "tok.yaml", TokenizerConfig)
    tokenizer = build_tokenizer(config.model.architecture())
    save_model(stirred(tokenizer), root / "tok" / "model", step="4")
    save_config(config, root / "tok" / "config.yaml")
    if name not in GENERATORS:
        return root / "tok"
    places = {"tokenizer": root / "tok", "frames": frames, "tokens": root / "tokens", "runs": root}
    (root / "gen.yaml").write_text(TINY_GENERATOR.format(**places))
    sizes = {"num_tokens": tokenizer.num_tokens, "codebook_size": tokenizer.codebook_size}
    generator = stirred(build_generator(GENERATORS[name] | sizes))
    save_model(generator, root / "gen" / "model", step="8", tokenizer_sha256=fingerprint(root / "tok"))
    save_config(load_config(root / "gen.yaml", GeneratorConfig), root / "gen" / "config.yaml")
    return root / "gen"


@pytest.fixture(scope="module")
def exported(tmp_path_factory, frames):
    """What makes a run of a name and exports it, once: its folder, and what the command printed."""
    runs, printed = {}, {}

    def export(name, format):
        if name not in runs:
            runs[name] = make_run(tmp_path_factory.mktemp(name), frames, name)
        if (name, format) not in printed:
            printed[name, format] = run_script("export.py", "--run", runs[name], "--format", format)
        return runs[name], printed[name, format]

    return export


def check(run, outputs, last):
    """Compare `outputs(part, *inputs)` with the run's models; `last` is the suffix of the files."""
    about = json.loads((run / "export" / last / "export.json").read_text())
    tokenizer = load_tokenizer(run.parent / "tok")
    assert about["tokenizer"]["fingerprint"] == fingerprint(run.parent / "tok")
    for batch in (1, 3):
        images = torch.rand(batch, 3, *about["tokenizer"]["image_size"])
        codes = tokenizer.encode(images)
        assert torch.equal(outputs("encoder", images), codes)
        codes = torch.randint(about["tokenizer"]["codebook_size"], codes.shape)
        given = outputs("decoder", codes)
        torch.testing.assert_close(given, tokenizer.decode(codes), atol=1e-4, rtol=0)
        assert given.shape == images.shape and given.std() > 0.01
        if (absent := about["tokenizer"]["absent_token"]) is not None:
            shorter = codes.clone()
            shorter[:, 3:] = absent
            expected = tokenizer.decode(codes[:, :3])
            torch.testing.assert_close(outputs("decoder", shorter), expected, atol=1e-4, rtol=0)
        if run.name == "gen":
            generator = load_generator(run)
            codes[:, ::2] = about["generator"]["mask_token"]
            conditions = []
            if known := about["generator"]["conditions"]:
                assert known == CONDITIONS
                row = generator.condition_indices({"timeofday": "night"})
                conditions = [row.expand(batch, -1).contiguous()]
                assert conditions[0][0].tolist() == [0, 1]
            with torch.no_grad():
                expected = generator(codes, *conditions)
            torch.testing.assert_close(outputs("step", codes, *conditions), expected, atol=1e-4, rtol=0)


@pytest.fixture
def onnxruntime():
    """The package, with what its files are made with."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="requirements-export.txt isn't installed")
    return pytest.importorskip("onnxruntime", reason="requirements-export.txt isn't installed")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_onnx(exported, onnxruntime, name):
    run, printed = exported(name, "onnx")
    assert "on 7 validation frames and 1 made images, in batches of 1 and 7" in printed
    folder = run / "export" / "onnx"
    about = json.loads((folder / "export.json").read_text())
    sessions = {}
    for part, described in about["files"].items():
        assert re.search(rf"{described['file']} +\d+\.\d +\d+\.\d +\d+\.\d", printed)
        sessions[part] = onnxruntime.InferenceSession(folder / described["file"])
        found = [sessions[part].get_inputs(), sessions[part].get_outputs()]
        for each, said in zip(found, (described["inputs"], described["outputs"])):
            assert {one.name: one.shape for one in each} == {key: one["shape"] for key, one in said.items()}
        assert str(ROOT).encode() not in (folder / described["file"]).read_bytes()
    assert sessions.keys() == (
        {"encoder", "decoder", "step"} if run.name == "gen" else {"encoder", "decoder"}
    )

    def outputs(part, *inputs):
        names = [each.name for each in sessions[part].get_inputs()]
        (output,) = sessions[part].run(None, dict(zip(names, (each.numpy() for each in inputs))))
        return torch.from_numpy(output)

    check(run, outputs, "onnx")


@pytest.mark.parametrize("name", ["mixing", "elastic"])
def test_programs(exported, name):
    run, _ = exported(name, "torch")
    folder = run / "export" / "torch"
    check(run, lambda part, *inputs: torch.export.load(folder / f"{part}.pt2").module()(*inputs), "torch")
    for path in folder.glob("*.pt2"):
        program = torch.export.load(path)
        other = {"encoder": "tokenizer.decoder.", "decoder": "tokenizer.encoder."}.get(path.stem)
        assert not [key for key in program.state_dict if other and key.startswith(other)]
        assert program.example_inputs is None
        content = path.read_bytes()
        assert str(ROOT).encode() not in content and sys.prefix.encode() not in content


def test_program_without_this_project(exported, tmp_path):
    run, _ = exported("mixing", "torch")
    code = (
        "import sys, torch; decoder = torch.export.load(sys.argv[1]).module(); "
        "print(tuple(decoder(torch.zeros(5, 8, dtype=torch.int64)).shape))"
    )
    path = run / "export" / "torch" / "decoder.pt2"
    done = subprocess.run([sys.executable, "-c", code, path], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "(5, 3, 32, 32)\n", done.stderr


class NoNoise:
    """A random generator whose Gumbel noise is 0."""

    def __init__(self, seed):
        self.random = np.random.Generator(np.random.PCG64(seed)).random

    @staticmethod
    def gumbel(size):
        return np.zeros(size)


def test_the_docs_example(exported, onnxruntime, monkeypatch):
    """Without noise its loop gives what the generator's own sampler does."""
    run, _ = exported("mixing", "onnx")
    block = re.search(
        r"^    import json\n(?:    .*\n|\n)+", (ROOT / "docs/export.md").read_text(), re.MULTILINE
    )
    code = textwrap.dedent(block[0])
    assert "runs/maskgit_mae_64/export/onnx" in code
    code = code.replace("runs/maskgit_mae_64/export/onnx", str(run / "export" / "onnx"))
    example = {}
    exec(code, example)
    tokenizer, generator = load_tokenizer(run.parent / "tok"), load_generator(run)
    codes = tokenizer.encode(torch.from_numpy(example["images"]))
    assert example["codes"].tolist() == codes.tolist()
    for images in (example["reconstructions"], example["pictures"]):
        assert images.shape[1:] == (3, 32, 32) and 0 <= images.min() < images.max() <= 1
    assert example["generate"](4, seed=1).tolist() != example["generate"](4, seed=2).tolist()

    monkeypatch.setattr(np.random, "default_rng", NoNoise)
    monkeypatch.setattr(GumbelNoise, "draw", lambda self, *shape: torch.zeros(len(self.generators), *shape))
    conditions = generator.condition_indices({"weather": "rainy"})
    expected = generator.generate(num=2, conditions=conditions, steps=8)
    assert example["generate"](2, weather="rainy").tolist() == expected.tolist()


def test_a_difference_is_refused_and_near_ties_are_counted(exported, tmp_path, monkeypatch):
    """Each code here has a twin, 32 further on, that is the same. There are no frames."""
    run = shutil.copytree(exported("elastic", "torch")[0], tmp_path / "tok")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub("frames: .*", f"frames: {tmp_path}/none", config))
    tokenizer = load_tokenizer(run)
    with torch.no_grad():
        tokenizer.quantizer.codebook[32:] = tokenizer.quantizer.codebook[:32]
    save_model(tokenizer, run / "model", step="4")
    load = torch.export.load

    def spoil(output):
        class Spoiled:
            def __init__(self, path):
                self.own, self.is_encoder = load(path).module(), "encoder" in str(path)

            def module(self):
                return lambda *inputs: output(self.is_encoder, self.own(*inputs))

        monkeypatch.setattr(torch.export, "load", Spoiled)

    export = ("export.py", "--run", run, "--format", "torch")
    folder = run / "export" / "torch"
    (folder / "encoder.pt2").write_bytes(b"an earlier one")
    there = sorted((run / "export").iterdir())
    spoil(lambda is_encoder, output: (output + 1) % 64 if is_encoder else output)
    assert "encoder: exported, it gives 64 other codes than PyTorch" in run_script(*export, fails=True)
    spoil(lambda is_encoder, output: output if is_encoder else output + 2e-4)
    assert "decoder: exported, it differs from PyTorch by 0.0002" in run_script(*export, fails=True)
    assert sorted((run / "export").iterdir()) == there
    assert (folder / "encoder.pt2").read_bytes() == b"an earlier one"
    spoil(lambda is_encoder, output: (output + 32) % 64 if is_encoder else output + 5e-5)
    printed = run_script(*export)
    assert "codes 64, near ties with another code 64" in printed
    assert f"on 8 made images (no validation frames at {tmp_path}/none)" in printed
    about = json.loads((folder / "export.json").read_text())
    assert about["compared_with_pytorch"]["decoder"]["largest_difference"] == pytest.approx(5e-5, rel=0.01)
    assert sorted((run / "export").iterdir()) == there
    assert (folder / "encoder.pt2").read_bytes() != b"an earlier one"


def one_line(*arguments):
    """What a failing command says, in one line."""
    printed = run_script("export.py", *arguments, fails=True).splitlines()
    assert printed[-1].startswith("error: ")
    assert not [line for line in printed[:-1] if not line.endswith(": exporting")]
    return printed[-1]


def test_one_line_for_what_cannot_be(tmp_path, frames, monkeypatch):
    run = make_run(tmp_path, frames, "mixing")
    export = ("--run", run, "--format", "torch")
    assert "no run there" in one_line("--run", tmp_path, "--format", "torch")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("my own")
    assert "no export; name another folder" in one_line(*export, "--out", tmp_path / "mine")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    expected = "--format onnx needs onnx: pip install -r requirements-export.txt"
    assert expected in one_line("--run", run, "--format", "onnx")

    def refuse(*arguments, **options):
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(torch.export, "export", refuse)
    expected = "its encoder can't be exported to torch (RuntimeError: no such operator and much more)"
    assert expected in one_line(*export)
    assert not list((run / "export").iterdir())
    weights = tmp_path / "tok" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "damaged" in one_line(*export)
