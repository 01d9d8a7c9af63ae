"""MaskGIT: its sampler against a plain one, conditions and guidance, and what it learns."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data.video import Clip
from models.maskgit import MaskGIT, masked_token_loss
from models.sampling import MASK_SCHEDULES
from models.vqgan import VQGAN
from tests.models.plain_sampler import SHARES, plain_fill

DRIVING = Path(__file__).parents[3] / "shared" / "driving" / "videos"
TIMES = {"timeofday": ["daytime", "night"]}


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return MaskGIT(num_tokens=12, codebook_size=40, width=32, depth=2, heads=2).eval()


@pytest.fixture
def conditional():
    """Two conditions, 16 tokens, and weights so large that everything makes a difference."""
    torch.manual_seed(0)
    conditions = {**TIMES, "weather": ["clear", "rainy", "snowy"]}
    generator = MaskGIT(16, 40, width=32, depth=2, heads=2, conditions=conditions).eval()
    for parameter in generator.parameters():
        parameter.data *= 8
    return generator


def test_generates_codes(generator):
    codes = generator.generate(num=5, steps=4, seed=1)
    assert codes.shape == (5, 12) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < 40
    assert torch.equal(codes, generator.generate(num=5, steps=4, seed=1))
    assert not torch.equal(codes, generator.generate(num=5, steps=4, seed=2))


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_fill_keeps_what_is_known(generator, steps):
    codes = torch.randint(40, (6, 12))
    mask = torch.rand(6, 12) < torch.tensor([0.0, 0.1, 0.5, 0.5, 0.9, 1.0])[:, None]
    filled = generator.fill(codes, mask, steps=steps)
    assert torch.equal(filled[~mask], codes[~mask])
    assert filled.max() < 40
    # What was under the mask has no influence.
    assert torch.equal(filled, generator.fill(codes.masked_fill(mask, 7), mask, steps=steps))


# --- the sampler, step by step ------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_each_step_reveals_as_many_as_the_schedule_says(conditional, schedule, order):
    steps = list(conditional.fill_steps(*conditional.all_masked(3), steps=8, schedule=schedule, order=order))
    wanted, unknown = [], 16
    for step in range(1, 9):
        unknown = min(math.floor(16 * SHARES[schedule](step / 8)), unknown - 1)
        wanted.append([unknown] * 3)
    assert [unknown.sum(dim=1).tolist() for _, unknown in steps] == wanted
    for (before, unknown), (after, _) in pairwise(steps):
        assert torch.equal(before[~unknown], after[~unknown])  # what is final stays


@pytest.mark.parametrize(
    "sampling",
    [
        {"steps": 8},
        {"steps": 1, "guidance": 2.0, "guidance_schedule": "linear"},
        {"steps": 6, "schedule": "cosine", "temperature": 0.6, "randomness": 12.0},
        {"steps": 5, "schedule": "square", "top_k": 3, "temperature": 2.0},
        {"steps": 5, "schedule": "linear", "top_p": 0.7, "randomness": 0.0, "temperature": 1.5},
        {"steps": 7, "top_k": 8, "top_p": 0.8, "guidance": 3.0, "guidance_schedule": "linear"},
        {"steps": 8, "guidance": 0.5, "order": "halton", "temperature": 1.3},
        {"steps": 4, "order": "halton", "schedule": "square", "top_p": 0.9, "guidance": 0.0},
        {"steps": 30, "guidance": 1.7, "top_k": 20},
        {"steps": 6, "order": "coarse_first", "temperature": 0.8, "guidance": 2.0},
        {"steps": 7, "order": "entropy", "top_k": 12, "randomness": 1.0},
        {"steps": 9, "remask": 0.3},
        {"steps": 5, "remask": 0.6, "order": "halton", "top_p": 0.8, "guidance": 2.0},
    ],
    ids=str,
)
def test_sampler_is_the_plain_one(conditional, sampling):
    torch.manual_seed(1)
    conditions = torch.tensor([[0, 0], [1, 0], [2, 3], [1, 1], [0, 2]])
    codes = torch.randint(40, (5, 16))
    mask = torch.rand(5, 16) < torch.tensor([1.0, 1.0, 0.8, 0.4, 0.0])[:, None]
    expected = plain_fill(conditional, codes, mask, conditions, seed=5, **sampling)
    assert conditional.fill(codes, mask, conditions, seed=5, **sampling).tolist() == expected.tolist()


@pytest.mark.parametrize("order", ["confidence", "coarse_first"])
def test_prefixes_are_filled_as_by_the_plain_one(conditional, order):
    """Of an elastic tokenizer: what is behind a prefix is absent, neither known nor filled in."""
    torch.manual_seed(1)
    conditions = torch.tensor([[0, 0], [1, 0], [2, 3]])
    there = torch.arange(16) < torch.tensor([3, 9, 16])[:, None]
    codes = torch.randint(40, (3, 16)).masked_fill(~there, conditional.mask_token)
    mask = there & (torch.rand(3, 16) < 0.8)
    expected = plain_fill(conditional, codes, mask, conditions, steps=5, seed=5, order=order)
    made = conditional.fill(codes, mask, conditions, steps=5, seed=5, order=order)
    assert made.tolist() == expected.tolist()
    assert torch.equal(made == conditional.mask_token, ~there)


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"order": "halton", "top_p": 0.9},
        {"guidance": 2.5, "guidance_schedule": "linear", "top_k": 9, "schedule": "cosine"},
    ],
    ids=str,
)
def test_samples_do_not_depend_on_their_batch(conditional, sampling):
    conditions = torch.tensor([[1, 0], [2, 1], [0, 0], [1, 3], [2, 2]])
    whole = conditional.generate(5, conditions, steps=4, seed=1, **sampling)
    parts = [
        conditional.generate(
            num, conditions[first : first + num], steps=4, seed=1, first_index=first, **sampling
        )
        for first, num in ((0, 2), (2, 1), (3, 2))
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_sampling_follows_the_logits():
    """With one token to predict, samples have the distribution softmax(logits / temperature)."""
    generator = MaskGIT(num_tokens=1, codebook_size=4, width=8, depth=1, heads=1).eval()
    torch.nn.init.zeros_(generator.head.weight)
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    generator.head.bias.data.copy_(logits)
    codes = generator.generate(num=4000, steps=1, temperature=0.7)
    shares = torch.bincount(codes.flatten(), minlength=4) / 4000
    torch.testing.assert_close(shares, (logits / 0.7).softmax(0), atol=0.03, rtol=0)


def test_confident_tokens_come_first():
    """Without noise, the step's tokens are those whose code is likeliest."""
    generator = MaskGIT(num_tokens=4, codebook_size=3, width=8, depth=1, heads=1).eval()
    logits = torch.tensor([1.0, 6.0, 2.0, 4.0])[:, None] * torch.tensor([1.0, 0.0, 0.0])
    seen = []
    generator.forward = lambda tokens, conditions: seen.append(tokens == 3) or logits[None]
    generator.generate(num=1, steps=4, schedule="cosine", randomness=0.0, temperature=0.5)
    order = [int(mask.sum()) for mask in seen]
    assert order == [4, 3, 2, 1]
    assert [mask[0].nonzero().flatten().tolist() for mask in seen[1:]] == [[0, 2, 3], [0, 2], [0]]


