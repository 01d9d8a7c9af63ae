"""What the optimizer does with each parameter: its rate, its decay, its momenta, and Muon's moves."""

import pytest
import torch
from torch import nn

from training.optimizer import build_optimizer
from training.sections import GeneratorTraining, TrainingSection

TRAINING = TrainingSection(learning_rate=1e-3, weight_decay=0.1, betas=(0.9, 0.99), max_steps=1)


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def settings(optimizer, parameter):
    (group,) = [each for each in optimizer.param_groups if any(p is parameter for p in each["params"])]
    return group["rate"], group["weight_decay"]


def test_rates_multiply_and_only_matrices_decay(network):
    optimizer = build_optimizer(network, TRAINING, network[0].parameters(), pretrained_rate=0.5, rate=4.0)
    assert settings(optimizer, network[0].weight) == (2.0, 0.1)
    assert settings(optimizer, network[0].bias) == (2.0, 0.0)
    assert settings(optimizer, network[2].weight) == (4.0, 0.1)
    assert settings(optimizer, network[1].weight) == settings(optimizer, network[2].bias) == (4.0, 0.0)


def test_betas_are_the_trainings_or_its_own(network):
    for betas, expected in ((None, (0.9, 0.99)), ((0.5, 0.9), (0.5, 0.9))):
        optimizer = build_optimizer(network, TRAINING, betas=betas)
        assert {tuple(group["betas"]) for group in optimizer.param_groups} == {expected}


def test_a_frozen_parameter_is_left_out(network):
    network[2].requires_grad_(False)
    before = network[2].weight.clone()
    optimizer = build_optimizer(network, TRAINING)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert id(network[2].weight) not in held and len(held) == 4
    assert torch.equal(network[2].weight, before)


def blocks(width=8):
    """A network of two blocks, and of what else a transformer has."""
    torch.manual_seed(0)
    block = nn.ModuleDict({"fc": nn.Linear(width, 2 * width), "norm": nn.LayerNorm(width)})
    twin = nn.ModuleDict({"fc": nn.Linear(width, 2 * width), "norm": nn.LayerNorm(width)})
    return nn.ModuleDict({"embed": nn.Linear(3, width), "blocks": nn.ModuleList([block, twin])})


def give_gradients(network, seed):
    torch.manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)


def test_muon_moves_matrices_of_blocks_as_torchs_own():
    """torch.optim.Muon iterates in bfloat16: so near are the moves, and no nearer."""
    ours, theirs = blocks(), blocks()
    muon = build_optimizer(ours, TRAINING.model_copy(update={"optimizer": "muon"}))
    matrices = [block["fc"].weight for block in theirs["blocks"]]
    options = {"lr": 1e-3, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    reference = torch.optim.Muon(matrices, **options)
    others = [p for p in theirs.parameters() if all(p is not matrix for matrix in matrices)]
    decays = [{"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0} for p in others]
    adamw = torch.optim.AdamW(decays, lr=1e-3, betas=(0.9, 0.99))
    start = [matrix.detach().clone() for matrix in matrices]
    for step in range(3):
        for network in (ours, theirs):
            give_gradients(network, step)
        muon.step()
        reference.step()
        adamw.step()
    for matrix, block, old in zip(matrices, ours["blocks"], start):
        moved, expected = block["fc"].weight - old, matrix - old
        assert (moved - expected).norm() < 0.02 * expected.norm()
    for name, parameter in theirs.named_parameters():
        if all(parameter is not matrix for matrix in matrices):
            torch.testing.assert_close(ours.get_parameter(name), parameter)


def test_what_is_not_finite_leaves_muon_as_it_is():
    network, twin = blocks(), blocks()
    optimizers = [
        build_optimizer(each, TRAINING.model_copy(update={"optimizer": "muon"})) for each in (network, twin)
    ]
    for step, spoiled in enumerate((False, True, False)):
        for each, optimizer in zip((network, twin), optimizers):
            if spoiled and each is twin:
                continue
            give_gradients(each, step)
            if spoiled:
                each["blocks"][0]["fc"].weight.grad[0, 0] = torch.nan
            optimizer.found_inf = torch.tensor(float(spoiled))
            optimizer.step()
    for one, other in zip(network.parameters(), twin.parameters()):
        assert torch.equal(one, other)


def test_a_generator_in_parts_has_no_muon():
    with pytest.raises(ValueError, match="muon needs whole matrices"):
        GeneratorTraining(optimizer="muon", shard=True, max_steps=1)
