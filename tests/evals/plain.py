"""Log probabilities by one plain forward pass with all logits, for comparison."""

from functools import partial

import jax
import numpy as np

from minigpt_jax import loss
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model import GPT


@partial(jax.jit, static_argnames="model")
def _all_logprobs(model: GPT, params, rows):
    hidden, _ = model.apply({"params": params}, rows)  # pyright: ignore
    return jax.nn.log_softmax(loss.logits(hidden, params["wte"], model.config.vocab_size))


def next_token_logprobs(run: LoadedRun, ids: list[int]) -> np.ndarray:
    """[len(ids), V] log probabilities of the token after each of `ids`."""
    # Padded to the whole context, so that one shape is compiled. No position attends to padding.
    row = np.zeros((1, run.config.context), np.int32)
    row[0, : len(ids)] = ids
    return np.asarray(_all_logprobs(GPT(run.config), run.params, row))[0, : len(ids)]
