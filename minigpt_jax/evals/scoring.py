"""Log probabilities of given continuations: what HellaSwag, lm-eval and the loss of answers need.

A group is a context and its continuations, as in lm-evaluation-harness. packing.py puts them into
rows.

Logits are computed only at positions that predict a token of a continuation, for CHUNK positions
and VOCAB_SLICE rows of the embedding table at a time. The logits of such a tile stay in a
processor's cache, and each slice of the table is read once for many positions.

R: data-parallel replicas. N: targets of a replica, which are the tokens to predict, and padding.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax import loss
from minigpt_jax.architectures import AnyModel, make_model, output_head
from minigpt_jax.errors import EvaluationStopped
from minigpt_jax.evals import SCORING_BATCH
from minigpt_jax.evals.packing import Group, PackedBatch, PackedRow, pack_rows, packed_batches
from minigpt_jax.hardware import resolve_compute_dtype
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.sharding import AXIS_RULES, batch_sharding, data_parallel_size, replicated

# Positions and rows of the embedding table whose logits are computed together: 3 MB in f32.
CHUNK = 256
# A sixteenth of the padded GPT-2 vocabulary of 50304.
VOCAB_SLICE = 3144


class Score(NamedTuple):
    """Score of one continuation: the sum of its tokens' log probabilities, in nats.

    `greedy` is true if each of its `tokens` tokens is the most likely one, or one of several.
    """

    logprob: float
    tokens: int
    greedy: bool

    @property
    def loss(self) -> float:
        """Mean loss per token, in nats."""
        return -self.logprob / self.tokens


def score(
    run: LoadedRun,
    mesh: jax.sharding.Mesh,
    groups: Sequence[Group],
    *,
    dtype: jax.typing.DTypeLike | None = None,
    batch: int = SCORING_BATCH,
    stop_requested: Callable[[], bool] = lambda: False,
) -> list[list[Score]]:
    """The score of every continuation of every group; all processes call it with the same groups.

    The start of a context is dropped if context and continuation together are too long. `batch` is
    the number of rows per replica. Raises EvaluationStopped after `stop_requested` returned true,
    and InputError for a continuation longer than the model's context or an empty one.
    """
    # "xla" is the attention that runs on every device and mesh, and in every dtype.
    model = make_model(run.config, dtype=dtype or resolve_compute_dtype(), attention="xla")
    scores = [[Score(0.0, 0, False)] * len(continuations) for _, continuations in groups]
    rows = pack_rows(groups, run.config.context)
    batches = packed_batches(rows, batch=batch, replicas=data_parallel_size(mesh), chunk=CHUNK)
    for rows_per_replica, packed in batches:
        if stop_requested():
            raise EvaluationStopped
        # N is for a full batch, and most are not full: chunks that are only padding are left out.
        num_targets = max(
            sum(row.num_targets for row in replica_rows) for replica_rows in rows_per_replica
        )
        logprobs, greedy = _compute(model, mesh, run.params, packed, num_targets)
        for replica, replica_rows in enumerate(rows_per_replica):
            _store_scores(scores, replica_rows, logprobs[replica], greedy[replica])
    return scores


def _compute(
    model: AnyModel, mesh: jax.sharding.Mesh, params: dict, batch: PackedBatch, num_targets: int
) -> tuple[np.ndarray, np.ndarray]:
    """[R, N] log probability of each target, and whether it is the most likely token.

    Targets after the first `num_targets` of each replica are padding.
    """
    chunk = min(CHUNK, batch.targets.shape[-1])
    num_chunks = math.ceil(num_targets / chunk)
    sharding = batch_sharding(mesh)
    arrays = jax.tree.map(
        lambda a: jax.make_array_from_callback(a.shape, sharding, a.__getitem__), batch
    )
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(AXIS_RULES)):
        results = _target_logprobs(model, mesh, params, arrays, chunk=chunk, num_chunks=num_chunks)
        return jax.device_get(results)


def _store_scores(scores, rows: Sequence[PackedRow], logprobs, greedy) -> None:
    """Write the scores of one replica's `rows` to their places; logprobs and greedy are [N]."""
    end = 0
    for row in rows:
        for number, continuation in enumerate(row.continuations, row.first):
            begin, end = end, end + len(continuation)
            total = float(logprobs[begin:end].sum(dtype=np.float64))
            all_greedy = bool(greedy[begin:end].all())
            scores[row.group][number] = Score(total, len(continuation), all_greedy)


