"""Compare a model's answers before and after finetuning, in a few numbers.

Do the answers end, do they leak role markers, do they repeat themselves, and what is the loss of
the reference answers? `python -m minigpt_jax.evals answers` writes the numbers to answers.json in
the folder of the run, and the report shows them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from minigpt_jax import chat
from minigpt_jax.errors import InputError
from minigpt_jax.evals import GENERATION_BATCH
from minigpt_jax.evals.scoring import Group, Score
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.sampling import sampling_params
from minigpt_jax.sources import split_rows
from minigpt_jax.tokenizer import END, END_OF_TEXT, SPECIAL_TOKENS, Tokenizer

FILE = "answers.json"
MAX_NEW_TOKENS = 60
# Words; shorter repetitions are common in good text.
NGRAM = 4


class Pair(NamedTuple):
    """A question and its reference answer."""

    prompt: str
    completion: str


class Answer(NamedTuple):
    """A generated answer.

    `ids` are all generated tokens, special tokens included. `ended` is true if the model generated
    a stop token before it reached the maximum length.
    """

    text: str
    ids: list[int]
    ended: bool


def load(
    source: str,
    context: int,
    tokenizer: Tokenizer,
    *,
    limit: int | None = None,
    split: str = "val",
) -> tuple[list[Pair], int]:
    """The first `limit` pairs that fit into `context`, and the number skipped before as too long.

    Raises InputError that names a row that cannot be used, and where no pair fits.
    """
    pairs: list[Pair] = []
    too_long = 0
    for name, row in split_rows(source, split=split, columns=Pair._fields):
        if len(pairs) == limit:
            break
        prompt, completion = row["prompt"], row["completion"]
        if not all(isinstance(text, str) and text.strip() for text in (prompt, completion)):
            raise InputError(
                f"{name}: prompt and completion must be texts, found {prompt!r} and {completion!r}"
            )
        pair = Pair(prompt, completion)
        # The last token is predicted, but it is not an input.
        if len(conversation_tokens(pair, tokenizer)) - 1 <= context:
            pairs.append(pair)
        else:
            too_long += 1
    if not pairs:
        raise InputError(f"{source}: no row here fits into the model's context of {context} tokens")
    return pairs, too_long


def prompt_tokens(pair: Pair, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the question, up to where the answer starts."""
    return chat.prompt([{"role": "user", "content": pair.prompt}], tokenizer)


def conversation_tokens(pair: Pair, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the question and its reference answer."""
    messages: list[chat.Message] = [
        {"role": "user", "content": pair.prompt},
        {"role": "assistant", "content": pair.completion},
    ]
    return chat.render(messages, tokenizer)[0]


def generate_answers(
    run: LoadedRun,
    pairs: Sequence[Pair],
    *,
    batch: int = GENERATION_BATCH,
    dtype: jax.typing.DTypeLike | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[Answer]:
    """Greedy answers to the questions of `pairs`, `batch` at a time.

    Raises InputError for a model that was not finetuned.
    """
    if not run.can_chat:
        raise InputError(
            "this model was not finetuned: its vocabulary has no role markers, so it cannot answer"
        )
    prompts = [prompt_tokens(pair, run.tokenizer) for pair in pairs]
    size = min(batch, len(prompts))
    generator = run.generator(rows=size, dtype=dtype)
    greedy = sampling_params(size, run.config, temperature=0.0)
    answers: list[Answer] = []
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        # The last batch is filled up, so that only one shape is compiled.
        part += part[:1] * (size - len(part))
        completions = generator.complete(part, greedy, max_new_tokens=max_new_tokens)
        for prompt, ids, completion in zip(part, generator.ids, completions, strict=True):
            # Completion.tokens has no special tokens, generator.ids has them.
            ended = completion.finish_reason == "stop"
            answers.append(Answer(completion.text, ids[len(prompt) :], ended))
    return answers[: len(prompts)]


def leaks_markers(answer: Answer) -> bool:
    """Whether an answer has a special token before its end, or the name of one in its text."""
    special = [i for i in answer.ids if i >= END_OF_TEXT]
    in_text = any(name in answer.text for name in SPECIAL_TOKENS)
    return in_text or any(i not in (END, END_OF_TEXT) for i in special)


def repetition(text: str) -> float:
    """Share of the n-grams of words in `text` that occurred in it before; 0 without n-grams."""
    words = text.split()
    ngrams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def loss_per_token(
    pairs: Sequence[Pair], tokenizer: Tokenizer, score: Callable[[list[Group]], list[list[Score]]]
) -> float:
    """Mean loss per supervised token: those of the reference answers and their end tokens.

    `score` is scoring.score for one run.
    """
    groups: list[Group] = []
    for pair in pairs:
        prompt = prompt_tokens(pair, tokenizer)
        answer = conversation_tokens(pair, tokenizer)[len(prompt) :]
        groups.append((prompt, [answer]))
    scores = score(groups)
    return -sum(s.logprob for (s,) in scores) / sum(s.tokens for (s,) in scores)


def summarize(answers: Sequence[Answer]) -> dict[str, float]:
    """Shares of the answers that ended, leaked markers and are distinct; their mean repetition."""
    count = len(answers)
    return {
        "ended": sum(a.ended for a in answers) / count,
        "leaked": sum(map(leaks_markers, answers)) / count,
        "repetition": sum(repetition(a.text) for a in answers) / count,
        "distinct": len({a.text for a in answers}) / count,
    }
