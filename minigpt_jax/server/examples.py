"""Questions that a finetuned run was trained on, so that a visitor sees what this model can answer.

They are read from the run's own data, and left out where these are not there any more.
"""

from collections.abc import Iterator

import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.mixture import identity, open_sources, shares_of
from minigpt_jax.token_stream import Stream
from minigpt_jax.tokenizer import END, END_OF_TEXT, USER, Tokenizer

NUM_EXAMPLES = 3
_MAX_CHARACTERS = 80
# Places that are tried in each part of the stream, and tokens that are read at each.
_PLACES = 20
_WINDOW = 1024


def example_questions(run: LoadedRun) -> list[str]:
    """Up to NUM_EXAMPLES first questions, short and of one line, from all over the training data.

    The same for the same run. Empty for a model that cannot chat, and where the data folder is
    missing, damaged or not what the run was trained on.
    """
    if not run.can_chat:
        return []
    try:
        data = run.meta["config"]["data"]
        shares = shares_of(data["folder"], data.get("mixture", ""))
        # A model that can chat was trained on packed conversations.
        sources = open_sources(shares, run.config.vocab_size, run.config.context, packed=True)
    # KeyError and TypeError: weights that were imported have no training config.
    except (KeyError, TypeError, InputError, OSError):
        return []
    if identity(sources) != run.meta.get("data"):
        return []
    found: list[str] = []
    for part in range(NUM_EXAMPLES):
        stream = sources[part % len(sources)].train
        questions = _short_questions(stream, part, run.tokenizer)
        found += [next((question for question in questions if question not in found), "")]
    return [question for question in found if question]


def _short_questions(stream: Stream, part: int, tokenizer: Tokenizer) -> Iterator[str]:
    """Short questions in one of the NUM_EXAMPLES parts of the stream."""
    for place in range(_PLACES):
        start = (part * _PLACES + place) * stream.length // (NUM_EXAMPLES * _PLACES)
        window = stream.read(start, min(start + _WINDOW, stream.length))
        for ids in _first_questions(window):
            text = tokenizer.decode(ids).strip()
            if text and text.isprintable() and len(text) <= _MAX_CHARACTERS:
                yield text


def _first_questions(tokens: np.ndarray) -> Iterator[list[int]]:
    """The ids of the questions that begin a conversation; the last one may be cut off: no END."""
    for marker in np.flatnonzero(tokens == USER):
        ends = np.flatnonzero(tokens[marker:] == END)
        if marker and tokens[marker - 1] == END_OF_TEXT and len(ends):
            yield tokens[marker + 1 : marker + ends[0]].tolist()
