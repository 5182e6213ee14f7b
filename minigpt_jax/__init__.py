"""miniGPT-JAX: train a GPT from raw web text to a chat assistant, in JAX.

Read train.py first: it shows the order of things. Then read what it calls, in this order:

    text to batches     tokenizer, chat, token_stream, data
    batches to weights  model, attention, loss, optim, step, sharding
    weights to disk     checkpoint
    weights to text     sampling, decoding, text_stream, generate
"""

# Nothing is imported here: this runs before the first statement of every command, which handles
# Ctrl-C.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from minigpt_jax.loaded_run import LoadedRun

__version__ = "0.1.0"


def load_run(path: "str | Path") -> "LoadedRun":
    """The newest checkpoint of the run in folder `path` that passes its checks.

    The weights are on the first device. Raises InputError where there is no usable checkpoint.
    """
    # Imported here, so that the data tools, which need no JAX, start without it.
    from pathlib import Path

    from minigpt_jax import loaded_run

    return loaded_run.load_run(Path(path))
