"""The plan prints memory, time and disk of a run by the rules that training follows."""

import subprocess
import sys

import jax
import pytest

from configs.pretrain import get_config
from minigpt_jax import plan
from minigpt_jax.attention import attention_kernel
from minigpt_jax.model import resolve_compute_dtype
from minigpt_jax.runtime.program import exit_cleanly
from tests.harness import ROOT

COMMAND_TIMEOUT = 120


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
def test_wrong_arguments_are_refused(wrong: list[str], capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plan", "--config", "configs/pretrain.py", *wrong])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        exit_cleanly(plan.main)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert not printed.out and printed.err and "Traceback" not in printed.err


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
