"""What finetuning did to a model, in numbers: do its answers end, leak marks or repeat themselves, and what do they cost it.

python -m minigpt_jax.evals answers writes them to answers.json in the run's folder, and report.py shows them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from minigpt_jax import chat
from minigpt_jax.errors import InputError
from minigpt_jax.evals.scoring import Group, Score
from minigpt_jax.generate import Generator
from minigpt_jax.model import GPTConfig
from minigpt_jax.sampling import sampling_params
from minigpt_jax.sources import split_rows
from minigpt_jax.tokenizer import CHAT_VOCAB, END, END_OF_TEXT, SPECIAL_TOKENS, Tokenizer

FILE = "answers.json"
BATCH = 64  # answers written at once
TOKENS = 60  # of an answer, at most
GRAM = 4  # words; shorter repetitions are common in good text


class Pair(NamedTuple):
    """A question and the answer that was hoped for."""

    prompt: str
    completion: str


class Written(NamedTuple):
    """An answer: its text, all ids behind it, and whether it ended by itself."""

    text: str
    ids: list[int]
    ended: bool


def load(
    source: str, context: int, tokenizer: Tokenizer, limit: int | None = None
) -> tuple[list[Pair], int]:
    """The first `limit` pairs of a source of prompts and completions that fit into `context`, and how many before did not.

    Raises InputError naming the row that cannot be used, and where nothing fits.
    """
    pairs, too_long = [], 0
    for where, row in split_rows(source, split="val", columns=Pair._fields):
        if len(pairs) == limit:
            break
        if not all(isinstance(row[name], str) and row[name].strip() for name in Pair._fields):
            raise InputError(
                f"{where}: prompt and completion must be texts, found {row['prompt']!r} and {row['completion']!r}"
            )
        pair = Pair(row["prompt"], row["completion"])
        if len(whole(pair, tokenizer)) - 1 <= context:
            pairs.append(pair)
        else:
            too_long += 1
    if not pairs:
        raise InputError(f"{source}: no row here fits into the model's context of {context} tokens")
    return pairs, too_long


def question(pair: Pair, tokenizer: Tokenizer) -> list[int]:
    """The ids after which the model answers."""
    return chat.prompt([{"role": "user", "content": pair.prompt}], tokenizer)


def whole(pair: Pair, tokenizer: Tokenizer) -> list[int]:
    """The ids of question and answer."""
    return chat.render(
        [
            {"role": "user", "content": pair.prompt},
            {"role": "assistant", "content": pair.completion},
        ],
        tokenizer,
    )[0]


def write(
    params: dict,
    config: GPTConfig,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    *,
    batch: int = BATCH,
    dtype: jax.typing.DTypeLike | None = None,
    tokens: int = TOKENS,
) -> list[Written]:
    """The greedy answers of a model to the questions of `pairs`, `batch` at once. Raises InputError for a model that knows no roles."""
    if config.vocab_size < CHAT_VOCAB:
        raise InputError(
            "this model was not finetuned: its vocabulary has no role markers, so it cannot answer"
        )
    prompts, written = [question(pair, tokenizer) for pair in pairs], []
    rows = min(batch, len(prompts))
    writer = Generator(params, config, tokenizer, rows=rows, dtype=dtype)
    for start in range(0, len(prompts), rows):
        part = prompts[start : start + rows]
        part += part[:1] * (rows - len(part))  # one shape to compile
        for _ in writer.stream(
            part, sampling_params(rows, config, temperature=0.0), max_new_tokens=tokens
        ):
            pass
        behind = [
            ids[len(prompt) :] for ids, prompt in zip(writer.ids, part, strict=True)
        ]  # an Answer keeps no marks
        written += [
            Written(answer.text, ids, answer.reason == "stop")
            for answer, ids in zip(writer.completions, behind, strict=True)
        ]
    return written[: len(prompts)]


def leaks(answer: Written) -> bool:
    """Whether structure shows in an answer: the name of a mark in its text, or a mark before its end."""
    marks = [i for i in answer.ids if i >= END_OF_TEXT]
    return any(name in answer.text for name in SPECIAL_TOKENS) or any(
        i not in (END, END_OF_TEXT) for i in marks
    )


def repetition(text: str) -> float:
    """Share of the runs of GRAM words in `text` that it had before; 0 where there is none."""
    words = text.split()
    grams = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def loss_per_token(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    score: Callable[[list[Group]], list[list[Score]] | None],
) -> float | None:
    """Mean loss over the tokens of the hoped-for answers and the marks that end them; None where `score` gave up."""
    groups: list[Group] = []
    for pair in pairs:
        prompt = question(pair, tokenizer)
        groups.append((prompt, [whole(pair, tokenizer)[len(prompt) :]]))
    scores = score(groups)
    return (
        None
        if scores is None
        else -sum(s.logprob for (s,) in scores) / sum(s.tokens for (s,) in scores)
    )


def summary(answers: Sequence[Written]) -> dict[str, float]:
    """Shares of `answers` that end by themselves and leak marks, distinct texts per answer, and their mean repetition."""
    count = len(answers)
    return {
        "ended": sum(a.ended for a in answers) / count,
        "leaked": sum(map(leaks, answers)) / count,
        "repetition": sum(repetition(a.text) for a in answers) / count,
        "distinct": len({a.text for a in answers}) / count,
    }
