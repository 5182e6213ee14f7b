"""A GPU that is not here is compiled for by its description, and only within the context."""

import re

import jax
import pytest
from jax._src import xla_bridge

from configs.pretrain import get_config
from minigpt_jax import hardware
from minigpt_jax.compiled_step import compilation_target, compile_step
from minigpt_jax.described_gpu import DESCRIPTIONS, described_gpus, target_config
from minigpt_jax.errors import InputError
from minigpt_jax.hardware import ACCELERATORS, is_accelerator
from minigpt_jax.memory import MARGIN, step_memory
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.plan import step_settings


def has_plugin() -> bool:
    """Whether this environment can compile for NVIDIA GPUs."""
    try:
        with described_gpus("h100", 1):
            return True
    except InputError:
        return False


needs_plugin = pytest.mark.skipif("not has_plugin()", reason="needs JAX's CUDA plugin")
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton:DeprecationWarning")


def tiny_config():
    c = get_config()
    c.model.update(vocab_size=300, context=128, layers=2, heads=2, embed=128)
    c.data.batch = 16
    return c


@pytest.mark.parametrize("card", DESCRIPTIONS)
def test_a_description_is_that_of_the_card_in_the_data_sheet(card: str):
    gpu = DESCRIPTIONS[card]
    assert is_accelerator(card, gpu.name)
    assert gpu.memory == pytest.approx(ACCELERATORS[card].memory, rel=0.08)
    device = hardware.Device("gpu", f"{gpu.capability}.0")
    assert device.is_ampere_or_newer
    text = target_config(gpu)
    assert text.count("{") == text.count("}")
    assert re.search(rf"memory_bandwidth: {gpu.bandwidth}$", text, re.MULTILINE)


@needs_plugin
def test_jax_answers_for_the_described_gpu_only_within_the_context():
    def answers():
        return (
            jax.default_backend(),
            hardware.this_device(),
            xla_bridge.canonicalize_platform,
        )

    before = answers()
    with described_gpus("h100", 2) as devices:
        assert answers()[:2] == ("gpu", hardware.Device("gpu", "9.0"))
        assert len(devices) == 2
        assert all(is_accelerator("h100", device.device_kind) for device in devices)
    assert answers() == before


@needs_plugin
@pytest.mark.parametrize("card", DESCRIPTIONS)
def test_the_step_compiles_for_every_described_card(card: str):
    c = tiny_config()
    c.mesh.update(data=2, fsdp=2)
    with compilation_target(card, 4) as target:
        found = compile_step(c, target, accumulation_steps=2, scatter_each=True)
    # A device stores half of the state, and two numbers of eight and sixteen bits per token.
    parameters = 12 * c.model.embed**2 * c.model.layers + (384 + 128) * c.model.embed
    assert found.arguments == pytest.approx(12 * parameters / 2, rel=0.05)
    assert found.temporaries > 0


@needs_plugin
def test_the_estimate_agrees_with_xla_today():
    c = get_config()
    c.data.batch = 8
    with compilation_target("h100", 1) as target:
        found = compile_step(c, target, accumulation_steps=1, scatter_each=False)
    settings = step_settings(c, "h100", 1)
    estimate = step_memory(GPTConfig(**c.model), settings, rows=8, accumulation_steps=1)
    assert estimate.state == pytest.approx(found.arguments, rel=0.01)
    assert estimate.total == pytest.approx(found.arguments + found.temporaries, rel=MARGIN)
