"""evaluate.py --sweep, and the guide of a generator, on tiny networks."""

import pytest
import torch
import yaml

from metrics.frechet import frechet_distance
from models import load_generator, load_tokenizer
from models.maskgit import MaskGIT
from models.storage import fingerprint, save_model
from tests.conftest import TINY_TOKENIZER, run_script
from tests.evaluation.made import RANDOM, Pooled, evaluate, own_conditions, real_images, result
from tests.models.plain_sampler import plain_fill

TIMES = {"timeofday": ["daytime", "night"]}
SWEEP = ("--sweep", "--num", 6, "--passes", 2, "--passes", 4, *RANDOM)


def set_sampling(run, **sampling):
    """Change the run's config as a person would."""
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["sampling"] |= sampling
    (run / "config.yaml").write_text(yaml.safe_dump(values))


def make_guide(run, name, *, codebook_size=64, conditions=TIMES, tokenizer=None, width=16):
    """A smaller generator's model folder beside a run, of the same tokens unless it is said otherwise."""
    torch.manual_seed(7)
    guide = MaskGIT(8, codebook_size, width, 1, 2, conditions=conditions)
    for parameter in guide.parameters():
        parameter.data *= 4 if parameter.dim() > 1 else 1
    weights = tokenizer or fingerprint(run.parent / "bold")
    save_model(guide, run.parent / name / "model", step="1", tokenizer_sha256=weights)
    return run.parent / name


def settings(run):
    """The values of a sweep by sampler and number of passes."""
    return {(each["sampler"], each["passes"]): each["value"] for each in result(run, "sweep")["settings"]}


# --- the guide ----------------------------------------------------------------------------------------------


def test_gfid_with_a_guide_is_of_the_guided_images(workplace, pooled, conditional):
    guide = make_guide(conditional, "weak")
    evaluate(conditional, "--gfid", *RANDOM)
    unguided = result(conditional, "fd_random")
    evaluate(conditional, "--gfid", "--guide", guide, "--guidance", 1.7, "--batch-size", 3, *RANDOM)
    record = result(conditional, "fd_random")
    generator, tokenizer = load_generator(conditional), load_tokenizer(workplace / "runs" / "bold")
    codes = plain_fill(
        generator,
        *generator.all_masked(7),
        own_conditions(workplace),
        steps=8,
        seed=0,
        guidance=1.7,
        guide=load_generator(guide),
    )
    with torch.no_grad():
        made = Pooled()(tokenizer.decode(torch.from_numpy(codes)))
    expected = frechet_distance(made, Pooled()(real_images(workplace)))
    assert record["value"] == pytest.approx(expected, rel=1e-3) != unguided["value"]
    assert record["guide"] == {"path": str(guide), "weights_sha256": fingerprint(guide)}
    assert record["sampling"]["guidance"] == 1.7 and unguided["guide"] is None


def test_parts_of_another_guide_are_not_taken(workplace, pooled, conditional, monkeypatch):
    generate, count = MaskGIT.generate, [0]

    def interrupted(self, num, **options):
        count[0] += num
        if count[0] > 4:
            raise KeyboardInterrupt
        return generate(self, num, **options)

    options = ("--gfid", "--num", 8, "--batch-size", 4, "--guidance", 2, *RANDOM, "--guide")
    guides = [make_guide(conditional, f"weak{width}", width=width) for width in (16, 32)]
    monkeypatch.setattr(MaskGIT, "generate", interrupted)
    evaluate(conditional, *options, guides[0], fails=True)
    monkeypatch.setattr(MaskGIT, "generate", generate)
    assert "parts are generated" not in evaluate(conditional, *options, guides[1])
    assert "1 of 2 parts are generated" in evaluate(conditional, *options, guides[0])


@pytest.mark.parametrize(
    ("guide", "arguments", "words"),
    [
        (
            {"codebook_size": 32},
            ["--guidance", 2],
            "weak: has codebook_size 32, and the generator",
        ),
        (
            {"conditions": {}},
            ["--guidance", 2],
            "weak: has conditions none, and the generator",
        ),
        (
            {"conditions": {"timeofday": ["night", "daytime"]}},
            ["--guidance", 2],
            "has conditions {'timeofday': ['night', 'daytime']}, and the generator",
        ),
        ({"tokenizer": "0" * 64}, ["--guidance", 2], "weak: learned the tokens of another tokenizer"),
        ({}, [], "weak: nothing is guided at sampling.guidance 1; give --guidance too"),
    ],
)
def test_what_cannot_guide_is_refused(conditional, guide, arguments, words):
    weak = make_guide(conditional, "weak", **guide)
    for script in ("evaluate.py", "generate.py"):
        asked = ["--gfid", *RANDOM] if script == "evaluate.py" else ["--out", conditional / "out"]
        printed = run_script(script, "--run", conditional, "--guide", weak, *arguments, *asked, fails=True)
        assert words in printed and len(printed.splitlines()) == 1


