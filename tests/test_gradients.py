"""Gradients cross between devices once a step, in f32, whatever the number of micro-batches.

Counted in the text of the compiled step, on four simulated devices; and the sums are compared with
those of one device.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from benchmarks.compiled_text import Traffic, read_traffic
from minigpt_jax.gradients import sum_gradients
from minigpt_jax.model import GPT
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.optim import learning_rate, make_optimizer
from minigpt_jax.sharding import batch_sharding, make_mesh
from minigpt_jax.step import Batch, abstract_state, make_train_step

# Weights are most of what crosses: with little text, activations are small.
CONFIG = GPTConfig(vocab_size=1000, context=16, layers=3, heads=4, embed=64)
# In StableHLO, with the types of its operands.
SUM_OVER_DEVICES = r"stablehlo\.(?:all_reduce|reduce_scatter)\".*?\}\) : \((.*?)\)"
# Bytes of the loss, the gradient's norm and the like.
SCALARS = 10_000


def traffic(data: int, fsdp: int, tensor: int, accumulation: int) -> tuple[Traffic, int]:
    """Of a step in bfloat16, and the number of parameters.

    What the step itself sums over devices is checked to be in float32, before XLA compiles it: a
    CPU sums nothing in bfloat16.
    """
    mesh = make_mesh(data, fsdp, tensor)
    model = GPT(CONFIG, dtype=jnp.bfloat16)
    optimizer = make_optimizer()
    schedule = partial(learning_rate, horizon=20, peak=1e-2, warmup=2)
    step = make_train_step(model, optimizer, schedule, mesh, seed=0, loss_chunk=4)
    abstract = partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh))
    rows = (accumulation, 8)
    batch = Batch(
        abstract((*rows, CONFIG.context + 1), jnp.uint16),
        abstract((*rows, CONFIG.context), jnp.uint8),
    )
    state = abstract_state(model, optimizer, mesh)
    lowered = step.lower(state, batch)
    sums = re.findall(SUM_OVER_DEVICES, lowered.as_text(), re.DOTALL)
    assert sums and not any("bf16" in types for types in sums)
    return read_traffic(lowered.compile().as_text()), sum(
        p.size for p in jax.tree.leaves(state.params)
    )


def bytes_of(traffic: Traffic, kind: str) -> int:
    return sum(moved for (found, _), moved in traffic.collectives.items() if found == kind)


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.campaign), 4])
def test_data_parallel_sums_each_gradient_once(accumulation):
    found, parameters = traffic(4, 1, 1, accumulation)
    assert set(kind for kind, _ in found.collectives) == {"all-reduce"}
    assert abs(bytes_of(found, "all-reduce") - 4 * parameters) < SCALARS
    assert not any("bf16" in shape for _, shape in found.collectives)


@pytest.mark.parametrize(
    ("data", "fsdp", "tensor"),
    [
        (2, 2, 1),
        pytest.param(1, 4, 1, marks=pytest.mark.campaign),
        pytest.param(1, 2, 2, marks=pytest.mark.campaign),
    ],
)
def test_fsdp_gathers_and_scatters_each_parameter_once(data, fsdp, tensor):
    found, parameters = traffic(data, fsdp, tensor, 4)
    # Biases and norms are whole on every device.
    whole = 4 * CONFIG.layers * 13 * CONFIG.embed
    # A CPU may gather in f32 what a GPU gathers in bfloat16.
    of_device = 4 * parameters / tensor + whole + SCALARS
    assert bytes_of(found, "all-gather") < of_device
    assert bytes_of(found, "reduce-scatter") < of_device
    scattered = [shape for kind, shape in found.collectives if kind == "reduce-scatter"]
    assert scattered and not any("bf16" in shape for shape in scattered)
    if tensor == 1:
        summed = 4 * parameters / fsdp if data > 1 else 0
        assert bytes_of(found, "all-reduce") < summed + whole + SCALARS


# ---- the sums

SPECS = {"matrix": PartitionSpec("fsdp", "tensor"), "bias": PartitionSpec(None)}
STEP_KEY = jax.random.key(3)


def loss_sums(params, tokens, weights, rows, key):
    """Of a model with two parameters and a random number for each row."""
    noise = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row)))(rows)
    x = params["matrix"][tokens[:, 1:]] + params["bias"][None, None] + noise[:, None, None]
    return (weights * jnp.tanh(x).sum(-1)).sum(), weights.sum()


@pytest.fixture(scope="module")
def problem():
    draw = np.random.default_rng(0)
    params = {
        "matrix": draw.normal(size=(8, 4)).astype(np.float32),
        "bias": draw.normal(size=4).astype(np.float32),
    }
    tokens = draw.integers(0, 8, (3, 4, 6))
    return params, Batch(tokens, draw.random((3, 4, 5)).astype(np.float32))


@pytest.mark.parametrize("scatter_each", [False, True])
@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(4, 1, 1), (1, 4, 1), (2, 2, 1), (1, 2, 2)])
def test_sums_are_those_of_all_rows_each_with_its_own_random_numbers(
    problem, data, fsdp, tensor, scatter_each
):
    params, batch = problem
    mesh = make_mesh(data, fsdp, tensor)
    sums = partial(sum_gradients, loss_sums, mesh=mesh, specs=SPECS, dtype=jnp.float32)
    with jax.set_mesh(mesh):
        found = jax.jit(partial(sums, scatter_each=scatter_each))(params, batch, STEP_KEY)

    def total(params):
        tokens, weights = (array.reshape(12, -1) for array in batch)
        return loss_sums(params, tokens, weights, jnp.arange(12), STEP_KEY)[0]

    expected = (*jax.value_and_grad(total)(params), batch.weights.sum())
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        (found[0], found[2], found[1]),
        expected,
    )
