"""What only makes training faster or smaller leaves its results; and no step waits for the device."""

import copy
import json
import platform
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

import train_tokenizer
from benchmark.made import perceptual_weights
from data.frames import ImageBatch
from models.discriminator import PatchGAN
from models.perceptual import LPIPS
from models.vqgan import VQGAN
from tests.conftest import ROOT, TINY_GENERATOR, TINY_TOKENIZER, run_script
from training.config import TokenizerConfig, load_config
from training.run import Run
from training.sections import LossSection


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, frames):
    """A folder with configs of tiny networks, the tokenizer's run `tokenizer`, and the generator's tokens."""
    folder = tmp_path_factory.mktemp("speed")
    (folder / "tokenizer.yaml").write_text(TINY_TOKENIZER.format(frames=frames, runs=folder / "runs"))
    (folder / "vqgan.yaml").write_text(
        TINY_TOKENIZER.format(frames=frames, runs=folder / "runs").split("model:")[0]
        + "model: {kind: vqgan, image_size: 32, channels: 32, multipliers: [1, 1], blocks: 1}\n"
        + f"discriminator: {{channels: 16, layers: 2}}\nrun: {{dir: {folder / 'runs'}, tracker: none}}\n"
        + "losses: {lpips: 0, convnext: 0}\n"
        + "training: {max_steps: 4, global_batch_size: 8, warmup_steps: 2, log_every: 1}\n"
    )
    (folder / "generator.yaml").write_text(
        TINY_GENERATOR.format(
            tokenizer=folder / "runs" / "tokenizer",
            frames=frames,
            tokens=folder / "tokens",
            runs=folder / "runs",
        )
    )
    train(folder, "tokenizer", "tokenizer")
    train(folder, "generator", "tokens-are-there")
    return folder


def train(folder, kind, name, *overrides):
    """Train and return the steps' records of metrics.jsonl."""
    script = "train_maskgit.py" if kind == "generator" else "train_tokenizer.py"
    settings = [item for text in (f"run.name={name}", *overrides) for item in ("--set", text)]
    run_script(script, "--config", folder / f"{kind}.yaml", *settings)
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "train/loss" in record]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("tokenizer", ["gradient_checkpointing"]),
        ("vqgan", ["gradient_checkpointing"]),
        ("generator", ["gradient_checkpointing"]),
        # Compiling takes its time: the generator's blocks are of one class with TiTok's.
        ("generator", ["compile"]),
        ("vqgan", ["compile", "gradient_checkpointing"]),
    ],
)
def test_results_stay(workplace, kind, options):
    same = ["model.dropout=0"] if kind == "generator" else ["losses.adversarial_start=1"]
    plain = train(workplace, kind, f"{kind}-plain", *same)
    settings = [f"training.{option}=true" for option in options]
    counters.clear()
    other = train(workplace, kind, "-".join([kind, *options]), *settings, *same)
    assert len(plain) == len(other) == 4
    assert (counters["stats"]["unique_graphs"] > 0) == ("compile" in options)
    assert not counters["graph_break"] and not counters["recompile_limit"]
    names = {"train/loss", "train/gradient_norm"}
    if kind != "generator":
        names |= {"train/discriminator", "train/discriminator_gradient_norm"}
    # Rounding grows with the steps: sooner or later it gives some latent another code.
    for one, two, tolerance in zip(plain, other, (1e-4, 1e-4, 1e-2, 1e-2)):
        for name in names & one.keys():
            assert one[name] == pytest.approx(two[name], rel=tolerance), name
    assert names <= one.keys()