def test_a_tokenizer_is_no_guide(workplace):
    run = workplace / "runs" / "gen"
    guided = ("--gfid", "--guidance", 2, *RANDOM)
    printed = evaluate(run, "--guide", workplace / "runs" / "tok", *guided, fails=True)
    assert "tok/model: a titok model, not a generator" in printed
    printed = evaluate(run, *guided, fails=True)
    assert "sampling.guidance 2: the generator has no model.conditions, and there is no guide" in printed


# --- the sweep ----------------------------------------------------------------------------------------------


def test_a_sweep_is_gfid_of_each_setting(workplace, pooled, conditional):
    """As --gfid gives with the same sampling in the config, whatever that says itself."""
    set_sampling(conditional, temperature=0.8, order="entropy", remask=0.2, guidance=1.5)
    printed = evaluate(conditional, *SWEEP)
    swept, record = settings(conditional), result(conditional, "sweep")
    assert [*dict.fromkeys(name for name, _ in swept)] == ["confidence", "entropy", "remask", "guidance"]
    assert record["value"] == min(swept.values()) and record["distance"] == "fd_random"
    assert (record["num_images"], record["num_real"], record["seed"]) == (6, 7, 0)
    plain = {"order": "confidence", "remask": 0.0, "guidance": 1.0}
    for sampler, passes, own in (
        ("confidence", 4, {"steps": 4}),
        ("entropy", 2, {"steps": 2, "order": "entropy"}),
        ("remask", 4, {"steps": 4, "remask": 0.2}),
        ("guidance", 4, {"steps": 2, "guidance": 1.5}),
    ):
        set_sampling(conditional, **plain | own)
        evaluate(conditional, "--gfid", "--num", 6, *RANDOM)
        assert swept[sampler, passes] == pytest.approx(result(conditional, "fd_random")["value"], rel=1e-9)
    assert len(set(swept.values())) == len(swept)
    (line,) = (line for line in printed.splitlines() if line.startswith("| entropy |"))
    assert line == f"| entropy | {swept['entropy', 2]:.4f} | {swept['entropy', 4]:.4f} |"
    assert not [path for path in (conditional / "eval").glob(".*") if path.is_dir()]


def test_real_features_are_computed_once(workplace, pooled):
    evaluate(workplace / "runs" / "gen", *SWEEP)
    assert pooled() == 7 + 2 * 3 * 6  # of confidence, entropy and remask


@pytest.mark.parametrize("by", ["conditions", "guide"])
def test_equal_passes_are_equal_passes(workplace, pooled, conditional, by, monkeypatch):
    """Every setting sends as many sequences through networks as it has passes, for each image."""
    seen, per_setting = [0], {}
    forward, generate = MaskGIT.forward, MaskGIT.generate

    def counted(self, tokens, conditions=None):
        seen[0] += len(tokens)
        return forward(self, tokens, conditions)

    def generated(self, num, **options):
        before = seen[0]
        codes = generate(self, num, **options)
        way = (options["order"], options["remask"], options["guidance"], options["steps"])
        per_setting.setdefault(way, []).append((seen[0] - before) / num)
        return codes

    monkeypatch.setattr(MaskGIT, "forward", counted)
    monkeypatch.setattr(MaskGIT, "generate", generated)
    guide = ("--guide", make_guide(conditional, "weak"), "--guidance", 2) if by == "guide" else ()
    evaluate(conditional, *SWEEP, *guide, "--batch-size", 3)
    cost = {way: set(passes) for way, passes in per_setting.items()}
    expected = {(order, 0.0, 1.0, steps): {steps} for order in ("confidence", "entropy") for steps in (2, 4)}
    expected |= {("confidence", 0.1, 1.0, steps): {steps} for steps in (2, 4)}
    expected |= {("confidence", 0.0, 2.0, steps): {2 * steps} for steps in (1, 2)}
    assert cost == expected
    sampler = "autoguidance" if by == "guide" else "guidance"
    assert {(sampler, 2), (sampler, 4)} <= settings(conditional).keys()