# `num_chunks` is not static, so that a batch with fewer targets needs no compilation of its own.
@partial(jax.jit, static_argnames=("model", "mesh", "chunk"))
def _target_logprobs(
    model: AnyModel, mesh: jax.sharding.Mesh, params, batch: PackedBatch, *, chunk: int, num_chunks
) -> tuple[jax.Array, jax.Array]:
    """[R, N] log probability of each target, and whether it is the most likely token.

    Only the first `num_chunks` * `chunk` of the N are computed; the others are padding.
    """
    # The leading axis of 1 micro-batch is removed.
    tokens, positions, segments, targets, hidden_index = (a[0] for a in batch)
    result: Any = model.apply({"params": params}, tokens, positions, segments)
    hidden: jax.Array = result[0]
    hidden = hidden.reshape(len(targets), -1, model.config.embed)
    hidden = jnp.take_along_axis(hidden, hidden_index[:, :, None], axis=1)

    def compute_chunk(i, results):
        start = i * chunk
        chunk_results = _chunk_logprobs(
            jax.lax.dynamic_slice_in_dim(hidden, start, chunk, axis=1),
            output_head(params),
            jax.lax.dynamic_slice_in_dim(targets, start, chunk, axis=1),
            model.config,
        )
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis=1)
            for whole, part in zip(results, chunk_results, strict=True)
        )

    empty = (
        jnp.zeros(targets.shape, jnp.promote_types(hidden.dtype, jnp.float32)),
        jnp.zeros(targets.shape, bool),
    )
    results = jax.lax.fori_loop(0, num_chunks, compute_chunk, empty)
    return jax.lax.with_sharding_constraint(results, replicated(mesh))


def _chunk_logprobs(
    hidden: jax.Array, table: jax.Array, targets: jax.Array, config: GPTConfig
) -> tuple[jax.Array, jax.Array]:
    """[R, chunk] log probabilities of `targets` [R, chunk], and whether each is the most likely.

    `hidden` [R, chunk, D] are the model's outputs at the positions that predict the targets.
    The softmax is computed online over slices of `table` [V, D] (Milakov and Gimelshein 2018).
    """
    # The largest slice that divides the table.
    size = next(s for s in range(min(VOCAB_SLICE, len(table)), 0, -1) if len(table) % s == 0)

    def add_slice(carry, vocab_slice):
        running_max, running_sum, target_logits = carry
        table_rows, first_id = vocab_slice
        rows = config.vocab_size - first_id
        logits = loss.logits(hidden, table_rows, rows, config.logit_cap)
        new_max = jnp.maximum(running_max, logits.max(-1))
        running_sum = running_sum * jnp.exp(running_max - new_max)
        running_sum += jnp.exp(logits - new_max[..., None]).sum(-1)
        # Targets outside of this slice take a clipped index, and `where` ignores their result.
        index = targets - first_id
        clipped = jnp.clip(index, 0, size - 1)[..., None]
        found = jnp.take_along_axis(logits, clipped, axis=-1)[..., 0]
        target_logits = jnp.where((index >= 0) & (index < size), found, target_logits)
        return (new_max, running_sum, target_logits), None

    zeros = jnp.zeros(targets.shape, jnp.promote_types(hidden.dtype, jnp.float32))
    slices = (table.reshape(-1, size, table.shape[-1]), jnp.arange(0, len(table), size))
    (highest, total, target_logits), _ = jax.lax.scan(
        add_slice, (zeros - jnp.inf, zeros, zeros), slices
    )
    return target_logits - highest - jnp.log(total), target_logits >= highest
