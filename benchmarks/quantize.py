"""What eight bits cost: the loss of a trained run on rows of its kind of text, in float and as `--quantize int8` computes it.

    python -m benchmarks.quantize --run RUN --source FOLDER_OF_SHARDS [--rows 100]

Both are given the same evenly spaced rows of the validation split.
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax import data, load_run
from minigpt_jax.decoding import forward, next_logits, prepare_for_decoding
from minigpt_jax.errors import exit_cleanly
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model import GPT, empty_cache
from minigpt_jax.token_stream import open_stream, read_manifest

CHUNK = 128  # positions whose logits are in memory at once


def main() -> int:
    """Measure both and print the rise."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantize",
        description="The loss of a run in float and in eight bits.",
    )
    parser.add_argument("--run", required=True, help="folder of a run")
    parser.add_argument(
        "--source", required=True, help="folder of shards; the validation split is read"
    )
    parser.add_argument("--rows", type=int, default=100, help="evenly spaced rows (default: 100)")
    options = parser.parse_args()
    run, folder = load_run(options.run), Path(options.source)
    context = run.config.context
    stream = open_stream(
        folder,
        "val",
        tokenizer=read_manifest(folder)["tokenizer"],
        vocab_size=run.config.vocab_size,
        context=context,
    )
    total = data.row_count(stream, context)
    chosen = np.unique(np.linspace(0, total - 1, min(options.rows, total)).astype(np.int64))
    tokens, weights = data.read_rows(stream, chosen, context)
    before, after = (mean_loss(run, quantize, tokens, weights) for quantize in (None, "int8"))
    print(f"{options.run}: {len(chosen)} of {total} rows of {context} tokens")
    print(f"float32 {before:.5f}   int8 {after:.5f}   rise {after / before - 1:+.3%}")
    return 0


def mean_loss(
    run: LoadedRun, quantize: str | None, tokens: np.ndarray, weights: np.ndarray
) -> float:
    """Weighted mean of the loss (nats) over rows `tokens` [N, T+1] with `weights` [N, T], one row at a time, as sample.py reads them."""
    model, params = prepare_for_decoding(run.params, run.config, quantize=quantize)
    losses = np.stack([row_losses(model, params, row[None].astype(np.int32)) for row in tokens])
    return float((losses * weights).sum() / weights.sum())


@partial(jax.jit, static_argnums=0)
def row_losses(model: GPT, params: dict, row: jax.Array) -> jax.Array:
    """[T] losses of one row [1, T+1]."""
    length = row.shape[1] - 1
    hidden, _ = forward(
        model,
        params,
        row[:, :-1],
        jnp.arange(length)[None],
        empty_cache(model.config, 1, model.dtype, length),
    )
    pieces = [
        jax.nn.logsumexp(scores, -1)
        - jnp.take_along_axis(scores, row[0, 1 + start : 1 + start + CHUNK, None], -1)[:, 0]
        for start in range(0, length, CHUNK)
        for scores in [
            next_logits(hidden[0, start : start + CHUNK], params, model.config.vocab_size)
        ]
    ]
    return jnp.concatenate(pieces)


if __name__ == "__main__":
    exit_cleanly(main)
