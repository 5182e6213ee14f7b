"""The estimate of a step's memory agrees with what XLA said of steps compiled for GPUs."""

import pytest

from configs.pretrain import SIZES
from minigpt_jax.memory import MARGIN, StepSettings, step_memory
from minigpt_jax.model_config import GPTConfig

SMALL = GPTConfig()
NANOCHAT = GPTConfig(heads=6, architecture="nanochat")
NANOCHAT_D20 = GPTConfig(layers=20, heads=10, embed=1280, architecture="nanochat")

# Gigabytes by XLA (jax 0.11.2) of steps that were compiled for H100s and an H200, in bfloat16, as
# `python -m minigpt_jax.plan --compile` does. tests/test_described_gpu.py compiles one again.
COMPILED_FOR_GPU = [
    # size, rows, micro-batches, remat, unroll, fsdp, scatter_each, gigabytes
    ("gpt2", 8, 1, "none", 12, 1, False, 4.49),
    ("gpt2", 32, 1, "none", 12, 1, False, 12.22),
    ("gpt2", 32, 2, "none", 12, 1, False, 12.67),
    ("gpt2", 64, 1, "none", 12, 1, False, 22.69),
    ("gpt2", 32, 1, "none", 1, 1, False, 13.26),
    ("gpt2", 32, 1, "dots", 1, 1, False, 8.44),
    ("gpt2", 32, 1, "full", 1, 1, False, 3.87),
    ("gpt2", 16, 2, "none", 12, 8, False, 6.74),
    ("gpt2", 16, 2, "none", 12, 8, True, 6.37),
    ("gpt2", 16, 2, "none", 12, 4, False, 6.93),
    ("gpt2", 16, 2, "none", 12, 4, True, 6.61),
    ("gpt2-medium", 2, 1, "none", 24, 1, False, 6.86),
    ("gpt2-medium", 16, 1, "none", 24, 1, False, 18.65),
    ("gpt2-medium", 16, 1, "none", 12, 1, False, 27.04),
    ("gpt2-medium", 16, 1, "none", 1, 1, False, 20.54),
    ("gpt2-medium", 16, 1, "dots", 1, 1, False, 13.6),
    ("gpt2-medium", 16, 1, "full", 1, 1, False, 7.34),
    ("gpt2-medium", 16, 2, "none", 24, 8, False, 17.65),
    ("gpt2-large", 2, 1, "none", 36, 1, False, 14.2),
    ("gpt2-large", 8, 1, "none", 36, 1, False, 23.64),
    ("gpt2-large", 8, 1, "none", 18, 1, False, 33.6),
    ("gpt2-large", 8, 1, "none", 1, 1, False, 27.01),
    ("gpt2-large", 8, 1, "dots", 1, 1, False, 19.61),
    ("gpt2-xl", 1, 1, "none", 48, 1, False, 25.39),
    ("gpt2-xl", 8, 1, "none", 48, 1, False, 43.0),
    ("gpt2-xl", 8, 1, "none", 24, 1, False, 61.1),
    ("gpt2-xl", 8, 1, "none", 12, 1, False, 55.28),
    ("gpt2-xl", 8, 1, "none", 1, 1, False, 49.74),
    ("gpt2-xl", 8, 1, "full", 1, 1, False, 26.87),
    ("gpt2-xl", 4, 2, "none", 48, 8, False, 28.45),
    ("gpt2-xl", 4, 2, "none", 48, 8, True, 23.23),
    ("gpt2-xl", 4, 1, "none", 48, 8, False, 16.37),
    ("gpt2-xl", 4, 2, "none", 24, 8, False, 41.31),
    ("gpt2-xl", 4, 2, "none", 24, 8, True, 35.87),
    ("gpt2-xl", 4, 2, "none", 1, 8, False, 34.91),
    ("gpt2-xl", 4, 2, "none", 1, 8, True, 29.52),
    ("gpt2-xl", 4, 2, "full", 1, 8, False, 21.7),
    ("gpt2-xl", 4, 2, "full", 1, 8, True, 17.51),
    ("gpt2-xl", 4, 2, "none", 48, 4, False, 30.79),
    ("gpt2-xl", 4, 2, "none", 24, 4, False, 43.65),
    ("gpt2-xl", 4, 2, "none", 24, 4, True, 38.98),
]


