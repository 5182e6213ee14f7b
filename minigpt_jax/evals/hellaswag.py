"""HellaSwag (Zellers et al. 2019): which of four endings fits a text. Chance is 25%, GPT-2 29.5%.

An ending is scored by its mean loss per token after the context, and the smallest loss wins. This
file does not import JAX: train.py reads the questions before it loads JAX.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.sources import split_rows
from minigpt_jax.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from minigpt_jax.evals.scoring import Group, Score

ENDINGS = 4


class Question(NamedTuple):
    """Token ids of a context and of its endings. `label` is the number of the right ending.

    The context begins with <|endoftext|>, as every document does.
    """

    context: list[int]
    endings: list[list[int]]
    label: int


def load(source: str, context: int, limit: int | None = None) -> list[Question]:
    """Questions in the hub's format (ctx, endings, label), for a model of `context` positions.

    With `limit`, only that many questions, evenly spaced: the file lists all questions of one kind
    before those of the other. Raises InputError that names the row.
    """
    columns = ("ctx", "endings", "label")
    questions = [
        parse_question(name, row, context)
        for name, row in split_rows(source, split="validation", columns=columns)
    ]
    if not questions:
        raise InputError(f"{source}: found no row, expected at least one")
    count = min(limit or len(questions), len(questions))
    chosen = np.linspace(0, len(questions) - 1, count).astype(int)
    return [questions[i] for i in np.unique(chosen)]


def accuracy(
    questions: Sequence[Question], score: "Callable[[list[Group]], list[list[Score]]]"
) -> float:
    """Share of questions whose right ending has the smallest loss; NaN if a score is not finite.

    `score` is scoring.score for one run. Raises what `score` raises, such as EvaluationStopped.
    """
    scores = score([(question.context, question.endings) for question in questions])
    if not all(math.isfinite(s.logprob) for endings in scores for s in endings):
        return math.nan
    correct = [
        predicted_ending(endings) == question.label
        for question, endings in zip(questions, scores, strict=True)
    ]
    return float(np.mean(correct))


def predicted_ending(scores: "Sequence[Score]") -> int:
    """Number of the ending with the smallest loss per token."""
    return min(range(len(scores)), key=lambda i: scores[i].loss)


def standard_error(share: float, count: int) -> float:
    """Standard error of a share that was measured on `count` questions."""
    return math.sqrt(share * (1 - share) / count)


def parse_question(name: str, row: dict, max_length: int) -> Question:
    """The question in `row`. Raises InputError that begins with `name`, the name of the row."""
    text = row["ctx"]
    endings = row["endings"]
    # A text in the hub's files; a number is accepted too.
    label = str(row["label"])
    if not isinstance(text, str):
        raise InputError(f"{name}: ctx is {type(text).__name__}, expected a text")
    if not _are_endings(endings):
        raise InputError(f"{name}: endings must be {ENDINGS} texts, found {endings!r}")
    if label not in map(str, range(ENDINGS)):
        raise InputError(
            f"{name}: label {label!r} is not one of 0 to {ENDINGS - 1} "
            "(the hub's test split has no labels: use the validation split)"
        )
    tokenizer = load_tokenizer()
    question = Question(
        context=tokenizer.encode_document(text),
        # In GPT-2's vocabulary the space before a word is part of its token.
        endings=[tokenizer.encode(" " + ending) for ending in endings],
        label=int(label),
    )
    longest = max(map(len, question.endings))
    if longest > max_length:
        raise InputError(
            f"{name}: an ending of {longest} tokens is longer than the model's context "
            f"of {max_length}"
        )
    return question


def _are_endings(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == ENDINGS
        and all(isinstance(ending, str) and ending.strip() for ending in value)
    )
