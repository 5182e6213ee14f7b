"""The plan prints memory, time and disk of a run by the rules that training follows."""

import re
import subprocess
import sys
from dataclasses import asdict
from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.experimental import topologies

from configs.pretrain import get_config
from minigpt_jax import plan
from minigpt_jax.attention import attention_kernel
from minigpt_jax.hardware import ACCELERATORS, MEASUREMENTS, resolve_compute_dtype
from minigpt_jax.memory import format_bytes
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.muon import orthogonalize_matrices
from minigpt_jax.run_costs import ASSUMED_SHARE, measured_share, muon_flops, time_lines
from tests.harness import ROOT
from tests.in_process import run_main
from tests.test_described_gpu import has_plugin
from tests.test_memory import xla_bytes

COMMAND_TIMEOUT = 120
# ml_collections loads config files like this.
pytestmark = pytest.mark.filterwarnings(
    "ignore:the load_module.* method is deprecated:DeprecationWarning"
)


def test_a_plan_is_one_table():
    arguments = ["--config", "configs/pretrain.py", "--device", "a100-40gb", "--devices", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "minigpt_jax.plan", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    lines = {line[:12].strip(): line for line in done.stdout.splitlines()}
    assert "124,439,808 parameters" in lines["model"]
    assert "8 x a100-40gb, 30.0 GB" in lines["devices"]
    assert "1 x 64 rows" in lines["batch"]
    assert "19,073 steps, 9,999,745,024 tokens" in lines["run"]
    assert "2.4 hours at 40% of 312 TFLOP/s" in lines["time"]
    assert "6.0 GB for checkpoints" in lines["disk"]
    assert "largest micro-batch                 64        64        64" in done.stdout
    assert "40% is assumed: a100-40gb was not measured in bfloat16" in done.stdout
    assert "the exchange between the 8 devices is not counted" in done.stdout


def test_a_plan_counts_two_tables_of_nanochat_and_one_moment_of_muons_matrices():
    arguments = ["--config.model.architecture=nanochat", "--config.optimizer.kind=muon"]
    arguments += ["--config.data.batch=8", "--device", "h100"]
    done = run_main(plan.main, "--config", ROOT / "configs/pretrain.py", *arguments)
    assert done.returncode == 0, done.stderr
    # Parameters and moments: twice 12 x 12 x 768^2, three times the tables.
    values = 2 * 12 * 12 * 768**2 + 3 * 2 * 50257 * 768
    assert "162,129,408 parameters" in done.stdout
    assert f"for checkpoints of {format_bytes(4 * values)}" in done.stdout
    padded = values + 3 * 2 * 47 * 768
    line = next(text for text in done.stdout.splitlines() if text.startswith("parameters and"))
    # Of 8 rows: 1.6 TFLOP beside 7.
    assert "and 23.3% more for Muon" in done.stdout
    assert format_bytes(4 * padded) in line


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["--device", "tpu9"], "invalid choice: 'tpu9'"),
        (["--devices", "0"], "expected 1 or more"),
        (["--config.data.batch=0"], "data.batch"),
        (["--config.mesh.fsdp=3"], "fsdp=3"),
        (["--config.data.micro_batch=7"], "data.micro_batch 7"),
        (["--config.compute.attention=cudnn"], "try compute.attention=auto"),
        (
            ["--device=h100", "--devices=5", "--config.mesh.fsdp=5", "--config.data.batch=10"],
            "embed",
        ),
        (["--compile", "--devices", "64"], "xla_force_host_platform_device_count=64"),
        (["--compile", "--device", "l4"], "only where there is one"),
    ],
)
def test_wrong_arguments_are_refused(wrong: list[str], reason: str):
    done = run_main(plan.main, "--config", ROOT / "configs/pretrain.py", *wrong)
    assert done.returncode == 2
    assert not done.stdout and reason in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("attention", ["auto", "xla"])
def test_a_plan_for_this_cpu_uses_the_precision_and_the_attention_of_training(
    dtype: str, devices: int, attention: str
):
    assert jax.default_backend() == "cpu"
    c = get_config()
    c.compute.dtype = dtype
    c.compute.attention = attention
    settings = plan.step_settings(c, "cpu", devices)
    used = resolve_compute_dtype(dtype)
    assert settings.dtype == used
    assert settings.attention == attention_kernel(attention, used, devices)


@pytest.mark.parametrize(
    ("dtype", "attention", "kernel"),
    [
        ("auto", "auto", "cudnn"),
        ("bfloat16", "auto", "cudnn"),
        ("float32", "auto", "xla"),
        ("bfloat16", "xla", "xla"),
    ],
)
def test_on_a_gpu_attention_is_that_of_cudnn_in_bfloat16(dtype: str, attention: str, kernel: str):
    c = get_config()
    c.compute.dtype = dtype
    c.compute.attention = attention
    settings = plan.step_settings(c, "h100", 8)
    assert settings.attention == kernel
    assert settings.dtype == ("float32" if dtype == "float32" else "bfloat16")


