"""Where the time of work goes, by the names of its operations."""

import time

import pytest
import torch
from torch.profiler import record_function

from benchmark.measuring import Bench
from benchmark.shares import shares


def shares_of(*operations):
    """Where the time goes of operations that take a fiftieth of a second each."""

    def made_work():
        for name in operations:
            with record_function(name):
                time.sleep(0.02)

    return shares(torch.device("cpu"), Bench(torch.device("cpu"), 1).seconds, made_work)


def test_compiled_kernels_are_fused_operations_and_no_products():
    """Though they are named after the products that they come after."""
    compiled = ["triton_poi_fused_addmm_gelu_3", "triton_red_fused_convolution_native_layer_norm_0"]
    compiled += ["triton_per_fused__scaled_dot_product_flash_attention_mm_1", "triton_tem_fused_zeros_5"]
    assert set(shares_of(*compiled)) <= {"fused", "rest", "gaps"}
    templates = ["triton_tem_fused_addmm_gelu_2", "triton_tem_fused_bmm_7", "triton_tem_fused_convolution_4"]
    split = shares_of(*templates, compiled[0])
    assert split["matrix products"] == pytest.approx(2 * split["fused"], rel=0.2)
    assert split["convolutions"] == pytest.approx(split["fused"], rel=0.2)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::_addmm_activation", "matrix products"),
        ("aten::baddbmm", "matrix products"),
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("aten::linear", "matrix products"),
        ("aten::convolution_backward", "convolutions"),
        ("aten::cudnn_convolution", "convolutions"),
        ("aten::_scaled_dot_product_flash_attention_backward", "attention"),
        ("aten::upsample_bilinear2d", "upsample_bilinear2d"),
        ("aten::native_group_norm", "native_group_norm"),
    ],
)
def test_operations_are_of_a_kind_by_their_names(operation, kind):
    assert set(shares_of(operation)) <= {kind, "rest", "gaps"} and kind in shares_of(operation)
