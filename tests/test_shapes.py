"""Shapes in signatures are checked at every call in the tests; a run must not pay for it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import pytest

from minigpt_jax.attention import attend_in_blocks, segment_mask
from minigpt_jax.loss import cross_entropy
from minigpt_jax.model import GPT, LayerNorm
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.muon import newton_schulz
from minigpt_jax.nanochat import NanoChat
from minigpt_jax.step import document_layout
from tests.conftest import CHECKED

ROOT = Path(__file__).parents[1]
CONFIG = GPTConfig(vocab_size=8, context=4, layers=1, heads=1, embed=4)
NANOCHAT = replace(CONFIG, architecture="nanochat")
QKV = jnp.zeros((1, 4, 2, 3))
HIDDEN = jnp.zeros((1, 4, 8))
TABLE = jnp.zeros((10, 8))
WRONG_CALLS = {
    "a row without its batch": lambda: GPT(CONFIG).apply({}, jnp.zeros(4, jnp.int32)),
    "tokens that are not integers": lambda: GPT(CONFIG).apply({}, jnp.zeros((1, 4))),
    "a layer's input without time": lambda: LayerNorm(jnp.float32).apply({}, jnp.zeros((2, 8))),
    "a row of NanoChat without its batch": lambda: NanoChat(NANOCHAT).apply(
        {}, jnp.zeros(4, jnp.int32)
    ),
    "a matrix without its stack": lambda: newton_schulz(jnp.zeros((2, 3)), jnp.float32),
    "a mask for another length": lambda: attend_in_blocks(
        QKV, QKV, QKV, jnp.ones((1, 5, 5), dtype=bool)
    ),
    "keys with another head dim": lambda: attend_in_blocks(QKV, QKV[..., :2], QKV, None),
    "segments of one row": lambda: segment_mask(jnp.zeros(4, jnp.int32)),
    "targets for another length": lambda: cross_entropy(
        HIDDEN,
        TABLE,
        jnp.zeros((1, 5), jnp.int32),
        jnp.ones((1, 4)),
        vocab_size=10,
        chunk=4,
    ),
    "separators of one row": lambda: document_layout(jnp.zeros(4, jnp.int32), 0),
}


@pytest.mark.parametrize("call", WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_a_wrong_shape_is_refused_in_the_tests(call):
    with pytest.raises(jaxtyping.TypeCheckError, match="Type-check error"):
        call()


def test_nothing_is_checked_outside_of_the_tests():
    code = f"""
import importlib, sys
for name in {CHECKED}:
    importlib.import_module(name)
import jax.numpy as jnp
from minigpt_jax.attention import swap_time_and_heads
from minigpt_jax.loss import mask_padded_vocab
# Three dimensions where four are annotated, and integers where floats are.
print(swap_time_and_heads(jnp.zeros((1, 2, 3))).shape)
print(mask_padded_vocab(jnp.arange(4), 3).shape)
print("beartype" in sys.modules, "typeguard" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(1, 3, 2)", "(4,)", "False False"]
