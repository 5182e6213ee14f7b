"""Loss per token and bits per byte of a token stream: what an evaluation of train.py measures, for any stream of ours."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from minigpt_jax import data
from minigpt_jax.sharding import batch_sharding
from minigpt_jax.step import Batch
from minigpt_jax.token_stream import Stream
from minigpt_jax.tokenizer import load_tokenizer


class Measure(NamedTuple):
    """Mean loss (nats) per token that has weight, bits per byte of their text, and how many tokens these were."""

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
    abandon: Callable[[], bool] = lambda: False,
) -> Measure | None:
    """The measure of `rows` evenly spaced rows of `stream`, `batch` at a time; `eval_step` is step.make_eval_step's.

    Every process takes part, and every one reads all rows for their bytes. None once `abandon` says so.
    """
    lengths = load_tokenizer().byte_lengths()
    total = weight = size = 0.0
    for numbers, arrays in data.fixed_batches(
        stream, rows=rows, batch=batch, context=context, sharding=batch_sharding(mesh)
    ):
        if abandon():
            return None
        piece, share = jax.device_get(eval_step(params, Batch(*arrays)))
        tokens, mask = data.read_rows(stream, numbers, context)
        total, weight, size = (
            total + float(piece),
            weight + float(share),
            size + float((lengths[tokens[:, 1:]] * mask).sum()),
        )
    return Measure(total / max(weight, 1), total / math.log(2) / max(size, 1), int(weight))
