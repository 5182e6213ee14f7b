"""The sums of loss and gradient over all micro-batches and devices.

Every device sums the gradients of its own rows in f32 (of the rounded products of a matmul, as one
device does too). Only sums cross between devices: once a step, or with `scatter_each` once a
micro-batch. With fsdp the weights are gathered once a step, in the dtype of the matmuls (ZeRO,
Rajbhandari et al. 2020, gathers them for every layer instead: less memory, more traffic).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike

from minigpt_jax.data import Batch
from minigpt_jax.optim import decay_mask
from minigpt_jax.sharding import (
    BATCH_AXES,
    automatic_axes,
    automatic_rules,
    batch_axes,
    fsdp_dimension,
    gather,
    manual_spec,
    scatter,
    split_all_axes,
    sum_over_rows,
)

# A function of (params, tokens [B, N], weights [B, T], rows [B], key) to the sums of losses and of
# weights. `rows` are the numbers of its rows in the whole batch.
LossSums = Callable[[dict, Array, Array, Array, Array], tuple[Array, Array]]


@jax.named_scope("gradients")
def sum_gradients(
    loss_sums: LossSums,
    params: dict,
    batch: Batch,
    key: Array,
    *,
    mesh: Mesh,
    specs: Any,
    dtype: DTypeLike,
    scatter_each: bool = False,
) -> tuple[Array, Array, dict]:
    """Loss sum, weight sum, and gradient of the loss sum, over all micro-batches and devices.

    `specs`: the PartitionSpec of each of `params`. `dtype`: of the matmuls. `scatter_each`: with
    fsdp, every device keeps only its part of the gradient after each micro-batch, which needs less
    memory and more traffic than once a step.
    """
    micro_batches, rows, _ = batch.tokens.shape
    numbers = jnp.arange(micro_batches * rows).reshape(micro_batches, rows)
    numbered = (*batch, numbers)
    axes = batch_axes(mesh)
    if not axes:
        return _sum_over_micro_batches(loss_sums, params, numbered, key)
    dimensions = jax.tree.map(lambda spec: fsdp_dimension(spec, mesh), specs)
    # Weight decay and the dtype of the matmuls concern the same parameters: matrices.
    dtypes = jax.tree.map(lambda m, p: dtype if m else p.dtype, decay_mask(params), params)

    parts = partial(split_all_axes, specs=specs, mesh=mesh)

    @parts
    def gathered(params):
        return jax.tree.map(gather, params, dimensions, dtypes)

    @parts
    def scattered(gradients):
        return jax.tree.map(scatter, gradients, dimensions)

    @parts
    def summed(gradients):
        return jax.tree.map(partial(sum_over_rows, mesh=mesh), gradients, dimensions)

    def of_device(params, numbered, key):
        finish = scattered if scatter_each else _unchanged
        with nn.logical_axis_rules(automatic_rules(mesh)):
            total, weight, gradients = _sum_over_micro_batches(
                loss_sums, gathered(params), numbered, key, finish
            )
        if not scatter_each:
            gradients = scattered(gradients)
        gradients = summed(gradients)
        return jax.lax.psum(total, axes), jax.lax.psum(weight, axes), gradients

    own_specs = jax.tree.map(manual_spec, specs)
    split_rows = PartitionSpec(None, BATCH_AXES)
    everywhere = PartitionSpec()
    return jax.shard_map(
        of_device,
        mesh=mesh,
        # One for all arrays of the batch.
        in_specs=(own_specs, split_rows, everywhere),
        out_specs=(everywhere, everywhere, own_specs),
        axis_names=set(mesh.axis_names) - automatic_axes(mesh),
        check_vma=False,
    )(params, numbered, key)


def _unchanged(gradients: dict) -> dict:
    return gradients


def _sum_over_micro_batches(loss_sums, params, numbered, key, finish=_unchanged):
    """`sum_gradients` of the rows of one device, from whole `params`.

    `numbered`: tokens, weights and numbers of the rows. `finish` is applied to the gradients of
    every micro-batch.
    """
    loss_and_gradients = jax.value_and_grad(loss_sums, has_aux=True)

    def of_micro_batch(tokens, weights, rows):
        (total, weight), gradients = loss_and_gradients(params, tokens, weights, rows, key)
        return total, weight, finish(gradients)

    first = [array[0] for array in numbered]
    # Without a second gradient to add, the sum and its memory are not needed.
    if len(numbered[0]) == 1:
        return of_micro_batch(*first)

    def add(sums, micro_batch):
        return jax.tree.map(jnp.add, sums, of_micro_batch(*micro_batch)), None

    shapes = jax.eval_shape(of_micro_batch, *first)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return jax.lax.scan(add, zeros, numbered)[0]
