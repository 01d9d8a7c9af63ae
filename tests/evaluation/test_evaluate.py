"""evaluate.py: distances of features, their caches, interrupted generation, fills and edits.

Most tests take a small stand-in for InceptionV3, which is slow on a CPU.
"""

import shutil

import numpy as np
import pytest
import torch

import metrics.dinov2
import metrics.features
import metrics.inception
from metrics.borders import BorderSteps, border_ratio
from metrics.efficientnet import EfficientNetFeatures
from metrics.frechet import frechet_distance
from metrics.inception import RandomInceptionFeatures
from metrics.similarity import psnr
from models import load_generator, load_tokenizer
from models.encoder import LatentEncoder
from models.maskgit import MaskGIT
from models.storage import read_provenance, save_model
from tests.conftest import run_script
from tests.evaluation.made import RANDOM, Pooled, evaluate, own_conditions, real_images, result
from training.config import GeneratorConfig, load_config


def test_every_image_goes_through_the_network_once(workplace, pooled):
    run = workplace / "runs" / "tok"
    evaluate(run, "--rfid", "--kid", "--prc", "--psnr", *RANDOM)
    assert pooled() == 7 + 7
    assert {path.stem for path in (run / "eval").glob("*.json")} == {
        *("fd_random", "kid_random", "prc_random", "psnr")
    }
    tokenizer, images = load_tokenizer(run), real_images(workplace)
    real, made = (Pooled()(each) for each in (images, tokenizer.decode(tokenizer.encode(images))))
    record = result(run, "fd_random")
    assert record["value"] == pytest.approx(frechet_distance(made, real), rel=1e-4)
    assert (record["num_images"], record["num_real"], record["feature_extractor"]) == (7, 7, "pooled")
    assert result(run, "kid_random")["subset_size"] == 7
    assert {"precision", "recall"} <= result(run, "prc_random").keys()


def test_real_features_serve_the_next_evaluation(workplace, pooled):
    tokenizer_run, generator_run = workplace / "runs" / "tok", workplace / "runs" / "gen"
    first = evaluate(tokenizer_run, "--rfid", *RANDOM)
    assert "fewer than 10,000 images" in first
    value = result(tokenizer_run, "fd_random")["value"]
    pooled()
    evaluate(tokenizer_run, "--rfid", "--kid", *RANDOM)
    assert pooled() == 7  # the reconstructions
    assert result(tokenizer_run, "fd_random")["value"] == pytest.approx(value, rel=1e-9)
    evaluate(generator_run, "--gfid", "--num", 5, *RANDOM)
    assert pooled() == 5
    assert len(list((workplace / "frames" / ".features").iterdir())) == 1

    (frame,) = (workplace / "frames" / "val").glob("*/*-0000003.jpg")
    frame.write_bytes(b"no picture")
    assert f"{frame.name}: not readable" in evaluate(tokenizer_run, "--rfid", *RANDOM)
    assert pooled() == 6 + 6
    assert result(tokenizer_run, "fd_random")["num_real"] == 6


def test_frames_that_cannot_be_written(workplace, pooled):
    (workplace / "frames" / ".features").write_text("in the folder's place")
    for expected in (14, 7):
        evaluate(workplace / "runs" / "tok", "--rfid", *RANDOM)
        assert pooled() == expected


def test_as_many_are_generated_as_there_are_real_ones(workplace, pooled):
    run = workplace / "runs" / "gen"
    evaluate(run, "--gfid", "--kid", "--seed", 3, *RANDOM)
    assert pooled() == 7 + 7
    generator, tokenizer = load_generator(run), load_tokenizer(workplace / "runs" / "tok")
    sampling = load_config(workplace / "gen.yaml", GeneratorConfig).sampling.model_dump()
    made = tokenizer.decode(generator.generate(num=7, seed=3, **sampling))
    real = Pooled()(real_images(workplace))
    record = result(run, "fd_random")
    assert record["value"] == pytest.approx(frechet_distance(Pooled()(made), real), rel=1e-4)
    assert (record["num_images"], record["num_real"], record["seed"]) == (7, 7, 3)
    assert len(record["frames_sha256"]) == 64 and record["sampling"] == sampling
    assert record["conditions"] is None
    assert not list((run / "eval").glob(".generated*"))


