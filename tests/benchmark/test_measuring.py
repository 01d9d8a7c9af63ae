"""Times, rates and peaks of memory."""

import pytest
import torch

from benchmark import measuring
from benchmark.measuring import ProductsWithin


def test_memory_is_without_the_matrices_of_the_rate(monkeypatch):
    """Those of nearly half a gigabyte."""
    monkeypatch.setitem(measuring.MATRICES, "cpu", ((6000, 6000, 6000),))
    monkeypatch.setattr(torch, "matmul", lambda one, other, out: out.zero_())
    bench = measuring.Bench(torch.device("cpu"), 1)
    alone = bench.add("work", lambda: None, images=1)
    beside = bench.add("work beside products", lambda: None, images=1, flops_per_image=1)
    assert beside["peak_memory_gb"] == pytest.approx(alone["peak_memory_gb"], abs=0.05)


def test_what_is_to_be_done_once_is(capsys):
    calls = []
    bench = measuring.Bench(torch.device("cpu"), repeats=3)
    bench.add("a command, once", lambda: calls.append("once"), 4, once=True)
    bench.add("a piece of work", lambda: calls.append("again"), 4)
    assert calls == ["once"] + ["again"] * 4  # one of them to warm up


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

    def product(one, other, out):
        clock[0] += 0.25
        return matmul(one, other, out=out)

    def work():
        clock[0] += 3.0
        weight = torch.rand(5, requires_grad=True)
        weight.exp().sigmoid().sum().backward()

    monkeypatch.setattr(measuring, "WITHIN", -1.0)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "matmul", product)
    monkeypatch.setitem(measuring.MATRICES, "cpu", ((8, 8, 8), (16, 8, 8)))
    bench = measuring.Bench(torch.device("cpu"), 1)
    seconds, rate, _ = bench.beside_products(work, "float32")
    # 2 at the start, 6 before and 6 after, and more within
    assert clock[0] > 3.0 + 0.25 * (2 + 6 + 6)
    assert seconds == 3.0
    assert rate == 2 * 16 * 8 * 8 / 0.25  # of the faster shape
