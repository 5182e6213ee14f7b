"""The cost of `--quantize int8`: the loss of a trained run in float32 and in int8.

    python -m benchmarks.quantize --run RUN --source FOLDER_OF_SHARDS [--rows 100]

Both read the same evenly spaced rows of the validation split.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax import data, load_run
from minigpt_jax.decoding import empty_cache, forward, next_logits, prepare_for_decoding
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model import GPT
from minigpt_jax.runtime.files import expand_home, user_path
from minigpt_jax.runtime.program import exit_cleanly
from minigpt_jax.token_stream import open_stream, read_manifest

# Positions whose logits are in memory at the same time.
CHUNK = 128


def main() -> None:
    """Measure both and print the difference."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantize",
        description="The loss of a run in float32 and in int8.",
    )
    parser.add_argument("--run", type=expand_home, required=True, help="folder of a run")
    parser.add_argument("--source", required=True, type=user_path, help="folder of shards")
    parser.add_argument("--rows", type=int, default=100, help="rows to read (default: 100)")
    options = parser.parse_args()

    run = load_run(options.run)
    context = run.config.context
    stream = open_stream(
        options.source,
        "val",
        tokenizer=read_manifest(options.source)["tokenizer"],
        vocab_size=run.config.vocab_size,
        context=context,
    )
    total = data.row_count(stream, context)
    chosen = np.unique(np.linspace(0, total - 1, min(options.rows, total)).astype(np.int64))
    tokens, weights = data.read_rows(stream, chosen, context)
    before = mean_loss(run, None, tokens, weights)
    after = mean_loss(run, "int8", tokens, weights)
    print(f"{options.run}: {len(chosen)} of {total} rows of {context} tokens")
    print(f"float32 {before:.5f}   int8 {after:.5f}   difference {after / before - 1:+.3%}")


def mean_loss(
    run: LoadedRun, quantize: str | None, tokens: np.ndarray, weights: np.ndarray
) -> float:
    """Weighted mean loss (nats) of rows `tokens` [N, T+1] with `weights` [N, T].

    Each row is a sequence of its own, as in sample.py.
    """
    model, params = prepare_for_decoding(run.params, run.config, quantize=quantize)
    losses = np.stack([row_losses(model, params, row[None].astype(np.int32)) for row in tokens])
    return float((losses * weights).sum() / weights.sum())


@partial(jax.jit, static_argnums=0)
def row_losses(model: GPT, params: dict, row: jax.Array) -> jax.Array:
    """[T] losses of one row [1, T+1]."""
    length = row.shape[1] - 1
    positions = jnp.arange(length)[None]
    cache = empty_cache(model.config, 1, model.dtype, length)
    hidden, _ = forward(model, params, row[:, :-1], positions, cache)
    losses = []
    for start in range(0, length, CHUNK):
        logits = next_logits(hidden[0, start : start + CHUNK], params, model.config)
        targets = row[0, 1 + start : 1 + start + CHUNK, None]
        picked = jnp.take_along_axis(logits, targets, -1)[:, 0]
        losses.append(jax.nn.logsumexp(logits, -1) - picked)
    return jnp.concatenate(losses)


if __name__ == "__main__":
    exit_cleanly(main)
