"""The training step that benchmarks measure: optimizer and schedule of configs/pretrain.py."""

from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from configs.pretrain import get_config
from minigpt_jax import optim
from minigpt_jax.architectures import AnyModel
from minigpt_jax.sharding import AXES, batch_sharding
from minigpt_jax.step import Batch, MeshFunction, make_train_step
from minigpt_jax.tokenizer import END_OF_TEXT

# Of the schedule; only that the learning rate is not zero matters.
HORIZON = 10_000


def training_step(
    model: AnyModel,
    mesh: jax.sharding.Mesh,
    *,
    loss_chunk: int,
    isolate_documents: bool = False,
    optimizer_kind: str = "adamw",
) -> tuple[optax.GradientTransformationExtraArgs, MeshFunction]:
    """Optimizer and step for `model` on `mesh`."""
    c: Any = get_config()
    c.optimizer.kind = optimizer_kind
    optimizer = optim.make_optimizer(**c.optimizer, dtype=model.dtype)
    schedule = partial(optim.learning_rate, horizon=HORIZON, **c.schedule)
    separator = END_OF_TEXT if isolate_documents else None
    step = make_train_step(
        model, optimizer, schedule, mesh, seed=0, loss_chunk=loss_chunk, separator=separator
    )
    return optimizer, step


def one_device() -> jax.sharding.Mesh:
    """A mesh of the first device."""
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)


def random_tokens(rows: int, length: int) -> np.ndarray:
    """[rows, length] random ids of text, the same each time."""
    return np.random.default_rng(0).integers(0, END_OF_TEXT, (rows, length))


def random_batch(accumulation: int, rows: int, context: int, mesh: jax.sharding.Mesh) -> Batch:
    """A batch of `accumulation` micro-batches of random tokens, all of them with loss weight."""
    tokens = random_tokens(accumulation * rows, context + 1).astype(np.uint16)
    tokens = tokens.reshape(accumulation, rows, context + 1)
    weights = np.ones((accumulation, rows, context), np.uint8)
    return jax.device_put(Batch(tokens, weights), batch_sharding(mesh))
