"""miniGPT-JAX: train a GPT from raw web text to a chat assistant, in JAX.

Read in this order: train.py (the story), then what it calls as it calls it: tokenizer, chat, shards, data (text to
batches); model, loss, optim, step (batches to weights); mesh (where arrays lie); checkpoint (weights to disk);
generate (weights to text).
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from minigpt_jax.model import GPTConfig
    from minigpt_jax.tokenizer import Tokenizer

__version__ = "0.1.0"


class LoadedRun(NamedTuple):
    """A trained model: weights, what they are, and the tokenizer they were trained with."""

    params: dict
    config: "GPTConfig"
    tokenizer: "Tokenizer"


def load_run(path: str | Path) -> LoadedRun:
    """The newest checkpoint of the run in folder `path` that verifies, on the first device.

    Raises InputError where there is none.
    """
    # Imported here, so that the data tools, which need no JAX, do not wait for it.
    from minigpt_jax.checkpoint import load_params
    from minigpt_jax.tokenizer import load_tokenizer

    params, config, _ = load_params(Path(path))
    return LoadedRun(params, config, load_tokenizer())
