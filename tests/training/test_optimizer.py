"""What the optimizer does with each parameter: its rate, its decay, its momenta."""

import pytest
import torch
from torch import nn

from training.optimizer import build_optimizer
from training.sections import TrainingSection

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
