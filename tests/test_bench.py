"""bench.py: its figures, against FLOPs and hours worked out by hand; and what launches training elsewhere."""

import json
import os
import re
import subprocess

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import (
    DeepSpeedPlugin,
    FullyShardedDataParallelPlugin,
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
)

from benchmark import measuring
from benchmark.made import for_speed
from benchmark.measuring import KeptForGradient, ProductsWithin
from benchmark.steps import count_tokenizer_memory
from tests.conftest import ROOT, run_script
from training.config import TokenizerConfig, load_config
from training.run import Run

TOKENIZER = """
data: {frames: nowhere, workers: 0, train: {count: 100}}
model:
  image_size: 32
  patch_size: 8
  num_tokens: 8
  encoder: {init: mae, width: 32, depth: 2, heads: 2}
  decoder: {width: 48, depth: 3, heads: 2}
  quantizer: {codebook_size: 64, token_size: 4}
discriminator: {channels: 16, layers: 2}
losses: {convnext: 0, adversarial_start: 10}
training: {epochs: 3, global_batch_size: 8}
"""
GENERATOR = """
tokenizer: runs/tiny
data: {frames: nowhere, workers: 0, train: {count: 100}}
model: {width: 32, depth: 2, heads: 2}
training: {epochs: 0.5, global_batch_size: 10}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Configs of a tiny tokenizer and its generator, and all.json: what `bench.py all` measures of them."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "tiny.yaml").write_text(TOKENIZER)
    (folder / "tiny_generator.yaml").write_text(GENERATOR)
    configs = ["--config", folder / "tiny.yaml", "--generator-config", folder / "tiny_generator.yaml"]
    sizes = ["--repeats", 1, "--images", 4, "--batch-size", 2, "--inference-batch-size", 2, "--seconds", 2]
    run_script("bench.py", "all", *configs, *sizes, "--json", folder / "all.json")
    return folder


@pytest.fixture(scope="module")
def measured(folder):
    return json.loads((folder / "all.json").read_text())


def flops(measured, what, part):
    """Those for an image, of the one row whose part is this."""
    (row,) = (row for row in measured[what]["rows"] if row["part"] == part)
    return row["flops_per_image"]


# --- by hand: 2 × weights for each token, and attention's two products, each 2 × sequence² × width ----------


def linear(tokens, inputs, outputs):
    return 2 * tokens * inputs * outputs


def blocks(depth, sequence, width):
    return depth * (linear(sequence, width, 12 * width) + 2 * 2 * sequence**2 * width)


PATCHES, TOKENS, CODES, DIM, PIXELS = 16, 8, 64, 4, 3 * 8 * 8
PATCH_EMBEDDING = linear(PATCHES, PIXELS, 32)
ENCODER = PATCH_EMBEDDING + blocks(2, 1 + PATCHES + TOKENS, 32) + linear(TOKENS, 32, DIM)
DISTANCES = linear(TOKENS, DIM, CODES)
DECODER = linear(TOKENS, DIM, 48) + blocks(3, 1 + PATCHES + TOKENS, 48) + linear(PATCHES, 48, PIXELS)
SMOOTHING = linear(32 * 32, 3 * 9, 3)
# with the gradients of weights and inputs, but for the images'
STEP = 3 * (ENCODER + DECODER + SMOOTHING) - PATCH_EMBEDDING + DISTANCES


def test_flops_of_coding_are_the_formulas(measured):
    assert flops(measured, "tokenizer", "encode") == ENCODER + DISTANCES
    assert flops(measured, "tokenizer", "decode") == DECODER + SMOOTHING


def test_flops_of_a_tokenizers_step_are_the_formulas(measured):
    name = "training step: reconstruction, quantization"
    assert flops(measured, "tokenizer", name) == STEP
    # The entropy's distances are computed again for their two gradients.
    entropy = 4 * DISTANCES
    name += ", entropy"
    assert flops(measured, "tokenizer", name) - STEP == entropy
    # VGG16 sees both images, and only the made one's has gradients.
    vgg, inputs = 0, 3
    for side, width, layers in ((32, 64, 2), (16, 128, 2), (8, 256, 3), (4, 512, 3), (2, 512, 3)):
        for _ in range(layers):
            vgg += linear(side**2, 9 * inputs, width)
            inputs = width
    name += ", lpips"
    assert flops(measured, "tokenizer", name) - STEP - entropy == 3 * vgg
    # The discriminator passes gradients on for one image, and takes them of two, which need none themselves.
    first = linear(16**2, 16 * 3, 16)
    patchgan = first + linear(8**2, 16 * 16, 32) + linear(7**2, 16 * 32, 64) + linear(6**2, 16 * 64, 1)
    name += ", adversarial"
    total = STEP + entropy + 3 * vgg + 2 * patchgan + 2 * (3 * patchgan - first)
    assert flops(measured, "tokenizer", name) == total
    assert flops(measured, "loading", "training step on images in memory") == total


def test_flops_of_a_generator_are_the_formulas(measured):
    head = linear(TOKENS, 32, CODES)
    assert flops(measured, "generator", "training step") == 3 * (blocks(2, TOKENS, 32) + head)
    step = blocks(2, 1 + TOKENS, 32) + head  # the condition is a token
    assert flops(measured, "generator", "generation in 8 steps") == 8 * step
    assert flops(measured, "generator", "generation in 8 steps, guided") == 8 * 2 * step


def test_every_row_has_every_figure(measured):
    assert set(measured) == {"extract", "tokenizer", "generator", "loading", "rfid"}
    for result in measured.values():
        assert result["device"] and result["torch"]
        for row in result["rows"]:
            assert row["seconds"] > 0 and 0.05 < row["peak_memory_gb"] < 50, row
            if row["images"]:
                assert row["images_per_second"] == pytest.approx(row["images"] / row["seconds"])
            if row["flops_per_image"]:
                # One repeat, and the mean of the rates before and after it.
                rate = row["flops_per_image"] * row["images_per_second"]
                assert row["mfu"] == pytest.approx(rate / row["matrix_flops"])
            else:
                assert row["mfu"] is None and row["matrix_flops"] is None
    whole, *two_frames = measured["extract"]["rows"]
    assert whole["images"] == 60
    assert measured["extract"]["times_faster"] == {
        row["part"]: pytest.approx(whole["seconds"] / row["seconds"]) for row in two_frames
    }
    assert [row["images"] for row in two_frames] == [2, 2]
    parts = [row["part"] for row in measured["loading"]["rows"]]
    assert parts == [
        "JPEGs, 0 workers: alone",
        "training step on images in memory",
        "JPEGs, 0 workers: training step",
        "JPEGs, 0 workers: pre-tokenization",
    ]
    assert 0 < measured["loading"]["rows"][2]["busy"] <= 1
    assert [row["part"] for row in measured["rfid"]["rows"]] == ["rFID from start to end"]


def test_shares_are_of_all_the_time(measured):
    """And they name what the work is made of."""
    rows = {row["part"]: row["shares"] for what in measured.values() for row in what["rows"]}
    for part, shares in rows.items():
        if shares is not None:
            assert sum(shares.values()) == pytest.approx(1, abs=0.02), part
            assert shares["matrix products"] > 0 and shares["attention"] > 0, part
    assert rows["encode"]["convolutions"] > 0  # the patches' embedding
    assert "convolutions" not in rows["generation in 8 steps"]
    assert rows["training step: reconstruction, quantization, entropy, lpips"]["convolutions"] > 0.1
    assert rows["rFID from start to end"] is None and rows["two frames"] is None  # no work of this process


def test_the_parts_of_a_step_add_up(measured):
    parts = measured["tokenizer"]["parts"]
    assert list(parts) == ["forward and backward", "update and EMA", "entropy", "lpips", "adversarial"]
    whole = next(row for row in measured["tokenizer"]["rows"] if row["part"].endswith("lpips, adversarial"))
    assert sum(parts.values()) == pytest.approx(whole["seconds"])


def test_products_within_leave_the_work_as_it_is(monkeypatch):
    """They run in the forward and in the backward pass, and the gradients stay."""
    monkeypatch.setattr(measuring, "WITHIN", -1.0)  # wherever it can be
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(5, 5), torch.rand(3, 5)

    def gradients():
        outputs = layer(inputs).exp().sigmoid()
        runs.append(within.seconds)
        return torch.autograd.grad(outputs.sum(), layer.parameters())

    within, runs = ProductsWithin(lambda: 0.5), []
    plain = gradients()
    with within:
        beside = gradients()
    torch.testing.assert_close(plain, beside, rtol=0, atol=0)
    assert runs[0] == 0 < runs[1] < within.seconds


def test_the_time_of_products_within_is_taken_off(monkeypatch):
    """By a clock that the work moves on by 3 s and a product by a quarter of a second."""
    clock, matmul = [0.0], torch.matmul

    def product(one, other):
        clock[0] += 0.25
        return matmul(one, other)

    def work():
        clock[0] += 3.0
        weight = torch.rand(5, requires_grad=True)
        weight.exp().sigmoid().sum().backward()

    monkeypatch.setattr(measuring, "WITHIN", -1.0)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "matmul", product)
    monkeypatch.setitem(measuring.MATRICES, "cpu", ((8, 8, 8), (16, 8, 8)))
    bench = measuring.Bench(torch.device("cpu"), 1)
    seconds, rate = bench.beside_products(work, "float32")
    # 2 at the start, 6 before and 6 after, and more within
    assert clock[0] > 3.0 + 0.25 * (2 + 6 + 6)
    assert seconds == 3.0
    assert rate == 2 * 16 * 8 * 8 / 0.25  # of the faster shape


def plan(folder, *options):
    configs = ["--config", folder / "tiny.yaml", "--generator-config", folder / "tiny_generator.yaml"]
    printed = run_script("bench.py", "plan", *configs, *options, "--json", folder / "plan.json")
    return json.loads((folder / "plan.json").read_text())["plan"], printed


def test_plan_counts_what_training_takes(folder, measured):
    (tokenizer, generator), printed = plan(folder)
    # 3 epochs of 100 in batches of 8 are 37.5 steps; the discriminator joins after 10 of them.
    assert (tokenizer["steps"], tokenizer["images"]) == (38, 304)
    name = "training step: reconstruction, quantization, entropy, lpips"
    before = flops(measured, "tokenizer", name)
    after = flops(measured, "tokenizer", f"{name}, adversarial")
    assert tokenizer["flops"] == 80 * before + 224 * after
    assert (generator["steps"], generator["images"]) == (5, 50)
    assert generator["flops"] == 50 * flops(measured, "generator", "training step")
    assert [cell["device_batch"] for cell in (tokenizer, generator)] == [8, 10]
    assert tokenizer["memory"] > generator["memory"] > 0
    assert [cell["hours"] for cell in (tokenizer, generator)] == [None, None]
    assert printed.count("not measured") == 2


def memory(folder, device_batch_size, *settings):
    """Bytes counted for the tiny tokenizer."""
    settings = ["training.global_batch_size=16", f"training.device_batch_size={device_batch_size}", *settings]
    run = Run(for_speed(load_config(folder / "tiny.yaml", TokenizerConfig, settings), folder))
    run.plan(100, "counted in a test")
    return count_tokenizer_memory(run)


def test_memory_is_weights_and_what_autograd_keeps(folder):
    """It grows with the batch by the same amount for each image, and shrinks with checkpointing."""
    two, four, eight = (memory(folder, size) for size in (2, 4, 8))
    assert eight - four == 2 * (four - two)
    less = memory(folder, 8, "training.gradient_checkpointing=true")
    assert 2 * two - four < less < eight

    def kept_by_one_layer(batch):
        layer, inputs = torch.nn.Linear(10, 6), torch.rand(batch, 10)
        kept = KeptForGradient(layer.parameters())
        with kept:
            outputs = layer(inputs.requires_grad_()).relu(), layer(inputs)
            assert kept.now == kept.peak
            del outputs
        return kept.now, kept.peak

    # the layer's input once, though two products keep it, and what relu gave; then all is let go
    assert kept_by_one_layer(7) == (0, 7 * 10 * 4 + 7 * 6 * 4)


def test_plan_turns_flops_into_hours(folder, measured):
    assumed = ["--matrix-rate", 0.5, "--mfu", 0.4, "--devices", 2]
    cells, printed = plan(folder, *assumed)
    for cell in cells:
        assert cell["hours"] == pytest.approx(cell["flops"] / (2 * 0.5e12 * 0.4 * 3600))
    assert printed.count("assumed: 0.5 TFLOP/s, MFU 0.4") == 2

    # A measured rate goes before an assumed one, for what it was measured on.
    only = {"generator": measured["generator"]}
    (folder / "generator.json").write_text(json.dumps(only))
    cells, printed = plan(folder, *assumed, "--rates", folder / "generator.json")
    row = measured["generator"]["rows"][0]
    per_image = row["seconds"] / row["images"]
    assert cells[1]["hours"] == pytest.approx(50 * per_image / 2 / 3600)
    assert cells[0]["rate"].startswith("assumed") and cells[1]["rate"].startswith(
        "measured: tiny_generator on"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "--mfu", "0.4"], "--matrix-rate and --mfu go together"),
        (["plan", "--rates", "{folder}/tiny.yaml"], "tiny.yaml: not a file that bench.py wrote"),
        (["plan", "--config", "configs/demo_tokenizer.yaml"], "data.train.count"),
        (["generator", "--config", "{folder}/lone.yaml"], "elsewhere.yaml: no such config"),
    ],
)
def test_refuses_in_one_line(folder, arguments, words):
    (folder / "lone.yaml").write_text(GENERATOR.replace("runs/tiny", "runs/elsewhere"))
    message = run_script("bench.py", *[text.format(folder=folder) for text in arguments], fails=True)
    assert words in message


# --- several GPUs -------------------------------------------------------------------------------------------


def launched(name, monkeypatch):
    """What `accelerate launch --config_file` makes of a launcher config; sets the environment it would."""
    path = ROOT / "configs" / "accelerate" / f"{name}.yaml"
    options = ["--config_file", str(path), "--main_process_ip", "10.0.0.1", "train_tokenizer.py"]
    arguments, config, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
        environment = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        environment = prepare_multi_gpu_env(arguments)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    return arguments


def test_several_machines_are_launched(monkeypatch):
    arguments = launched("multi_node", monkeypatch)
    assert arguments.multi_gpu and not arguments.use_fsdp and not arguments.use_deepspeed
    assert (arguments.nnodes, arguments.nproc_per_node) == ("2", "8")
    assert arguments.rdzv_endpoint == "10.0.0.1:29500"


def test_fsdp_config_constructs(monkeypatch):
    assert launched("fsdp", monkeypatch).use_fsdp
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.transformer_cls_names_to_wrap == ["Block"]


def test_deepspeed_config_constructs(monkeypatch):
    """As far as can be without the deepspeed package."""
    assert launched("deepspeed_zero2", monkeypatch).use_deepspeed
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == 2 and plugin.gradient_clipping == 1.0
    assert plugin.deepspeed_config["zero_optimization"]["offload_optimizer"]["device"] == "none"


@pytest.mark.parametrize(
    ("job", "arguments", "expected"),
    [
        ("extract", ["--limit", "10"], ["--shard 3/16", "--limit 10"]),
        (
            "train_tokenizer",
            ["configs/mae_64.yaml"],
            ["--num_machines 2 --num_processes 16", "--machine_rank 1"],
        ),
        ("pretokenize", ["configs/maskgit_mae_64.yaml"], ["--num_processes 8", "--shard 3/16"]),
        ("train_generator", ["configs/maskgit_mae_64.yaml"], ["--main_process_ip first"]),
        ("evaluate", ["runs/mae_64"], ["--run runs/mae_64"]),
    ],
)
def test_slurm_jobs_run_commands_that_exist(tmp_path, job, arguments, expected):
    """With Slurm and the launcher stood in for by scripts that say what they are asked."""
    stubs = {
        "srun": 'shift; SLURM_NODEID=1 exec "$@"',
        "scontrol": "echo first; echo second",
        "accelerate": 'echo "$@"',
        "python": 'echo "$@"',
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").touch()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ENV": str(tmp_path)}
    environment |= {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "node[1-2]"}
    environment |= {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "16", "SLURM_CPUS_PER_TASK": "64"}
    done = subprocess.run(
        ["bash", f"slurm/{job}.sbatch", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    for text in expected:
        assert text in done.stdout
    script, options = re.search(r"(\w+\.py)(.*)", done.stdout).groups()
    known = run_script(script, "--help")
    for option in re.findall(r"--[\w-]+", options):
        assert f"{option} " in known or f"{option}\n" in known or f"{option}]" in known, (script, option)
