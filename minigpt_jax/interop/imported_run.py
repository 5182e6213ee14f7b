"""Write weights from elsewhere as a run, so that everything that reads runs can read them."""

from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp

from minigpt_jax.checkpoint import Checkpoints
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.step import TrainState


def write_run(run: Path, config: GPTConfig, params: dict, source: str) -> None:
    """Write a run with one checkpoint, of step 0 and without an optimizer.

    `source` says where the weights came from, for the model card.
    """
    params = jax.tree.map(jnp.asarray, params)
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=())
    meta = {
        "model": asdict(config),
        "config": {},
        "data": f"imported from {source}",
        "validation_loss": None,
    }
    with Checkpoints(run, keep=1) as checkpoints:
        checkpoints.save(state, 0, meta)
        checkpoints.close()