# --- conditions ---------------------------------------------------------------------------------------------


def test_guidance_goes_from_unconditional_to_conditional_and_beyond(conditional):
    tokens, conditions = torch.randint(41, (4, 16)), torch.tensor([[1, 0], [2, 3], [0, 1], [2, 2]])
    with torch.no_grad():
        untold, told = conditional(tokens), conditional(tokens, conditions)
        assert not torch.allclose(untold, told, atol=0.1)
        assert torch.equal(conditional.guided_logits(tokens, conditions, 0), untold)
        assert torch.equal(conditional.guided_logits(tokens, conditions, 1), told)
        for guidance in (0.3, 1.5, 4.0):
            guided = conditional.guided_logits(tokens, conditions, guidance)
            torch.testing.assert_close(guided, untold + guidance * (told - untold), atol=1e-4, rtol=1e-4)


def test_unguided_or_untold_it_is_unconditional(conditional):
    night = conditional.condition_indices({"timeofday": "night"})
    free = conditional.generate(4, seed=3)
    assert torch.equal(conditional.generate(4, night, seed=3, guidance=0.0), free)
    assert torch.equal(conditional.generate(4, conditional.condition_indices({}), seed=3, guidance=2.0), free)
    assert not torch.equal(conditional.generate(4, night, seed=3), free)
    assert torch.equal(
        conditional.generate(4, night, seed=3), conditional.generate(4, night.repeat(4, 1), seed=3)
    )


@pytest.mark.parametrize(("guidance", "sequences"), [(0.0, 3), (1.0, 3), (0.5, 6), (3.0, 6)])
def test_a_guided_step_is_one_forward_pass(conditional, guidance, sequences):
    seen = []
    conditional.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    conditional.generate(3, torch.tensor([1, 2]), steps=5, guidance=guidance)
    assert seen == [sequences] * 5


# --- a guide ------------------------------------------------------------------------------------------------


@pytest.fixture
def guide(conditional):
    """A smaller generator of the same tokens and conditions."""
    torch.manual_seed(3)
    guide = MaskGIT(16, 40, width=16, depth=1, heads=2, conditions=conditional.conditions).eval()
    for parameter in guide.parameters():
        parameter.data *= 8
    return guide