# ---- time


def test_the_flops_of_muon_are_those_of_its_matmuls():
    config = GPTConfig(layers=1, heads=1, embed=16)
    shapes = {
        "qkv": (1, 16, 3, 1, 16),
        "out": (1, 1, 16, 16),
        "up": (1, 16, 64),
        "down": (1, 64, 16),
    }
    kernels = {name: {"kernel": jnp.zeros(shape)} for name, shape in shapes.items()}
    update = partial(orthogonalize_matrices(jnp.float32).update, state=optax.EmptyState())
    jaxpr = jax.make_jaxpr(update)(kernels).jaxpr
    flops = 0
    for equation in jaxpr_equations(jaxpr):
        if equation.primitive.name == "dot_general":
            ((inner,), _), _ = equation.params["dimension_numbers"]
            flops += 2 * equation.outvars[0].aval.size * equation.invars[0].aval.shape[inner]
    assert flops == muon_flops(config)


def jaxpr_equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        if "jaxpr" in equation.params:
            yield from jaxpr_equations(equation.params["jaxpr"].jaxpr)


def test_the_time_is_that_of_the_measured_speed():
    """A run of the model and the precision that were measured takes its tokens / (tokens/s)."""
    measured = MEASUREMENTS["h200"]
    tokens = measured.tokens_per_second * 3600 * 10
    lines = time_lines(tokens * GPTConfig().flops_per_token, "h200", 2, measured.dtype)
    assert "5.0 hours" in lines[0] and "measured with GPT-2 124M" in lines[1]


@pytest.mark.parametrize(("device", "dtype"), [("h200", "float32"), ("h100", "bfloat16")])
def test_what_was_not_measured_is_said_to_be_assumed(device: str, dtype: str):
    lines = time_lines(1e18, device, 1, dtype)
    assert len(lines) == 2
    assert f"{ASSUMED_SHARE:.0%} of" in lines[0]
    assert f"is assumed: {device} was not measured in {dtype}" in lines[1]


@pytest.mark.parametrize("device", MEASUREMENTS)
def test_every_measured_speed_is_in_the_log(device: str):
    measured = MEASUREMENTS[device]
    log = (ROOT / "docs" / "log.md").read_text()
    assert re.search(rf"(?<![\d,]){measured.tokens_per_second:,}(?![\d,])", log)
    # What is assumed of other devices is less.
    assert ASSUMED_SHARE < measured_share(measured) < 1
    if device != "cpu":
        assert measured.peak_flops == ACCELERATORS[device].peak_flops


# ---- compiled


@pytest.mark.parametrize(
    ("architecture", "optimizer"),
    [pytest.param("gpt2", "adamw", marks=pytest.mark.campaign), ("nanochat", "muon")],
)
def test_the_compiled_step_is_that_of_training(architecture: str, optimizer: str):
    """On a mesh, with several micro-batches: its memory is that of the step built by hand."""
    config = GPTConfig(
        vocab_size=1000, context=32, layers=1, heads=2, embed=128, architecture=architecture
    )
    arguments = [f"--config.model.{name}={value}" for name, value in asdict(config).items()]
    arguments += ["--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.data.batch=8"]
    arguments += ["--config.data.micro_batch=2", "--devices", "2", "--compile"]
    arguments += [f"--config.optimizer.kind={optimizer}"]
    done = run_main(plan.main, "--config", ROOT / "configs/pretrain.py", *arguments)
    assert done.returncode == 0, done.stderr
    found = xla_bytes(
        config, 2, "none", "float32", fsdp=2, accumulation_steps=2, optimizer_kind=optimizer
    )
    total = next(line for line in done.stdout.splitlines() if line.startswith("total, of"))
    estimate, by_xla, difference = re.findall(r"[-+\d.]+ ?[GM%]", total)[1:]
    assert by_xla == format_bytes(found)[:-1]
    ratio = float(estimate[:-2]) / float(by_xla[:-2])
    assert float(difference[:-1]) / 100 == pytest.approx(ratio - 1, abs=0.2)


def test_a_gpu_that_is_not_here_needs_the_plugin_and_the_jax_that_it_was_written_for(monkeypatch):
    arguments = ["--config", ROOT / "configs/pretrain.py", "--device", "h100", "--compile"]
    if not has_plugin():
        done = run_main(plan.main, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1 and "make install CUDA=1" in done.stderr
    monkeypatch.delattr(topologies, "get_topology_desc")
    done = run_main(plan.main, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and f"jax {jax.__version__}" in done.stderr
