"""Models whose answers are known: they draw evenly from a few tokens, whatever the prompt is."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from minigpt_jax.checkpoint import Checkpoints
from minigpt_jax.model import GPT
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.step import TrainState
from minigpt_jax.tokenizer import CHAT_VOCAB, TEXT_VOCAB, load_tokenizer

WORDS = ("sun", "rain", "wind", "snow")
UNLIKELY = -100.0


def params_that_draw(tokens: Sequence[int], config: GPTConfig) -> dict:
    """Parameters with equal logits for `tokens`, and far lower ones for all others."""
    shapes = jax.eval_shape(GPT(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), nn.unbox(shapes["params"]))
    # The last LayerNorm gives (1, 0, 0, ...) at every position, so the logit of a token is the
    # first number of its row in the embedding table.
    params["ln_f"]["bias"][0] = 1.0
    params["wte"][:, 0] = UNLIKELY
    params["wte"][list(tokens), 0] = 0.0
    return jax.tree.map(jnp.asarray, params)


def make_run(folder: Path, config: GPTConfig, texts: Sequence[str]) -> Path:
    """A run on disk whose model draws evenly from the tokens of `texts`."""
    tokens = [token for text in texts for token in load_tokenizer().encode(text)]
    params = params_that_draw(tokens, config)
    state = TrainState(jnp.int32(1), params, optax.sgd(0.1).init(params))
    meta = {"model": asdict(config), "config": {}, "data": "", "validation_loss": None}
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(state, 1, meta)
    checkpoints.close()
    return folder


def make_chat_run(folder: Path) -> Path:
    """A run as finetuning makes it. Its answers of WORDS never end before the context does."""
    config = GPTConfig(vocab_size=CHAT_VOCAB, context=16_384, layers=1, heads=1, embed=8)
    return make_run(folder, config, [f" {word}" for word in WORDS])


def make_text_run(folder: Path) -> Path:
    """A run as pretraining makes it. It draws the two tokens of one character, in any order."""
    config = GPTConfig(vocab_size=TEXT_VOCAB, context=64, layers=1, heads=1, embed=8)
    return make_run(folder, config, ["龘"])