@pytest.mark.parametrize(
    "sampling",
    [
        {"steps": 6, "guidance": 2.0},
        {"steps": 5, "guidance": 3.0, "guidance_schedule": "linear", "order": "halton", "top_p": 0.9},
        {"steps": 4, "guidance": 0.0, "order": "entropy"},
        {"steps": 7, "guidance": 0.5, "remask": 0.2, "top_k": 9},
    ],
    ids=str,
)
def test_guided_by_another_it_is_the_plain_one(conditional, guide, sampling):
    torch.manual_seed(1)
    conditions = torch.tensor([[0, 0], [1, 0], [2, 3], [1, 1]])
    codes = torch.randint(40, (4, 16))
    mask = torch.rand(4, 16) < torch.tensor([1.0, 1.0, 0.8, 0.4])[:, None]
    expected = plain_fill(conditional, codes, mask, conditions, seed=5, guide=guide, **sampling)
    made = conditional.fill(codes, mask, conditions, seed=5, guide=guide, **sampling)
    assert made.tolist() == expected.tolist()


def test_guided_by_itself_it_is_unguided(conditional, generator):
    """Whatever the scale, also of an unconditional one, and by the study's plan."""
    night = torch.tensor([2, 0])
    for options in ({"guidance": 3.0}, {"guidance": 0.3, "guidance_schedule": "linear"}, {"plan": "as_run"}):
        own = options | {"guidance": 1.0}
        made = conditional.generate(4, night, seed=1, guide=conditional, **{"guidance": 2.0} | options)
        assert torch.equal(made, conditional.generate(4, night, seed=1, **own))
        made = generator.generate(4, seed=1, guide=generator, **{"guidance": 2.0} | options)
        assert torch.equal(made, generator.generate(4, seed=1, **own))


def test_a_guide_counts_only_away_from_one(conditional, guide):
    night = torch.tensor([2, 0])
    unguided = conditional.generate(4, night, seed=1)
    assert torch.equal(conditional.generate(4, night, seed=1, guide=guide, guidance=1.0), unguided)
    assert not torch.equal(conditional.generate(4, night, seed=1, guide=guide, guidance=2.0), unguided)
    guides_own = conditional.generate(4, night, seed=1, guide=guide, guidance=0.0)
    assert torch.equal(guides_own, guide.generate(4, night, seed=1))


def test_guided_samples_do_not_depend_on_their_batch(conditional, guide):
    conditions = torch.tensor([[1, 0], [2, 1], [0, 0], [1, 3], [2, 2]])
    options = {"steps": 4, "seed": 1, "guide": guide, "guidance": 2.5}
    whole = conditional.generate(5, conditions, **options)
    parts = [
        conditional.generate(num, conditions[first : first + num], first_index=first, **options)
        for first, num in ((0, 2), (2, 1), (3, 2))
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_conditions_have_names(conditional):
    assert conditional.condition_indices({"weather": "snowy", "timeofday": "daytime"}).tolist() == [1, 3]
    assert conditional.condition_indices({"weather": "clear", "timeofday": None}).tolist() == [0, 1]
    assert conditional.condition_indices({}).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weather": "foggy"}, "weather 'foggy' was not in the training set, which has clear, rainy, snowy"),
        ({"timeofday": ""}, "timeofday '' was not in the training set, which has daytime, night"),
        ({"scene": "highway"}, "scene is no condition of this generator; it has timeofday, weather"),
    ],
)
def test_unknown_conditions_are_refused_with_the_known(conditional, values, message):
    with pytest.raises(ValueError) as caught:
        conditional.condition_indices(values)
    assert str(caught.value) == message


def test_unconditional_has_no_conditions(generator):
    with pytest.raises(ValueError, match="timeofday is no condition of this generator; it has none"):
        generator.condition_indices({"timeofday": "night"})
    codes = generator.generate(2, generator.condition_indices({}), guidance=2.0)
    assert torch.equal(codes, generator.generate(2))


# --- the network and its loss -------------------------------------------------------------------------------


def test_tied_embeddings_are_the_outputs_weights():
    tied, untied = (MaskGIT(12, 40, width=32, depth=1, heads=2, tied_embeddings=tie) for tie in (True, False))
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (tied, untied)]
    assert sizes[1] - sizes[0] == 40 * 32
    tied.eval()
    tokens, outputs = torch.randint(41, (3, 12)), []
    tied.norm.register_forward_hook(lambda *hooked: outputs.append(hooked[-1]))
    logits = tied(tokens)
    torch.testing.assert_close(logits, outputs[0] @ tied.embedding.weight[:40].T + tied.bias)
    logits.sum().backward()
    assert tied.embedding.weight.grad[:40].abs().sum(dim=1).min() > 0  # of every code, in the input or not


