"""Loss per token and bits per byte of a token stream.

train.py measures them during training, `python -m minigpt_jax.evals bits` for a finished run.
"""

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
    """Loss of a model on the tokens whose loss weight is not 0."""

    # Mean, in nats per token.
    loss: float
    # Sum of the loss in bits, divided by the bytes of text of these tokens.
    bits_per_byte: float
    # Number of these tokens.
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
    for row_numbers, arrays in data.fixed_batches(
        stream, rows=rows, batch=batch, context=context, sharding=batch_sharding(mesh)
    ):
        if stop_requested():
            raise EvaluationStopped
        loss_sum, weight_sum = jax.device_get(eval_step(params, arrays))
        # Read again, because `arrays` may be distributed over processes, and may have more rows.
        tokens, mask = data.read_rows(stream, row_numbers, context)
        total_loss += float(loss_sum)
        total_weight += float(weight_sum)
        # Targets are all tokens of a row but the first.
        total_bytes += float((lengths[tokens[:, 1:]] * mask).sum())
    # If no token has weight, the results are 0 instead of a division by zero.
    return Measure(
        loss=total_loss / max(total_weight, 1),
        bits_per_byte=total_loss / math.log(2) / max(total_bytes, 1),
        tokens=int(total_weight),
    )
