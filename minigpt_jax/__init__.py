"""miniGPT-JAX: train a GPT from raw web text to a chat assistant, in JAX.

Read in this order: train.py (the story), then what it calls as it calls it: tokenizer, chat,
token_stream, data (text to batches); model, attention, loss, optim, step (batches to weights);
sharding (where arrays lie); checkpoint (weights to disk); sampling, generate (weights to text).
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minigpt_jax.loaded_run import LoadedRun

__version__ = "0.1.0"


def load_run(path: str | Path) -> "LoadedRun":
    """The newest checkpoint of the run in folder `path` that verifies, on the first device.

    Raises InputError where there is none.
    """
    # Imported here so that the data tools, which need no JAX, start without loading it.
    from minigpt_jax.loaded_run import load_run

    return load_run(Path(path))