def test_conditions_reach_every_token(conditional):
    tokens = torch.full((1, 16), conditional.mask_token)
    with torch.no_grad():
        logits = [conditional(tokens, torch.tensor([[0, weather]])) for weather in range(4)]
    assert all(each.shape == (1, 16, 40) for each in logits)
    for a in range(4):
        for b in range(a):
            assert ((logits[a] - logits[b]).abs().amax(dim=-1) > 1e-3).all()


def test_a_tokens_logits_are_at_its_place():
    """Without blocks a place knows nothing of the others, nor of the conditions before them."""
    generator = MaskGIT(16, 40, width=32, depth=0, heads=2, conditions=TIMES).eval()
    tokens = torch.full((16, 16), generator.mask_token)
    with torch.no_grad():
        masked = generator(tokens, torch.ones(16, 1, dtype=torch.int64))
        known = generator(tokens.clone().fill_diagonal_(7), torch.full((16, 1), 2))
    changed = ((known - masked).abs() > 1e-6).any(dim=-1)
    assert torch.equal(changed, torch.eye(16, dtype=torch.bool))


def test_loss_is_the_weighted_cross_entropy():
    torch.manual_seed(0)
    logits, codes, mask = torch.randn(3, 5, 7), torch.randint(7, (3, 5)), torch.rand(3, 5) < 0.5
    masked, known = (
        F.cross_entropy(logits[where], codes[where], reduction="sum", label_smoothing=0.1)
        for where in (mask, ~mask)
    )
    torch.testing.assert_close(masked_token_loss(logits, codes, mask, 0.1), masked)
    weights = torch.where(mask, 1.0, 0.2)
    torch.testing.assert_close(masked_token_loss(logits, codes, weights, 0.1), masked + 0.2 * known)


# --- what it learns -----------------------------------------------------------------------------------------


@pytest.fixture
def sequences():
    """Codes (16, 16) of a frame of each of 16 real clips, or, without the clips, drawn from 256.

    The tokenizer is a VQGAN as it starts, but for its codebook: the 256 latents of those frames.
    """
    torch.manual_seed(0)
    if not DRIVING.is_dir():
        return torch.randint(256, (16, 16))
    images = []
    for path in sorted(DRIVING.glob("*/*.mov"))[:16]:
        with Clip(path) as clip:
            ((_, image),) = clip.frames([0])
        images.append(np.asarray(Image.fromarray(image).resize((64, 64))))
    images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    quantizer = {"codebook_size": 256}
    tokenizer = VQGAN(64, channels=32, multipliers=(1,) * 5, blocks=1, quantizer=quantizer).eval()
    with torch.no_grad():
        latents = tokenizer.to_latents(images).flatten(0, 1)
        tokenizer.quantizer.codebook.copy_(latents[torch.randperm(256)])
    return tokenizer.encode(images)


def test_an_overfitted_generator_knows_its_sequences(sequences):
    """97 % of samples are one of the 16, nearly all 16 come, and 97 % of what 75 % masks hide is right."""
    assert len(sequences.unique(dim=0)) == 16
    generator = MaskGIT(16, 256, width=64, depth=1, heads=4, dropout=0.0)
    for parameter in (generator.embedding.weight, generator.positions):
        torch.nn.init.normal_(parameter, std=0.5)  # larger than for long training
    optimizer = torch.optim.AdamW(generator.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    codes, steps = sequences.repeat(3, 1), 400
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * min(1, step / 20, 1.3 * (1 - step / steps))
        masked = 16 * torch.rand(len(codes), 1).acos() * 2 / math.pi
        mask = torch.rand(codes.shape).argsort(dim=1) < masked.ceil()
        logits = generator(codes.masked_fill(mask, generator.mask_token))
        (masked_token_loss(logits, codes, mask) / mask.sum()).backward()
        torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    generator.eval()

    generated = generator.generate(200, steps=16, temperature=0.3)
    same = (generated[:, None] == sequences).all(dim=-1)
    assert same.any(dim=1).float().mean() >= 0.97
    assert same.any(dim=0).sum() >= 12

    originals = sequences.repeat(20, 1)
    mask = torch.rand(originals.shape).argsort(dim=1) < 12
    fitting = ((originals[:, None] == sequences) | mask[:, None]).all(dim=-1).sum(dim=1)
    originals, mask = originals[fitting == 1], mask[fitting == 1]  # the rest shows which of the 16 it is
    assert len(originals) >= 200
    filled = generator.fill(originals, mask, steps=8, temperature=0.3)
    assert (filled == originals)[mask].float().mean() >= 0.97
