"""The estimate of a step's memory agrees with XLA, and the micro-batch fits or is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.pretrain import get_config
from minigpt_jax import optim
from minigpt_jax.architectures import make_model
from minigpt_jax.errors import InputError
from minigpt_jax.memory import (
    MARGIN,
    StepSettings,
    choose_accumulation_steps,
    largest_micro_batch,
    scatters_each,
    step_memory,
)
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.sharding import AXES
from minigpt_jax.step import Batch, abstract_state, make_train_step
from tests.harness import run_train

GIB = 2**30
DEVICE_BYTES = 10 * GIB
SMALL = GPTConfig()
MEDIUM = GPTConfig(layers=24, heads=16, embed=1024)
NANOCHAT = GPTConfig(heads=6, architecture="nanochat")


def steps_for(batch: int, devices: int, micro_batch: int = 0, row_bytes: float = GIB) -> int:
    """Number of micro-batches if each row needs `row_bytes`."""
    return choose_accumulation_steps(
        batch,
        devices,
        micro_batch=micro_batch,
        device_bytes=DEVICE_BYTES,
        bytes_of=lambda rows: rows * row_bytes,
    )


# ---- micro-batches


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize("row_bytes", [GIB // 100, GIB, 3 * GIB])
def test_the_micro_batches_make_up_the_batch_and_are_the_largest_that_fit(
    devices: int, row_bytes: int
):
    fitting = DEVICE_BYTES / (1 + MARGIN) / row_bytes
    for rows in range(1, 40):
        steps = steps_for(rows * devices, devices, row_bytes=row_bytes)
        size, rest = divmod(rows, steps)
        assert rest == 0 and steps * size * devices == rows * devices
        assert size <= fitting
        larger_divisors = (n for n in range(size + 1, rows + 1) if rows % n == 0)
        assert all(n > fitting for n in larger_divisors)


def test_the_largest_micro_batch_divides_the_rows():
    sizes = {0.5: 0, 1.01: 1, 5: 4, 6.01: 6, 100: 12}
    for fitting, size in sizes.items():
        assert largest_micro_batch(12, fitting * (1 + MARGIN), float) == size


def test_a_given_micro_batch_is_used():
    assert steps_for(24, 2, micro_batch=3) == 4
    assert steps_for(24, 2, micro_batch=12, row_bytes=GIB // 4) == 1
    assert steps_for(512, 8, micro_batch=16, row_bytes=GIB // 4) == 4


@pytest.mark.parametrize(
    ("micro_batch", "row_bytes", "remedy"),
    [(24, GIB, "data.micro_batch 8 fits"), (0, 100 * GIB, "compute.remat=full")],
)
def test_a_micro_batch_that_cannot_fit_is_refused_with_one_that_does(
    micro_batch: int, row_bytes: int, remedy: str
):
    with pytest.raises(InputError, match=remedy) as error:
        steps_for(24, 1, micro_batch=micro_batch, row_bytes=row_bytes)
    # The memory of the device.
    assert "10.7 GB" in str(error.value)


@pytest.mark.parametrize(
    ("batch", "devices", "micro_batch"),
    [(6, 4, 0), (1, 8, 0), (512, 3, 0), (24, 2, 5), (24, 2, 24), (10, 1, 4), (96, 32, 4)],
)
def test_a_batch_that_cannot_be_divided_evenly_is_refused_with_the_next_one_that_can(
    batch: int, devices: int, micro_batch: int
):
    message = rf"data\.batch {batch} must be a multiple of .*: try \d+$"
    with pytest.raises(InputError, match=message) as error:
        steps_for(batch, devices, micro_batch=micro_batch)
    better = int(str(error.value).split()[-1])
    unit = devices * max(micro_batch, 1)
    assert better > batch and better % unit == 0 and better - batch < unit


def test_a_batch_that_cannot_fit_is_refused_before_anything_is_compiled(tmp_path, corpus):
    huge = {
        "model__context": 512,
        "model__layers": 100,
        "model__embed": 1024,
        "data__batch": 4096,
        "data__micro_batch": 4096,
    }
    done = run_train(tmp_path, data__folder=corpus, **huge)
    assert done.returncode == 2, done.stdout
    assert "a micro-batch of 4096 rows needs about" in done.stdout
    assert done.stdout.count("\n") == 1


# ---- the estimate


def xla_bytes(
    config: GPTConfig,
    rows: int,
    remat: str,
    dtype: str,
    *,
    fsdp: int = 1,
    accumulation_steps: int = 1,
    scatter_each: bool = False,
    optimizer_kind: str = "adamw",
) -> float:
    """Bytes of the compiled step by XLA: arguments, results that are not arguments, temporaries."""
    c = get_config()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:fsdp]).reshape(1, fsdp, 1), AXES)
    model = make_model(config, dtype=jnp.dtype(dtype), remat=remat)
    optimizer = optim.make_optimizer(**{**c.optimizer, "kind": optimizer_kind})
    schedule = partial(optim.learning_rate, horizon=1000, **c.schedule)
    step = make_train_step(
        model,
        optimizer,
        schedule,
        mesh,
        seed=0,
        loss_chunk=c.loss.chunk,
        scatter_each=scatter_each,
    )
    shape = (accumulation_steps, fsdp * rows)
    tokens = jax.ShapeDtypeStruct((*shape, config.context + 1), jnp.uint16)
    weights = jax.ShapeDtypeStruct((*shape, config.context), jnp.uint8)
    lowered = step.lower(abstract_state(model, optimizer, mesh), Batch(tokens, weights))
    found = lowered.compile().memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + results + found.temp_size_in_bytes


def check_estimate(
    config: GPTConfig, rows: int, remat: str, dtype: str, optimizer: str = "adamw"
) -> None:
    settings = StepSettings(
        dtype, remat, attention="cpu", loss_chunk=128, on_cpu=True, optimizer=optimizer
    )
    estimate = step_memory(config, settings, rows=rows, accumulation_steps=1).total
    found = xla_bytes(config, rows, remat, dtype, optimizer_kind=optimizer)
    assert estimate == pytest.approx(found, rel=MARGIN)


@pytest.mark.parametrize(
    ("config", "rows", "remat", "dtype"),
    [
        (SMALL, 8, "none", "float32"),
        (MEDIUM, 4, "dots", "bfloat16"),
        pytest.param(SMALL, 1, "none", "float32", marks=pytest.mark.campaign),
        pytest.param(SMALL, 8, "none", "bfloat16", marks=pytest.mark.campaign),
        pytest.param(SMALL, 8, "full", "float32", marks=pytest.mark.campaign),
    ],
)
def test_the_estimate_agrees_with_xla(config: GPTConfig, rows: int, remat: str, dtype: str):
    check_estimate(config, rows, remat, dtype)


@pytest.mark.campaign
def test_the_estimate_of_nanochat_with_muon_agrees_with_xla():
    check_estimate(NANOCHAT, 4, "none", "float32", optimizer="muon")


@pytest.mark.parametrize("scatter_each", [False, pytest.param(True, marks=pytest.mark.campaign)])
def test_the_estimate_agrees_with_xla_with_fsdp(scatter_each: bool):
    # Weights and gradients are most of the memory.
    config = GPTConfig(vocab_size=1000, context=64, layers=12, embed=384)
    settings = StepSettings(
        "float32", "full", "xla", loss_chunk=128, on_cpu=True, fsdp=4, scatter_each=scatter_each
    )
    estimate = step_memory(config, settings, rows=1, accumulation_steps=3).total
    found = xla_bytes(
        config, 1, "full", "float32", fsdp=4, accumulation_steps=3, scatter_each=scatter_each
    )
    assert estimate == pytest.approx(found, rel=MARGIN)


def test_a_loss_without_the_kernel_for_gpus_keeps_its_logits_in_float32_too():
    def temporaries(has_kernels: bool) -> float:
        settings = StepSettings(
            "bfloat16", "full", "xla", 1024, on_cpu=False, has_kernels=has_kernels
        )
        return step_memory(SMALL, settings, rows=8, accumulation_steps=1).temporaries

    values = 8 * SMALL.context * SMALL.padded_vocab
    assert temporaries(False) - temporaries(True) == 6 * values


def test_fsdp_scatters_after_each_micro_batch_only_where_whole_gradients_leave_too_little_space():
    def bytes_of(scatter_each: bool, rows: int) -> float:
        return rows + (0 if scatter_each else 10)

    def scatters(memory: float, micro_batch: int = 0) -> bool:
        return scatters_each(16, micro_batch, memory * (1 + MARGIN), bytes_of)

    # Rows that fit beside whole gradients, and without them: 16 and 16, 8 and 16, 4 and 8.
    assert not any(scatters(memory) for memory in (26, 18, 14))
    # 1 and 8, 0 and 1.
    assert scatters(11) and scatters(1)
    # None in either way: the error names what one row needs at least.
    assert not scatters(0.5)
    assert not scatters(18, micro_batch=8)
    assert scatters(14, micro_batch=8)


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("config", "rows", "remat", "dtype"),
    [
        (SMALL, 1, "none", "bfloat16"),
        (SMALL, 8, "full", "bfloat16"),
        (MEDIUM, 4, "dots", "float32"),
    ],
)
def test_the_estimate_agrees_with_xla_in_the_other_precision(
    config: GPTConfig, rows: int, remat: str, dtype: str
):
    check_estimate(config, rows, remat, dtype)
