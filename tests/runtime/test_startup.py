"""The flags of XLA that a training sets: the user's own are stronger."""

import os

import pytest

from minigpt_jax.runtime import startup


@pytest.mark.parametrize(
    ("has_driver", "deterministic", "flags"),
    [
        (True, False, f"{startup.NVIDIA_FLAGS} --own"),
        (True, True, f"{startup.NVIDIA_FLAGS} --own --xla_gpu_deterministic_ops=true"),
        (False, False, "--own"),
    ],
)
def test_flags_of_the_user_come_after_those_for_speed(
    has_driver: bool, deterministic: bool, flags: str, tmp_path, monkeypatch
):
    monkeypatch.setattr(startup, "NVIDIA_DRIVER", tmp_path if has_driver else tmp_path / "none")
    monkeypatch.setenv("XLA_FLAGS", "--own")
    startup.set_xla_flags(deterministic=deterministic)
    assert os.environ["XLA_FLAGS"].split() == flags.split()
