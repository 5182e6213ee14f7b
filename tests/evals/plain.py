"""Log probabilities by one plain forward pass with all logits, for comparison."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax.architectures import AnyModel, make_model
from minigpt_jax.loaded_run import LoadedRun


@partial(jax.jit, static_argnames="model")
def _all_logprobs(model: AnyModel, params, rows):
    hidden, _ = model.apply({"params": params}, rows)  # pyright: ignore
    scores = hidden @ params["wte" if model.config.is_gpt2 else "lm_head"].T
    scores = scores[..., : model.config.vocab_size]
    # NanoChat bounds its logits.
    return jax.nn.log_softmax(scores if model.config.is_gpt2 else 15 * jnp.tanh(scores / 15))


def next_token_logprobs(run: LoadedRun, ids: list[int]) -> np.ndarray:
    """[len(ids), V] log probabilities of the token after each of `ids`."""
    # Padded to the whole context, so that one shape is compiled. No position attends to padding.
    row = np.zeros((1, run.config.context), np.int32)
    row[0, : len(ids)] = ids
    return np.asarray(_all_logprobs(make_model(run.config), run.params, row))[0, : len(ids)]