def test_conditions_are_those_of_the_real_frames(workplace, pooled, conditional):
    """One after another and from the start again, and in a fill the frame's own."""
    arguments = ("--gfid", "--fill", "--mask-ratio", 0.5, "--num", 9, "--batch-size", 4)
    evaluate(conditional, *arguments, *RANDOM)
    generator, tokenizer = load_generator(conditional), load_tokenizer(workplace / "runs" / "bold")
    own, images = own_conditions(workplace), real_images(workplace)
    made = tokenizer.decode(generator.generate(9, own[[0, 1, 2, 3, 4, 5, 6, 0, 1]], seed=0))
    record = result(conditional, "fd_random")
    assert record["value"] == pytest.approx(frechet_distance(Pooled()(made), Pooled()(images)), rel=1e-3)
    order = np.stack([np.random.default_rng([0, place]).permutation(8) for place in range(7)])
    filled = generator.fill(tokenizer.encode(images), torch.from_numpy(order < 4), own, seed=0)
    fill = result(conditional, "fill")
    assert fill["value"] == pytest.approx(psnr(tokenizer.decode(filled), images).mean().item(), rel=1e-4)
    assert record["conditions"] == fill["conditions"] == "those of the real frames"


def test_borders_of_both_kinds(workplace):
    """Steps of reconstructions, and of generated images, beside those of the frames."""
    runs, images = workplace / "runs", real_images(workplace)
    evaluate(runs / "tok", "--borders", "--workers", 0)
    evaluate(runs / "gen", "--borders", "--workers", 0, "--num", 5)
    tokenizer = load_tokenizer(runs / "tok")
    sampling = load_config(workplace / "gen.yaml", GeneratorConfig).sampling.model_dump()
    codes = load_generator(runs / "gen").generate(num=5, seed=0, **sampling)
    for run, made in (("tok", tokenizer.encode(images)), ("gen", codes)):
        record = result(runs / run, "borders")
        expected = border_ratio(*(BorderSteps()(each) for each in (tokenizer.decode(made), images)))
        assert record["value"] == pytest.approx(expected["value"], rel=1e-3)
        assert record["real"] == pytest.approx(expected["real"], rel=1e-3)
        assert record["feature_extractor"] == "borders-16" and record["num_real"] == 7


def test_interrupted_generation_goes_on(workplace, pooled, monkeypatch):
    run = workplace / "runs" / "gen"
    arguments = ("--gfid", "--prc", "--num", 10, "--batch-size", 2, *RANDOM)
    evaluate(run, *arguments)
    whole = {name: result(run, name)["value"] for name in ("fd_random", "prc_random")}
    shutil.rmtree(run / "eval")

    generate, firsts = MaskGIT.generate, []

    def interrupted(self, num, first_index, **options):
        if len(firsts) == 3:
            raise KeyboardInterrupt
        firsts.append(first_index)
        return generate(self, num, first_index=first_index, **options)

    def counted(self, num, first_index, **options):
        firsts.append(first_index)
        return generate(self, num, first_index=first_index, **options)

    monkeypatch.setattr(MaskGIT, "generate", interrupted)
    evaluate(run, *arguments, fails=True)
    assert firsts == [0, 2, 4] and not list((run / "eval").glob("*.json"))
    firsts.clear()
    monkeypatch.setattr(MaskGIT, "generate", counted)
    assert "1 of 3 parts are generated" in evaluate(run, *arguments)
    assert firsts == [4, 6, 8]
    assert {name: result(run, name)["value"] for name in whole} == pytest.approx(whole, rel=1e-9)
    assert not list((run / "eval").glob(".generated*"))


def test_parts_of_other_weights_or_options_are_not_taken(workplace, pooled, conditional, monkeypatch):
    run = workplace / "runs" / "gen"
    generate, count = MaskGIT.generate, [0]

    def interrupted(self, num, **options):
        count[0] += num
        if count[0] > 4:
            raise KeyboardInterrupt
        return generate(self, num, **options)

    monkeypatch.setattr(MaskGIT, "generate", interrupted)
    evaluate(run, "--gfid", "--num", 8, "--batch-size", 4, *RANDOM, fails=True)
    monkeypatch.setattr(MaskGIT, "generate", generate)
    assert "parts are generated" not in evaluate(run, "--gfid", "--num", 8, "--seed", 1, *RANDOM)
    generator = load_generator(run)
    generator.load_state_dict({key: value + 1 for key, value in generator.state_dict().items()})
    save_model(generator, run / "model", **read_provenance(run / "model"))
    assert "parts are generated" not in evaluate(run, "--gfid", "--num", 8, *RANDOM)

    monkeypatch.setattr(MaskGIT, "generate", interrupted)
    count[0] = 0
    evaluate(conditional, "--gfid", "--num", 8, "--batch-size", 4, *RANDOM, fails=True)
    monkeypatch.setattr(MaskGIT, "generate", generate)
    labels = workplace / "frames" / "val" / "metadata.jsonl"
    labels.write_text(labels.read_text().replace("night", "daytime"))
    assert "parts are generated" not in evaluate(conditional, "--gfid", "--num", 8, *RANDOM)