@pytest.mark.parametrize(
    ("size", "rows", "steps", "remat", "unroll", "fsdp", "scatter_each", "gigabytes"),
    COMPILED_FOR_GPU,
)
def test_the_estimate_for_a_gpu_agrees_with_xla(
    size, rows, steps, remat, unroll, fsdp, scatter_each, gigabytes
):
    settings = StepSettings(
        "bfloat16", remat, "cudnn", 128, False, unroll, fsdp, 1, scatter_each, True
    )
    config = GPTConfig(**SIZES[size])
    estimate = step_memory(config, settings, rows=rows, accumulation_steps=steps).total
    assert estimate == pytest.approx(gigabytes * 1e9, rel=MARGIN)


# The same for the other model and optimizer, which benchmarks/compile_for_gpu.py compiled.
COMPILED_WITH_MUON = [
    # model, optimizer, rows, micro-batches, remat, fsdp, tensor, scatter_each, gigabytes
    (NANOCHAT, "adamw", 32, 1, "none", 1, 1, False, 10.63),
    (NANOCHAT, "muon", 8, 1, "none", 1, 1, False, 4.21),
    (NANOCHAT, "muon", 32, 1, "none", 1, 1, False, 10.29),
    (NANOCHAT, "muon", 32, 2, "none", 1, 1, False, 10.62),
    (NANOCHAT, "muon", 32, 1, "dots", 1, 1, False, 8.71),
    (NANOCHAT, "muon", 32, 1, "full", 1, 1, False, 4.28),
    (NANOCHAT, "muon", 16, 1, "none", 8, 1, False, 5.31),
    (NANOCHAT, "muon", 16, 2, "none", 8, 1, False, 5.9),
    (NANOCHAT, "muon", 16, 2, "none", 8, 1, True, 6.16),
    (NANOCHAT, "muon", 16, 1, "none", 1, 2, False, 4.15),
    (NANOCHAT, "muon", 16, 2, "none", 2, 2, False, 4.32),
    (NANOCHAT_D20, "adamw", 8, 1, "none", 1, 1, False, 13.12),
    (NANOCHAT_D20, "muon", 2, 1, "none", 1, 1, False, 7.76),
    (NANOCHAT_D20, "muon", 8, 2, "none", 1, 1, False, 13.24),
    (NANOCHAT_D20, "muon", 4, 2, "none", 8, 1, False, 8.62),
    (SMALL, "muon", 8, 1, "none", 1, 1, False, 4.29),
    (SMALL, "muon", 32, 2, "none", 1, 1, False, 12.35),
]


@pytest.mark.parametrize(
    (
        "config",
        "optimizer",
        "rows",
        "steps",
        "remat",
        "fsdp",
        "tensor",
        "scatter_each",
        "gigabytes",
    ),
    COMPILED_WITH_MUON,
)
def test_the_estimate_for_the_other_model_and_optimizer_agrees_with_xla(
    config, optimizer, rows, steps, remat, fsdp, tensor, scatter_each, gigabytes
):
    settings = StepSettings("bfloat16", remat, "cudnn", 128, False)
    settings = settings._replace(
        fsdp=fsdp,
        tensor=tensor,
        scatter_each=scatter_each,
        has_kernels=tensor == 1,
        optimizer=optimizer,
    )
    estimate = step_memory(config, settings, rows=rows, accumulation_steps=steps).total
    assert estimate == pytest.approx(gigabytes * 1e9, rel=0.1)


@pytest.mark.parametrize(
    ("rows", "steps", "fsdp", "gigabytes"), [(16, 1, 1, 4.47), (16, 2, 2, 4.59)]
)
def test_the_estimate_for_layers_split_over_gpus_agrees_with_xla(
    rows: int, steps: int, fsdp: int, gigabytes: float
):
    settings = StepSettings("bfloat16", "none", "cudnn", 128, False, 12, fsdp, tensor=2)
    estimate = step_memory(SMALL, settings, rows=rows, accumulation_steps=steps).total
    assert estimate == pytest.approx(gigabytes * 1e9, rel=MARGIN)
