"""HellaSwag (Zellers et al. 2019): which of four endings fits a text; chance is 25%, GPT-2 124M reaches 29.5%.

An ending is scored by its mean loss per token after the context, and the smallest wins. No JAX here: train.py reads
the questions before it loads it.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.sources import split_rows
from minigpt_jax.tokenizer import END_OF_TEXT, load_tokenizer

if TYPE_CHECKING:
    from minigpt_jax.evals.scoring import Group, Score

ENDINGS = 4


class Question(NamedTuple):
    """Ids of a context, which begins with <|endoftext|> as every document does, ids of its endings, and which is right."""

    context: list[int]
    endings: list[list[int]]
    label: int


def load(source: str, context: int, limit: int | None = None) -> list[Question]:
    """The questions of a source in the hub's form (ctx, endings, label), for a model of `context` positions.

    `limit` takes so many evenly spaced ones: the file begins with one of its two kinds. Raises InputError naming the row.
    """
    questions = [
        _question(where, row, context)
        for where, row in split_rows(
            source, split="validation", columns=("ctx", "endings", "label")
        )
    ]
    if not questions:
        raise InputError(f"{source}: holds no row")
    chosen = np.linspace(
        0, len(questions) - 1, min(limit or len(questions), len(questions))
    ).astype(int)
    return [questions[i] for i in np.unique(chosen)]


def accuracy(
    questions: Sequence[Question], score: "Callable[[list[Group]], list[list[Score]] | None]"
) -> float | None:
    """Share of questions whose right ending has the smallest loss; NaN for broken weights, None where `score` gave up."""
    scored = score([(q.context, q.endings) for q in questions])
    if scored is not None and not all(math.isfinite(s.logprob) for own in scored for s in own):
        return math.nan
    return (
        None
        if scored is None
        else float(np.mean([best(s) == q.label for q, s in zip(questions, scored, strict=True)]))
    )


def best(scores: "Sequence[Score]") -> int:
    """Number of the ending with the smallest loss per token."""
    return min(range(len(scores)), key=lambda i: scores[i].loss)


def standard_error(share: float, count: int) -> float:
    """Of a share that `count` questions gave."""
    return math.sqrt(share * (1 - share) / count)


def _question(where: str, row: dict, limit: int) -> Question:
    text, endings, label = row["ctx"], row["endings"], str(row["label"])
    if not isinstance(text, str):
        raise InputError(f"{where}: ctx is {type(text).__name__}, expected a text")
    if (
        not isinstance(endings, list)
        or len(endings) != ENDINGS
        or not all(isinstance(e, str) and e.strip() for e in endings)
    ):
        raise InputError(f"{where}: endings must be {ENDINGS} texts, found {endings!r}")
    if label not in map(str, range(ENDINGS)):
        raise InputError(
            f"{where}: label {label!r} is not one of 0 to {ENDINGS - 1} (the hub's test split has none)"
        )
    encode = load_tokenizer().encode
    question = Question(
        [END_OF_TEXT, *encode(text)], [encode(" " + ending) for ending in endings], int(label)
    )
    longest = max(map(len, question.endings))
    if longest > limit:
        raise InputError(
            f"{where}: an ending of {longest} tokens is longer than the model's context of {limit}"
        )
    return question
