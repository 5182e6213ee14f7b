"""The table "where a step goes" gives each kernel of a trace to one part of the model."""

import pytest

from benchmarks.step_profile import OTHER, operation_names, part_of, profile_table, times_by_part

COMPILED = """
ENTRY %main (a: f32[8]) -> f32[8] {
  %fusion.12 = f32[8]{0} fusion(%a), metadata={op_name="jit(step)/gradients/layers/ln_1/add"}
  ROOT %loop_add_fusion = f32[8]{0} fusion(%fusion.12), metadata={op_name="jit(step)/optimizer/add"}
}
"""


@pytest.mark.parametrize(
    ("kernel", "operation", "part"),
    [
        ("nvjet_sm90_tst_192x192_64x3", "jit(step)/gradients/jvp(cross_entropy)/dot", "matmuls"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", "", "attention"),
        ("cross_entropy", "", "loss"),
        ("loop_add_fusion_3", "jit(step)/gradients/jvp(cross_entropy)/while/body/add", "loss"),
        ("layer_norm_backward_7", "", "LayerNorm, residual"),
        (
            "input_reduce_fusion",
            "jit(step)/gradients/x/layers/mlp/up/reduce_sum",
            "GELU, biases of the MLP",
        ),
        (
            "loop_slice_fusion",
            "jit(step)/gradients/attention/split",
            "q, k, v: cut, joined, biases",
        ),
        (
            "input_scatter_fusion",
            "jit(step)/gradients/transpose(jvp(GPT))/scatter-add",
            "embedding",
        ),
        ("loop_multiply_fusion", "jit(step)/optimizer/mul", "optimizer, gradient norm"),
        ("MemcpyD2D", "", "copies"),
        ("something_new", "jit(step)/gradients/something", OTHER),
    ],
)
def test_a_kernel_belongs_to_one_part(kernel: str, operation: str, part: str):
    assert part_of(kernel, operation) == part


def test_a_kernel_without_a_telling_name_is_found_by_the_compiled_text():
    operations = operation_names(COMPILED)
    times = times_by_part([("fusion_12", 3.0), ("loop_add_fusion", 1.0)], operations)
    assert times == {"LayerNorm, residual": 3.0, "optimizer, gradient norm": 1.0}
    assert profile_table(times).splitlines()[-1].split() == ["kernels", "4.00"]
