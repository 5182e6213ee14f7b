"""The bytes of kernels and collectives are those of the compiled text, each as often as it runs."""

import jax
import jax.numpy as jnp

from benchmarks.compiled_text import (
    count_executions,
    parse_computations,
    read_traffic,
    shape_bytes,
    split_async_shape,
)

TRIPS = 3
# The forms that XLA writes for a GPU: a loop, a matmul, attention, kernels and collectives.
PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused_add (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %add = f32[8,4]{1,0} add(%p, %p)
}

%fused_slices (p: f32[8,4], i: s32[]) -> f32[1,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %half = f32[4,4]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={4,4}
  %rounded = bf16[4,4]{1,0} convert(%half)
  ROOT %row = bf16[1,4]{1,0} slice(%rounded), slice={[1:2], [0:4]}
}

%body (carry: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %carry = (s32[], f32[8,4]{1,0}) parameter(0)
  %a = f32[8,4]{1,0} get-tuple-element(%carry), index=1
  %add_fusion.7 = f32[8,4]{1,0} fusion(%a), kind=kLoop, calls=%fused_add, \
metadata={op_name="jit(step)/layer_3/add"}
  %reduced = f32[8,4]{1,0} all-reduce(%add_fusion.7), to_apply=%sum
  ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%i, %reduced)
}

%condition (carry: (s32[], f32[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[8,4], w: bf16[4,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %w = bf16[4,4]{1,0} parameter(1)
  %loop = (s32[], f32[8,4]{1,0}) while(%init), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %product = (bf16[8,4]{1,0}, s8[16]{0}) custom-call(%x, %w), \
custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"epilogue":"BIAS"}}
  %attended = bf16[8,4]{1,0} custom-call(%w), custom_call_target="__cudnn$fmhaSoftmax"
  %gathered = ((f32[2,4]{1,0}), f32[8,4]{1,0}) all-gather-start(%x), dimensions={0}
  %scattered = f32[2,4]{1,0} reduce-scatter(%x), dimensions={0}, to_apply=%sum
  %row = bf16[1,4]{1,0} fusion(%x, %index), kind=kLoop, calls=%fused_slices
  ROOT %dynamic_update_slice_fusion.1 = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused_add
}
"""
X_BYTES = 8 * 4 * 4
W_BYTES = 4 * 4 * 2


def test_the_bytes_of_a_shape_are_those_of_all_its_arrays():
    sizes = {
        "f32[8,4]{1,0}": 128,
        "bf16[3]{0}": 6,
        "f32[]": 4,
        "(f64[2]{0}, pred[5]{0}, f8e4m3fn[7]{0})": 28,
        "token[]": 0,
    }
    assert {shape: shape_bytes(shape) for shape in sizes} == sizes


def test_an_asynchronous_shape_has_operands_and_results():
    shape = "((f32[2]{0}, (f32[3]{0})), f32[8]{0})"
    operands, results = split_async_shape(shape)
    assert shape_bytes(operands) == 20 and shape_bytes(results) == 32
    assert split_async_shape("(f32[2]{0}, f32[3]{0})") == ("", "(f32[2]{0}, f32[3]{0})")


def test_the_body_of_a_loop_counts_once_per_trip():
    computations, entry = parse_computations(PROGRAM)
    assert entry == "main"
    assert set(computations) == {"fused_add", "fused_slices", "body", "condition", "main"}
    # A computation inside a kernel is not counted: it is part of the kernel.
    assert count_executions(computations, entry) == {"main": 1, "body": TRIPS}


def test_kernels_are_matmuls_attention_or_others():
    traffic = read_traffic(PROGRAM)
    add = 2 * X_BYTES * TRIPS
    # One of the 8 rows that the update reads and writes.
    update = 2 * X_BYTES // 8
    # Of the array that it takes a row of, a kernel reads that row.
    row = X_BYTES // 8 + 4 * 2
    result = 8 * 4 * 2
    assert traffic.totals == {
        "matmul": X_BYTES + W_BYTES + result + 16,
        "attention": W_BYTES + result,
        "other": add + update + row,
    }
    assert traffic.epilogues == {"BIAS": 1}
    key = ("add_fusion", "f32[8,4]{1,0}", "jit(step)/layer/add")
    assert traffic.kernels[key] == add and traffic.kernel_calls[key] == TRIPS


def test_collectives_count_the_whole_array():
    traffic = read_traffic(PROGRAM)
    moved = {kind: size for (kind, _), size in traffic.collectives.items()}
    calls = {kind: count for (kind, _), count in traffic.collective_calls.items()}
    assert moved == {
        "all-reduce": X_BYTES * TRIPS,
        "all-gather": X_BYTES,
        "reduce-scatter": X_BYTES,
    }
    assert calls == {"all-reduce": TRIPS, "all-gather": 1, "reduce-scatter": 1}


def test_the_text_of_a_program_that_xla_compiled_is_understood():
    def step(x):
        return jax.lax.fori_loop(0, TRIPS, lambda i, x: jnp.sort(x + i), x)

    text = jax.jit(step).lower(jnp.zeros(64)).compile().as_text()
    computations, entry = parse_computations(text)
    assert entry in computations
    assert TRIPS in count_executions(computations, entry).values()
    assert read_traffic(text).totals["other"] >= 2 * 64 * 4