def test_compiled_perceptual_losses_stay(workplace, tmp_path):
    weights = perceptual_weights(LossSection(convnext=0), tmp_path)["lpips_weights"]
    settings = ["training.compile=true", "losses.lpips=1", f"losses.lpips_weights={weights}"]
    run = Run(load_config(workplace / "tokenizer.yaml", TokenizerConfig, ["run.name=perceptual", *settings]))
    run.plan(20, "made for a test")
    plain, compiled = LPIPS(weights), train_tokenizer.Networks(run).perceptual["lpips"]
    counters.clear()
    targets = torch.rand(2, 3, 32, 32)
    results = []
    for network in (plain, compiled):
        images = torch.full((2, 3, 32, 32), 0.5, requires_grad=True)
        distances = network(images, targets)
        results.append((distances.detach(), torch.autograd.grad(distances.sum(), images)[0]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-7)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told to")
@pytest.mark.parametrize("keep", [False, True])
def test_freed_memory_stays_on_a_cpu(keep):
    """A tensor of 512 MB is where earlier ones were: the system need not give its pages again."""
    script = f"""
import resource, torch
from training.speed import keep_freed_memory
if {keep}:
    keep_freed_memory()
for _ in range(4):  # the second may not fit exactly where the first was
    torch.ones(2**27)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**27)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # 512 MB are 131,072 pages, or 256 huge ones
    assert int(done.stdout) < 64 if keep else int(done.stdout) >= 256


@pytest.mark.parametrize("network", [PatchGAN, lambda: VQGAN(32, 32, (1, 1, 2), 1)])
def test_channels_last_stays(network):
    """Weights in the other memory format give the same outputs and gradients."""
    torch.manual_seed(0)
    ours = network()
    assert any(not weight.is_contiguous() for weight in ours.parameters())
    contiguous = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
    images, results = torch.rand(2, 3, 32, 32), []
    for each in (ours, contiguous):
        output = each(images)
        output = output.images if isinstance(each, VQGAN) else output
        gradients = torch.autograd.grad(output.square().mean(), each.parameters(), allow_unused=True)
        results.append((output.detach(), [gradient for gradient in gradients if gradient is not None]))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


def test_bfloat16_is_float32_within_its_precision(workplace, frames):
    """A step's losses and gradients, adversarial ones among them, under the autocast that a GPU has."""
    config = load_config(workplace / "tokenizer.yaml", TokenizerConfig, ["run.name=bf16"])
    run = Run(config)
    run.plan(20, "made for a test")
    networks = train_tokenizer.Networks(run)
    batch = ImageBatch(torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8), {})
    logged, gradients = [], []

    def keep_scalars(**scalars):
        logged[-1] |= {name: value.item() for name, value in scalars.items()}

    def keep_gradients(*updates):
        for network, optimizer in updates:
            weights = network.parameters()
            gradients[-1] += [weight.grad.clone() for weight in weights if weight.grad is not None]
            optimizer.zero_grad()
        return [torch.zeros(()) for _ in updates]

    run.add, run.clip_and_step = keep_scalars, keep_gradients
    for bf16 in (False, True):
        logged.append({})
        gradients.append([])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            train_tokenizer.train_step(run, networks, [batch], [], step=2)
        assert all(gradient.dtype == torch.float32 for gradient in gradients[-1])
    exact, rounded = logged
    assert exact != rounded
    assert exact == pytest.approx(rounded, rel=0.03, abs=0.01)
    assert len(gradients[0]) == len(gradients[1])
    flat = [torch.cat([gradient.flatten() for gradient in each]) for each in gradients]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.99


class Syncs(TorchDispatchMode):
    """Counts what makes the host wait for a device: values read, and shapes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        if name in self.WAITS:
            self.count[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_no_step_waits_for_the_device(workplace, kind, monkeypatch):
    """More steps, with as many logs, validations, analyses and checkpoints, read no more from the device."""
    counts = {steps: count_syncs(workplace, kind, steps, monkeypatch) for steps in (11, 19)}
    assert counts[11]["item"] + counts[11]["_local_scalar_dense"] > 0  # it sees the last step's log
    assert counts[11] == counts[19]


def count_syncs(folder, kind, steps, monkeypatch):
    syncs = Syncs()
    for name in ("cpu", "tolist", "numpy", "item"):
        method = getattr(torch.Tensor, name)

        def counted(tensor, *args, method=method, name=name, **options):
            syncs.count[name] += 1
            return method(tensor, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)
    move = torch.Tensor.to

    def counted_move(tensor, *args, **options):
        # Data from the host's pinned memory; floats, a gradient's norm say, are on the device already.
        data = isinstance(args[0] if args else None, torch.device) and not tensor.is_floating_point()
        syncs.count["blocking to"] += data and not options.get("non_blocking")
        return move(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", counted_move)
    rarely = [f"training.{each}_every=100" for each in ("log", "validate", "checkpoint")]
    with syncs:
        train(folder, kind, f"{kind}-{steps}-steps", f"training.max_steps={steps}", *rarely)
    monkeypatch.undo()
    return syncs.count
