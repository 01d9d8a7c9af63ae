"""Sampling as the study's code does, and its generator's start; its forward is in test_study_checkpoints."""

from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch

from models.maskgit import MaskGIT
from models.maskgit_as_run import MaskGITAsRun
from models.sampling import GumbelNoise, as_run_plan

SIZE = {"num_tokens": 16, "codebook_size": 12, "width": 32, "depth": 1, "heads": 2, "dropout": 0.0}


def test_a_step_decides_as_many_tokens_as_planned_for_256():
    torch.manual_seed(0)
    generator = MaskGIT(**SIZE | {"num_tokens": 64}).eval()
    steps = list(generator.fill_steps(*generator.all_masked(3), steps=12, plan="as_run"))
    left = [unknown.sum(dim=1).tolist() for _, unknown in steps]
    assert left == [[count] * 3 for count in (63, 54, 41, 24, 5, 0)]
    for (before, unknown), (after, _) in pairwise(steps):
        assert torch.equal(before[~unknown], after[~unknown])


@pytest.mark.parametrize("schedule", ["arccos", "cosine", "linear", "square"])
@pytest.mark.parametrize("steps, num_tokens", [(1, 16), (8, 32), (12, 16), (12, 128), (12, 256), (12, 300)])
def test_from_all_mask_each_step_decides_what_is_planned(schedule, steps, num_tokens):
    """as_run_plan, which test_sampling compares with the study's formula."""
    torch.manual_seed(0)
    generator = MaskGITAsRun(**SIZE | {"num_tokens": num_tokens}).eval()
    start = generator.all_masked(2)
    done = list(generator.fill_steps(*start, steps=steps, schedule=schedule, plan="as_run"))
    plan = as_run_plan(schedule, steps, num_tokens)
    assert [(~unknown).sum(dim=1).tolist() for _, unknown in done] == [[n] * 2 for n in accumulate(plan)]
    assert sum(plan) == num_tokens and done[-1][0].max() < generator.mask_token


def test_known_tokens_stay():
    torch.manual_seed(0)
    generator = MaskGITAsRun(**SIZE).eval()
    codes, mask = torch.randint(12, (4, 16)), torch.rand(4, 16) < 0.5
    filled = generator.fill(codes, mask, steps=12, plan="as_run", seed=2)
    assert torch.equal(filled[~mask], codes[~mask]) and not torch.equal(filled, codes)
    assert filled.max() < generator.mask_token


@pytest.mark.parametrize("randomness", [4.5, 1.0])
def test_the_sampler_is_the_studys(randomness):
    """Its steps in numpy with the same noise: a draw, its log-probability with Gumbel noise that falls to 0
    in the last of the steps asked for, and the likeliest of the unknown ones."""
    torch.manual_seed(1)
    generator = MaskGITAsRun(**SIZE | {"num_tokens": 64}).eval()
    with torch.no_grad():  # outputs that differ by place, between even and certain
        generator.embedding.weight.mul_(0.3)
        generator.positions.normal_()
        generator.bias.normal_(std=2)
    ours = generator.generate(5, steps=12, plan="as_run", seed=3, randomness=randomness)
    noise = GumbelNoise(3, 0, 5, torch.device("cpu"))
    codes, known = np.full((5, 64), 12), np.zeros((5, 64), bool)
    values = np.arccos(np.linspace(1, 0, 12)) / (np.pi / 2)
    counts = np.maximum(1, np.round(values / values.sum() * 256))
    for step, count in enumerate(counts):
        if known.all():
            break
        drawn = noise.draw(64, 13).numpy()
        with torch.no_grad():
            logits = generator(torch.from_numpy(np.where(known, codes, 12))).numpy()
        choice = (logits + drawn[..., :12]).argmax(-1)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = np.take_along_axis(log_p, choice[..., None], -1)[..., 0]
        confidence = chosen + randomness * (1 - step / 11) * drawn[..., 12]
        confidence[known] = -np.inf
        for row in range(5):
            best = np.argsort(-confidence[row])[: min(int(count), (~known[row]).sum())]
            codes[row, best] = choice[row, best]
            known[row, best] = True
    assert step == 6 and known.all() and np.array_equal(ours.numpy(), codes)


def test_a_sample_is_the_same_in_any_batch():
    torch.manual_seed(2)
    generator = MaskGITAsRun(**SIZE).eval()
    whole = generator.generate(6, steps=12, plan="as_run", seed=1)
    assert torch.equal(generator.generate(2, steps=12, plan="as_run", seed=1, first_index=3), whole[3:5])


def test_it_starts_as_pytorch_draws():
    torch.manual_seed(0)
    generator = MaskGITAsRun(64, 512, 256, 2, 8)
    assert abs(generator.embedding.weight.std() - 1) < 0.02
    assert abs(generator.positions.std() - 0.02) < 0.004 and not generator.bias.any()
    qkv = generator.blocks[0].attn.qkv  # Xavier's uniform distribution over q, k and v together
    assert abs(qkv.weight.abs().max() - (6 / (256 + 768)) ** 0.5) < 1e-3 and not qkv.bias.any()
    first = generator.blocks[0].mlp.fc1
    assert abs(first.weight.abs().max() - 256**-0.5) < 1e-3 and first.bias.any()
    eps = [module.eps for module in generator.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert eps == [1e-12] * 2 + [1e-5] * 4 + [1e-12] * 2  # before, in and behind the two blocks


def test_dropout_is_where_the_studys_is():
    """Before the linear layers at both ends, on attention's weights, and behind both of an MLP's layers."""
    generator = MaskGITAsRun(**SIZE | {"dropout": 0.25, "depth": 1})
    attention = generator.blocks[0].attn
    rates = {
        name: module.p
        for name, module in generator.named_modules()
        if isinstance(module, torch.nn.Dropout) and module.p
    }
    assert isinstance(attention.proj_drop, torch.nn.Identity)
    names = {"stem.1", "stem.5", "norm.1", "blocks.0.attn.attn_drop", "blocks.0.mlp.drop1"}
    assert rates == dict.fromkeys([*names, "blocks.0.mlp.drop2"], 0.25)


def test_a_bias_for_each_place_and_code():
    torch.manual_seed(0)
    for tied in (False, True):
        generator = MaskGIT(**SIZE, tied_embeddings=tied, output_bias="place").eval()
        codes = torch.randint(12, (2, 16))
        before = generator(codes)
        bias = torch.randn(16, 12)
        with torch.no_grad():
            generator.bias.copy_(bias)
        torch.testing.assert_close(generator(codes), before + bias)
