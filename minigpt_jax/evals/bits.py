"""Loss per token and bits per byte of a token stream, for training and for a command."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from minigpt_jax import data
from minigpt_jax.errors import EvaluationStopped
from minigpt_jax.sharding import batch_sharding
from minigpt_jax.token_stream import Stream
from minigpt_jax.tokenizer import load_tokenizer


class Measure(NamedTuple):
    """Means over the tokens that have weight. `loss` is in nats per token."""

    loss: float
    bits_per_byte: float
    tokens: int


def measure(
    params: dict,
    stream: Stream,
    eval_step: Callable,
    mesh: jax.sharding.Mesh,
    *,
    rows: int,
    batch: int,
    context: int,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Measure:
    """Measure `rows` evenly spaced rows of `stream`, `batch` at a time.

    `eval_step` comes from step.make_eval_step. Every process must call this function, and every
    process reads all rows to count their bytes. Raises EvaluationStopped.
    """
    lengths = load_tokenizer().byte_lengths()
    total_loss = total_weight = total_bytes = 0.0
    for numbers, arrays in data.fixed_batches(
        stream, rows=rows, batch=batch, context=context, sharding=batch_sharding(mesh)
    ):
        if stop_requested():
            raise EvaluationStopped
        loss, weight = jax.device_get(eval_step(params, arrays))
        tokens, mask = data.read_rows(stream, numbers, context)
        total_loss += float(loss)
        total_weight += float(weight)
        total_bytes += float((lengths[tokens[:, 1:]] * mask).sum())
    return Measure(
        loss=total_loss / max(total_weight, 1),
        bits_per_byte=total_loss / math.log(2) / max(total_bytes, 1),
        tokens=int(total_weight),
    )
