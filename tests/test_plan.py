"""The plan says what will be: memory as XLA accounts for it, a micro-batch that fits, and a refusal where none does."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.pretrain import get_config
from minigpt_jax import optim
from minigpt_jax.errors import InputError
from minigpt_jax.model import GPT, GPTConfig
from minigpt_jax.plan import MARGIN, accumulation, largest, step_memory
from minigpt_jax.sharding import AXES
from minigpt_jax.step import Batch, abstract_state, make_train_step
from tests.harness import ROOT, run_train

GIB = 2**30


def parts(
    batch: int, shards: int, micro: int = 0, row_bytes: float = GIB, device_bytes: float = 10 * GIB
) -> int:
    return accumulation(
        batch,
        shards,
        micro_batch=micro,
        device_bytes=device_bytes,
        bytes_of=lambda rows: rows * row_bytes,
    )


def test_the_parts_make_up_the_batch_for_every_size():
    for shards in (1, 2, 3, 8):
        for rows in range(1, 40):
            for row_bytes in (GIB // 100, GIB, 3 * GIB):
                accum = parts(rows * shards, shards, row_bytes=row_bytes)
                micro, rest = divmod(rows, accum)
                assert rest == 0 and accum * micro * shards == rows * shards
                room = 10 * GIB / (1 + MARGIN) / row_bytes
                assert micro <= room
                assert all(
                    m > room for m in range(micro + 1, rows + 1) if rows % m == 0
                )  # it is the largest that fits


def test_a_given_micro_batch_is_taken():
    assert parts(24, 2, micro=3) == 4
    assert parts(24, 2, micro=12, row_bytes=GIB // 4) == 1
    assert parts(512, 8, micro=16, row_bytes=GIB // 4) == 4


@pytest.mark.parametrize(
    ("micro", "row_bytes", "words"),
    [(24, GIB, "data.micro_batch 8 fits"), (0, 100 * GIB, "compute.remat=full")],
)
def test_what_cannot_fit_is_refused_with_what_would(micro: int, row_bytes: int, words: str):
    with pytest.raises(InputError, match=words) as refused:
        parts(24, 1, micro=micro, row_bytes=row_bytes)
    assert "10.7 GB" in str(refused.value)


@pytest.mark.parametrize(
    ("batch", "shards", "micro"),
    [(6, 4, 0), (1, 8, 0), (512, 3, 0), (24, 2, 5), (24, 2, 24), (10, 1, 4), (96, 32, 4)],
)
def test_parts_that_do_not_come_out_even_are_refused_with_a_size_that_would_do(
    batch: int, shards: int, micro: int
):
    with pytest.raises(
        InputError, match=rf"data\.batch {batch} must be a multiple of .*: try \d+$"
    ) as refused:
        parts(batch, shards, micro=micro)
    better = int(str(refused.value).split()[-1])
    unit = shards * max(micro, 1)
    assert better > batch and better % unit == 0 and better - batch < unit  # the next one


def test_the_largest_divides():
    assert [largest(12, room, float) for room in (0.5, 1, 5, 6, 100)] == [0, 1, 4, 6, 12]


def settings(rows: int, remat: str, dtype: str) -> dict:
    return {
        "rows": rows,
        "accum": 1,
        "dtype": dtype,
        "remat": remat,
        "scores": False,
        "chunk": 128,
        "cpu": True,
    }


def xla_bytes(config: GPTConfig, rows: int, remat: str, dtype: str) -> float:
    """Bytes that XLA gives to the compiled step: arguments, results that are not arguments, and everything in between."""
    c = get_config()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    model, optimizer = (
        GPT(config, dtype=jnp.dtype(dtype), remat=remat),
        optim.make_optimizer(**c.optimizer),
    )
    schedule = partial(optim.learning_rate, horizon=1000, **c.schedule)
    step = make_train_step(model, optimizer, schedule, mesh, seed=0, loss_chunk=c.loss.chunk)
    shape = (1, rows, config.context)
    batch = Batch(
        jax.ShapeDtypeStruct((*shape[:2], shape[2] + 1), jnp.uint16),
        jax.ShapeDtypeStruct(shape, jnp.uint8),
    )
    found = step.lower(abstract_state(model, optimizer, mesh), batch).compile().memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
    )


MEDIUM = GPTConfig(layers=24, heads=16, embed=1024)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("config", "rows", "remat"),
    [
        (GPTConfig(), 1, "none"),
        (GPTConfig(), 8, "none"),
        (GPTConfig(), 8, "full"),
        (MEDIUM, 4, "dots"),
    ],
)
def test_the_memory_is_what_xla_says(config: GPTConfig, rows: int, remat: str, dtype: str):
    estimate = step_memory(config, **settings(rows, remat, dtype)).total
    assert estimate == pytest.approx(xla_bytes(config, rows, remat, dtype), rel=MARGIN)


def test_a_plan_is_one_table():
    command = [
        sys.executable,
        "-m",
        "minigpt_jax.plan",
        "--config",
        "configs/pretrain.py",
        "--device",
        "a100-40gb",
        "--devices",
        "8",
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    lines = {line[:12].strip(): line for line in done.stdout.splitlines()}
    assert (
        "124,439,808 parameters" in lines["model"]
        and "8 x a100-40gb, 30.0 GB" in lines["devices"]
        and "1 x 64 rows" in lines["batch"]
    )
    assert (
        "19,073 steps, 9,999,745,024 tokens" in lines["run"]
        and "of 312 TFLOP/s" in lines["time"]
        and "6.0 GB for checkpoints" in lines["disk"]
    )
    assert "largest micro-batch                 64        64        64" in done.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        ["--device", "tpu9"],
        ["--devices", "0"],
        ["--config.data.batch=0"],
        ["--config.mesh.fsdp=3"],
        ["--config.data.micro_batch=7"],
    ],
)
def test_a_plan_of_nonsense_is_refused(wrong: list[str]):
    command = [sys.executable, "-m", "minigpt_jax.plan", "--config", "configs/pretrain.py", *wrong]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr


def test_a_batch_that_cannot_fit_is_refused_before_anything_is_compiled(tmp_path, corpus):
    huge = {
        "model__context": 512,
        "model__layers": 100,
        "model__embed": 1024,
        "data__batch": 4096,
        "data__micro_batch": 4096,
    }
    done = run_train(tmp_path, data__folder=corpus, **huge)
    assert (
        done.returncode == 2
        and "4096 rows at once need about" in done.stdout
        and done.stdout.count("\n") == 1
    ), done.stdout
