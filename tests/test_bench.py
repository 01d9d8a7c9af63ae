"""bench.py: its figures, against FLOPs and hours worked out by hand."""

import argparse
import json

import pytest
import torch

import bench
from benchmark import measuring
from benchmark.counting import KeptForGradient, count_tokenizer_memory
from benchmark.made import for_speed
from benchmark.steps import tokenizer_beside
from tests.conftest import ROOT, run_script
from training.config import GeneratorConfig, TokenizerConfig, load_config
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
VQGAN = """
data: {frames: nowhere, workers: 0, train: {count: 100}}
model:
  {kind: vqgan, image_size: 32, channels: 32, multipliers: [1, 1], blocks: 1, quantizer: {codebook_size: 64}}
discriminator: {channels: 16, layers: 2}
losses: {lpips: 0, convnext: 0}
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
    """Configs of tiny networks, and what `bench.py all` measures of them: all.json, all.md and all.txt.

    The rate is that of small products, which takes less time and changes nothing else.
    """
    folder = tmp_path_factory.mktemp("bench")
    for name, config in (("tiny", TOKENIZER), ("tiny_vqgan", VQGAN), ("tiny_generator", GENERATOR)):
        (folder / f"{name}.yaml").write_text(config)
    options = ["--config", folder / "tiny.yaml", "--generator-config", folder / "tiny_generator.yaml"]
    options += ["--vqgan-config", folder / "tiny_vqgan.yaml"]
    options += ["--repeats", 1, "--images", 4, "--batch-size", 2, "--inference-batch-size", 2, "--seconds", 2]
    options += ["--json", folder / "all.json", "--markdown", folder / "all.md"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(measuring.MATRICES, "cpu", ((256, 256, 256), (128, 64, 256)))
        (folder / "all.txt").write_text(run_script("bench.py", "all", *options))
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
    # Loading is into steps without the slow losses.
    assert flops(measured, "loading", "training step on images in memory") == STEP + entropy


def test_flops_of_a_generator_are_the_formulas(measured):
    head = linear(TOKENS, 32, CODES)
    assert flops(measured, "generator", "training step") == 3 * (blocks(2, TOKENS, 32) + head)
    step = blocks(2, 1 + TOKENS, 32) + head  # the condition is a token
    assert flops(measured, "generator", "generation in 8 steps") == 8 * step
    assert flops(measured, "generator", "generation in 8 steps, guided") == 8 * 2 * step


def test_every_row_has_every_figure(measured):
    assert set(measured) == {"extract", "tokenizer", "vqgan", "generator", "loading", "rfid"}
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
        "JPEGs, 0 workers: pre-tokenization, once",
    ]
    assert 0 < measured["loading"]["rows"][2]["busy"] <= 1
    assert [row["part"] for row in measured["rfid"]["rows"]] == [
        "Inception features",
        "rFID from start to end, once",
    ]
    inception, rfid = (row["flops_per_image"] for row in measured["rfid"]["rows"])
    coding = flops(measured, "tokenizer", "encode") + flops(measured, "tokenizer", "decode")
    assert rfid == coding + 2 * inception


def test_shares_are_of_all_the_time(measured):
    """And they name what the work is made of."""
    rows = {row["part"]: row["shares"] for what in measured.values() for row in what["rows"]}
    for part, shares in rows.items():
        if shares is not None:
            assert sum(shares.values()) == pytest.approx(1, abs=0.02), part
            if not part.startswith(("VQGAN", "Inception")):
                assert shares["matrix products"] > 0 and shares["attention"] > 0, part
            assert "fused" not in shares, part  # nothing is compiled
    assert rows["encode"]["convolutions"] > 0  # the patches' embedding
    assert "convolutions" not in rows["generation in 8 steps"]
    assert rows["training step: reconstruction, quantization, entropy, lpips"]["convolutions"] > 0.1
    assert rows["VQGAN: training step with all losses"]["convolutions"] > 0.1
    assert (
        rows["rFID from start to end, once"] is None and rows["two frames"] is None
    )  # no work of this process


def test_the_parts_of_a_step_add_up(measured):
    parts = measured["tokenizer"]["parts"]
    assert list(parts) == ["forward and backward", "update and EMA", "entropy", "lpips", "adversarial"]
    whole = next(row for row in measured["tokenizer"]["rows"] if row["part"].endswith("lpips, adversarial"))
    assert sum(parts.values()) == pytest.approx(whole["seconds"])


def test_all_is_counted_before_anything_is_measured(tmp_path, monkeypatch):
    done = []

    def part(name):
        def measure_part(arguments, folder):
            done.append(f"{name} counted")
            yield {}
            done.append(f"{name} measured")
            yield {name: arguments.config}

        measure_part.__name__ = name
        return measure_part

    one, other = part("one"), part("other")
    monkeypatch.setattr(bench, "PARTS", {one: None, other: "own_config"})
    arguments = argparse.Namespace(parts=(one, other), config="a.yaml", own_config="b.yaml", set=[])
    assert bench.measure(arguments, tmp_path) == {"one": "a.yaml", "other": "b.yaml"}
    assert done == ["one counted", "other counted", "one measured", "other measured"]


def test_page_has_every_line(folder, measured):
    page = (folder / "all.md").read_text()
    for name, result in measured.items():
        assert f"## {name}, once" in page
        for row in result["rows"]:
            assert f"| {row['part']} | {row['seconds']:.4g} |" in page
    three = measured["tokenizer"]["rows"][1]
    line = f"reconstruction, quantization, entropy, batch 2 | ≥ 85 % | {three['mfu'] * 100:.0f} % |"
    assert page.count(line) == 1 and page.count("≥") == 1


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


def test_generators_tokenizer_is_the_config_beside_it():
    """Also where the folder's configs give their runs its name."""
    path = ROOT / "configs" / "best" / "maskgit_titok_128.yaml"
    assert tokenizer_beside(path, load_config(path, GeneratorConfig)).num_tokens == 128


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