def test_an_interrupted_sweep_goes_on(workplace, pooled, conditional, monkeypatch):
    evaluate(conditional, *SWEEP)
    whole = settings(conditional)
    (conditional / "eval" / "sweep.json").unlink()
    pooled()
    generate, calls = MaskGIT.generate, []

    def interrupted(self, num, **options):
        if len(calls) == 5:  # of the third setting's two parts the first is there
            raise KeyboardInterrupt
        calls.append(num)
        return generate(self, num, **options)

    monkeypatch.setattr(MaskGIT, "generate", interrupted)
    evaluate(conditional, *SWEEP, fails=True)
    assert not (conditional / "eval" / "sweep.json").exists()
    monkeypatch.setattr(MaskGIT, "generate", generate)
    pooled()
    printed = evaluate(conditional, *SWEEP)
    assert "2 of 8 settings are measured" in printed and "1 of 2 parts are generated" in printed
    assert pooled() == 8 * 6 - sum(calls)
    assert settings(conditional) == whole

    # nothing is kept of it, nor taken where the real frames are others
    monkeypatch.setattr(MaskGIT, "generate", interrupted)
    calls[:] = calls[:1]
    evaluate(conditional, *SWEEP, fails=True)
    monkeypatch.setattr(MaskGIT, "generate", generate)
    next((workplace / "frames" / "val").glob("*/*-0000003.jpg")).write_bytes(b"no picture")
    assert "settings are measured" not in evaluate(conditional, *SWEEP)


def test_two_processes_sweep_the_same(workplace, conditional):
    options = ("--sweep", "--num", 5, "--passes", 2, "--batch-size", 2, "--workers", 0)
    options += ("--feature-extractor", "efficientnet-lite0")
    evaluate(conditional, *options)
    one = settings(conditional)
    evaluate(conditional, *options, processes=2)
    assert settings(conditional) == pytest.approx(one, rel=1e-3)


def test_tokens_decide_which_orders_there_are(workplace, pooled):
    """Halton's where they are 2D, coarse first where they are elastic."""
    paths = {"frames": workplace / "frames", "runs": workplace / "runs"}
    vqgan = {"kind": "vqgan", "image_size": 32, "channels": 32, "multipliers": [1, 1, 1, 1], "blocks": 1}
    elastic = yaml.safe_load(TINY_TOKENIZER.format(**paths))["model"] | {"elastic": True}
    for model, order in ((vqgan | {"quantizer": {"codebook_size": 64}}, "halton"), (elastic, "coarse_first")):
        values = yaml.safe_load(TINY_TOKENIZER.format(**paths))
        values |= {"model": model, "training": values["training"] | {"max_steps": 1}}
        values["run"]["name"] = f"of_{order}"
        (workplace / "other.yaml").write_text(yaml.safe_dump(values))
        run_script("train_tokenizer.py", "--config", workplace / "other.yaml")
        run = workplace / "runs" / f"by_{order}"
        sets = (f"tokenizer={workplace}/runs/of_{order}", f"run.name=by_{order}", f"run.dir={run.parent}")
        sets += (f"data.frames={workplace}/frames", f"data.tokens={workplace}/tokens", "training.max_steps=1")
        sets = (item for text in sets for item in ("--set", text))
        run_script("train_maskgit.py", "--config", workplace / "gen.yaml", *sets)
        evaluate(run, "--sweep", "--num", 4, "--passes", 3, *RANDOM)
        assert {name for name, _ in settings(run)} == {"confidence", "entropy", order, "remask"}


def test_a_sweep_is_not_part_of_all_and_has_no_as_run(workplace, pooled, tmp_path):
    run = workplace / "runs" / "gen"
    offline = {"TORCH_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    evaluate(run, "--all", *RANDOM, fails=True, **offline)
    assert (run / "eval" / "fd_random.json").exists() and not (run / "eval" / "sweep.json").exists()
    assert "--sweep has no such measure" in evaluate(run, *SWEEP, "--as-run", fails=True)
    assert "--passes: 1 is no number from 2" in evaluate(run, "--sweep", "--passes", 1, fails=True)