def test_the_precision_is_noted_and_is_the_networks(workplace):
    """The metric computes in float32, whatever the tokenizer does."""
    run = workplace / "runs" / "tok"
    evaluate(run, "--psnr", "--workers", 0)
    exact = result(run, "psnr")
    evaluate(run, "--psnr", "--workers", 0, "--precision", "bf16")
    rounded = result(run, "psnr")
    assert (exact["precision"], rounded["precision"]) == ("fp32", "bf16")
    assert exact["value"] != rounded["value"] == pytest.approx(exact["value"], rel=0.05)


def test_what_cannot_be_written_is_printed(workplace):
    """A value that took hours, in a run of somebody else's: a file is where the folder would be."""
    run = workplace / "runs" / "not_mine"
    shutil.copytree(workplace / "runs" / "tok", run, ignore=shutil.ignore_patterns("eval"))
    (run / "eval").touch()
    printed = evaluate(run, "--psnr", "--ssim", "--workers", 0, fails=True)
    assert f"{run}: psnr " in printed and f"{run}: ssim " in printed
    last = printed.splitlines()[-1]
    assert last.startswith("error: ") and all(
        f"{name}.json: not written (" in last for name in ("psnr", "ssim")
    )


def test_two_processes_measure_the_same(workplace, conditional):
    """To the sample, in the order of the frames; a generator by InceptionV3 with random weights."""
    extractor = RandomInceptionFeatures()
    torch.save(extractor.network.state_dict(), workplace / "inception.pth")
    suffix = "_efficientnet_lite0"
    for run, asked, names, features in (
        (
            workplace / "runs" / "tok",
            ("--kid", "--prc", "--psnr", "--probe", "--feature-extractor", "efficientnet-lite0"),
            (f"kid{suffix}", f"prc{suffix}", "psnr", "probe"),
            "efficientnet-lite0-",
        ),
        (
            conditional,
            (
                "--isc",
                "--kid",
                "--prc",
                "--locality",
                "--fill",
                "--inception-weights",
                workplace / "inception.pth",
            ),
            ("isc", "kid", "prc", "locality", "fill"),
            "inception-v3-fid-",
        ),
    ):
        options = (*asked, "--num", 5, "--mask-ratio", 0.5, "--batch-size", 2, "--workers", 0)
        evaluate(run, *options)
        one = {name: result(run, name) for name in names}
        shutil.rmtree(run / "eval")
        if run.name == "tok":
            shutil.rmtree(workplace / "frames" / ".features")
        evaluate(run, *options, processes=2)
        for name, record in one.items():
            other = result(run, name)
            expected = 5 if run == conditional and name != "fill" else 7
            assert other["num_images"] == record["num_images"] == expected
            assert other["value"] == pytest.approx(record["value"], rel=1e-3, abs=1e-4), (run.name, name)
            assert other.get("probes") == record.get("probes")
            if name not in ("locality", "psnr", "probe"):
                assert other["feature_extractor"].startswith(features)
    assert other["ratios"][0]["fid"] == pytest.approx(record["ratios"][0]["fid"], rel=1e-3)


