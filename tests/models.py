"""Models with random weights, for tests that need numbers but no training."""

from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax.architectures import make_model
from minigpt_jax.model_config import GPTConfig

# Far enough from zero that every weight changes the result, small enough that no softmax saturates.
STD = 0.1


@lru_cache
def weight_shapes(config: GPTConfig) -> dict:
    """Shapes of the weights, as jax.ShapeDtypeStruct."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    variables = jax.eval_shape(lambda: make_model(config).init(jax.random.key(0), tokens))
    return nn.unbox(variables["params"])


def weights(config: GPTConfig, seed: int = 0) -> dict:
    """Random weights. Biases and scales are random too: zeros and ones would hide mistakes."""
    draw = np.random.default_rng(seed)

    def sample(path, shape):
        mean = 1 if path[-1].key == "scale" else 0
        return jnp.asarray(draw.normal(size=shape.shape) * STD + mean, jnp.float32)

    return jax.tree_util.tree_map_with_path(sample, weight_shapes(config))
