"""What a token of the decode loop starts is counted in the list that XLA writes."""

from benchmarks.decode_launches import Launches, read_launches, token_bytes
from minigpt_jax.model_config import GPTConfig

BEFORE = """\
000: kCommandBuffer [source       | next=003 (1)]
    001: kCopy         [source | sink] kCopy
    002: kCustomKernel [source | sink] loop_broadcast_fusion grid: [1, 1, 1] threads: [2, 1, 1]
"""
LOOP = """\
003: kWhile         [prev=000 (1) | next=000 (1)]
condition:
    004: kCustomKernel [source | sink] loop_and_fusion grid: [1, 1, 1] threads: [1, 1, 1]
  body:
    000: kCommandBuffer  [source       | next=014 (1)]
        005: kCustomKernel   [source       | next=006 (1)] fusion_9 grid: [96, 1, 1] threads: [64]
        006: kCublasLtMatmul [prev=005 (1) | next=007 (1)] kCublasLtMatmul
        007: kCustomKernel   [prev=006 (1) | sink        ] gemm_fusion_dot_2 grid: [48, 1, 1]
    014: kConditional    [prev=000 (1) | next=015 (1)]
      false_branch:
        000: kCommandBuffer [source       | next=010 (1)]
            008: kCustomKernel [source       | sink        ] loop_add_fusion grid: [1, 1, 1]
            009: kCopy         [source       | sink        ] kCopy
        010: kConditional   [prev=000 (1) | sink        ]
          false_branch:
            No thunks.          true_branch:
            011: kWhile       [source       | sink        ]
condition:
                012: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1]
              body:
                013: kCustomKernel [source | sink] input_reduce_fusion grid: [16, 1, 1]
      true_branch:
        No thunks.
    015: kCustomKernel  [prev=014 (1) | sink        ] loop_select_fusion grid: [1, 1, 1]
"""
AFTER = "016: kCopy          [prev=003 (1) | sink        ] kCopy\n"


def test_graphs_branches_and_host_reads_of_a_token_are_counted():
    launches = read_launches((BEFORE + LOOP + AFTER).splitlines())
    assert launches == Launches(
        kernels={"matmul": 2, "softmax, LayerNorm": 1, "other": 2},
        in_branches=4,
        # The graph, the loop's condition and the last kernel.
        submissions=3,
        # Of the loop and of the outer branch.
        host_reads=2,
        host_reads_in_branches=1,
    )


def test_in_a_graph_of_the_whole_loop_the_host_reads_nothing():
    nested = "".join(f"    {line}\n" for line in LOOP.splitlines())
    launches = read_launches(f"000: kCommandBuffer [source | sink] \n{nested}".splitlines())
    assert (launches.submissions, launches.host_reads, launches.host_reads_in_branches) == (0, 0, 0)
    assert launches.kernels.total() == 5


def test_a_token_reads_all_weights_and_the_keys_and_values_of_its_row():
    config = GPTConfig(layers=2, heads=1, embed=8)
    assert token_bytes(config, 3, 10) == 2 * config.parameters + 3 * 10 * 2 * 2 * 8 * 2