def test_fd_dinov2_stands_beside_the_others(workplace, pooled, monkeypatch):
    """With a small ViT in DINOv2's layout."""
    size = {"width": 32, "depth": 1, "heads": 2}
    vit = LatentEncoder("dinov2", 518, 14, 1, **size).vit
    torch.save(vit.state_dict(), workplace / "dinov2.pth")
    original = metrics.dinov2.DINOv2Features
    monkeypatch.setattr(metrics.dinov2, "DINOv2Features", lambda weights: original(weights, **size))
    run = workplace / "runs" / "tok"
    evaluate(run, "--fd-dinov2", "--rfid", "--dinov2-weights", workplace / "dinov2.pth", *RANDOM)
    tokenizer, images = load_tokenizer(run), real_images(workplace)
    extractor = original(workplace / "dinov2.pth", **size)
    real, made = (extractor(each) for each in (images, tokenizer.decode(tokenizer.encode(images))))
    record = result(run, "fd_dinov2")
    assert record["value"] == pytest.approx(frechet_distance(made, real), rel=1e-3)
    assert record["feature_extractor"] == extractor.name
    assert result(run, "fd_random")["feature_extractor"] == "pooled"


def test_other_features_have_a_name_of_their_own(workplace):
    run = workplace / "runs" / "tok"
    other = ("--feature-extractor", "efficientnet-lite0", "--workers", 0)
    printed = evaluate(run, "--rfid", "--kid", "--isc", *other, fails=True)
    assert "--isc: efficientnet-lite0 knows no classes" in printed
    assert {path.stem for path in (run / "eval").glob("*.json")} >= {
        "fd_efficientnet_lite0",
        "kid_efficientnet_lite0",
    }
    assert not (run / "eval" / "rfid.json").exists()
    tokenizer, images, extractor = load_tokenizer(run), real_images(workplace), EfficientNetFeatures()
    real, made = (extractor(each) for each in (images, tokenizer.decode(tokenizer.encode(images))))
    record = result(run, "fd_efficientnet_lite0")
    assert record["value"] == pytest.approx(frechet_distance(made, real), rel=1e-3)
    assert record["feature_extractor"] == extractor.name


def test_what_cannot_be_had_keeps_no_other_result(workplace, pooled, tmp_path):
    run = workplace / "runs" / "tok"
    offline = {"TORCH_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    printed = evaluate(run, "--all", *RANDOM, fails=True, **offline)
    for words in ("--isc: random-inception", "--fd-dinov2: timm/vit_large", "--lpips: vgg16"):
        assert words in printed
    names = {"fd_random", "kid_random", "prc_random", "borders", "psnr", "ssim", "codebook"}
    assert {path.stem for path in (run / "eval").glob("*.json")} == names

    printed = evaluate(run, "--rfid", "--isc", "--ssim", "--workers", 0, fails=True, **offline)
    assert printed.count("weights-inception-2015-12-05") >= 1 and "--rfid, --isc: " in printed


def test_sets_too_small_for_a_metric(workplace, pooled):
    run = workplace / "runs" / "gen"
    printed = evaluate(run, "--gfid", "--kid", "--prc", "--num", 3, *RANDOM, fails=True)
    assert "--prc: 3 images: precision and recall need 4 in each set" in printed
    assert {path.stem for path in (run / "eval").glob("*.json")} == {"fd_random", "kid_random"}


def test_metrics_of_both_kinds_go_to_the_runs_there_are(workplace, pooled):
    runs = workplace / "runs"
    run_script("evaluate.py", "--runs", runs, "--kid", *RANDOM)
    assert (runs / "tok" / "eval" / "kid_random.json").exists()
    assert (runs / "gen" / "eval" / "kid_random.json").exists()
    shutil.rmtree(runs / "tok" / "eval")
    run_script("evaluate.py", "--runs", runs, "--gfid", "--prc", *RANDOM)
    assert (runs / "gen" / "eval" / "prc_random.json").exists()
    assert not (runs / "tok" / "eval").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fill", "--run", "{runs}/tok"], "--fill: {runs}/tok is a tokenizer's run; it has --rfid,"),
        (
            ["--codebook", "--run", "{runs}/gen"],
            "--codebook: {runs}/gen is a generator's run; it has --gfid,",
        ),
        (["--gfid", "--num", "0"], "--num: 0 is no number from 1 to"),
        (["--fill", "--mask-ratio", "1.5"], "--mask-ratio 1.5: a share of tokens"),
        (["--kid", "--runs", "{runs}/nowhere"], "no finished run of train_tokenizer.py there"),
    ],
)
def test_refuses_in_one_line(trained, arguments, words):
    runs = str(trained / "runs")
    printed = run_script("evaluate.py", *[text.format(runs=runs) for text in arguments], fails=True)
    assert words.format(runs=runs) in printed
