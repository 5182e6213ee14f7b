"""Let lm-evaluation-harness (Gao et al. 2021), which most published numbers come from, ask our models its tasks.

The only file that knows the package `lm_eval`, an extra of this one; it brings torch, so it is imported where it is needed.
"""

import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.evals.scoring import Group, score
from minigpt_jax.generate import Generator
from minigpt_jax.model import GPTConfig
from minigpt_jax.sampling import sampling_params
from minigpt_jax.tokenizer import END_OF_TEXT, Tokenizer

GENERATED = 256  # tokens of an answer, where a task does not say: lm_eval's own number


def evaluate(
    params: dict,
    config: GPTConfig,
    tokenizer: Tokenizer,
    mesh: jax.sharding.Mesh,
    *,
    tasks: Sequence[str],
    limit: int | None = None,
    include: Path | None = None,
    batch: int,
    dtype: jax.typing.DTypeLike | None = None,
) -> tuple[dict[str, Any], str]:
    """lm_eval's results for `tasks`, and its own table of them; `include` is a folder of further tasks.

    Raises InputError where the package, a task or its data are missing.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    try:
        lm_eval: Any = import_module("lm_eval")
        known = import_module("lm_eval.tasks").TaskManager(
            include_path=str(include) if include else None
        )
        make_table = import_module("lm_eval.utils").make_table
    except ImportError as error:
        raise InputError(
            f"lm-evaluation-harness is not installed ({error}): pip install lm_eval"
        ) from None
    if unknown := [task for task in tasks if not known.match_tasks([task])]:
        raise InputError(
            f"no task {' and no '.join(unknown)} in lm_eval: `lm_eval ls tasks` lists them; --include-path names a folder of your own"
        )
    try:
        results = lm_eval.simple_evaluate(
            adapter(params, config, tokenizer, mesh, batch=batch, dtype=dtype),
            tasks=list(tasks),
            limit=limit,
            task_manager=known,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"lm_eval cannot do {', '.join(tasks)} ({first}). Most tasks fetch their data from the hub when first used"
        ) from error
    return results, make_table(results)


def adapter(
    params: dict,
    config: GPTConfig,
    tokenizer: Tokenizer,
    mesh: jax.sharding.Mesh,
    *,
    batch: int,
    dtype: jax.typing.DTypeLike | None = None,
) -> Any:
    """Our model as an `lm_eval.api.model.LM`. Every text begins with <|endoftext|>, as the documents it was trained on do."""
    base: Any = import_module("lm_eval.api.model").TemplateLM
    windows_of: Any = import_module("lm_eval.utils")
    ask = partial(score, params, config, mesh, batch=batch, dtype=dtype)

    class Adapter(base):
        """How lm_eval cuts texts into ids is its own; what the ids score is ours."""

        eot_token_id = END_OF_TEXT

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **kwargs
        ) -> list[int]:
            return tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests, **kwargs) -> list[tuple[float, bool]]:
            """(log probability, greedy) of each ((texts), context ids, continuation ids)."""
            pairs = [(begun(context), list(continuation)) for _, context, continuation in requests]
            warn_of_cuts(
                [
                    len(context) + len(continuation) - 1 - config.context
                    for context, continuation in pairs
                ]
            )
            shared = [
                (list(context), [c for _, c in group])
                for context, group in groupby(pairs, key=lambda pair: pair[0])
            ]
            found = ask(shared)
            assert found is not None, "nobody abandons it"
            return [(s.logprob, s.greedy) for scores in found for s in scores]

        def loglikelihood_rolling(
            self, requests: Sequence[Any], disable_tqdm: bool = False
        ) -> list[float]:
            """Log probability of each whole text; what is longer than the context is cut into windows, each token scored once."""
            windows: list[Group] = []
            owners = []
            for number, request in enumerate(requests):
                tokens = tokenizer.encode(request.args[0])
                for window in windows_of.get_rolling_token_windows(
                    tokens, END_OF_TEXT, config.context, 1
                ):
                    context, continuation = windows_of.make_disjoint_window(window)
                    windows.append((context, [continuation]))
                    owners.append(number)
            found, totals = ask(windows), np.zeros(len(requests))
            assert found is not None, "nobody abandons it"
            np.add.at(totals, owners, [scores[0].logprob for scores in found])
            return totals.tolist()

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            """What the model writes after each context, up to a stop string or `max_gen_toks`."""
            texts = [""] * len(requests)
            jobs = [
                (i, tokenizer.encode(r.args[0]), wishes(r.args[1])) for i, r in enumerate(requests)
            ]
            warn_of_cuts([len(ids) + 1 + room(wish) - config.context for _, ids, wish in jobs])
            jobs.sort(key=lambda job: (repr(job[2]), len(job[1])))
            for _, same in groupby(jobs, key=lambda job: repr(job[2])):
                same = list(same)
                for start in range(0, len(same), batch):
                    part = same[start : start + batch]
                    for (number, _, _), text in zip(
                        part,
                        write([job[1] for job in part], [job[0] for job in part], part[0][2]),
                        strict=True,
                    ):
                        texts[number] = text
            return texts

    def room(asked: dict[str, Any]) -> int:
        """Tokens that an answer may have: half of the context at most, since a question of no words has no answer."""
        return min(asked["tokens"], config.context // 2)

    def write(prompts: list[list[int]], seeds: list[int], asked: dict[str, Any]) -> list[str]:
        rows = [begun(prompt)[room(asked) - config.context :] for prompt in prompts]
        settings = sampling_params(len(rows), config, **asked["sampling"])._replace(
            seed=np.array(seeds, np.uint32)
        )
        writer = Generator(params, config, tokenizer, rows=len(rows), dtype=dtype)
        for _ in writer.stream(rows, settings, max_new_tokens=room(asked), stop=asked["until"]):
            pass
        return [answer.text for answer in writer.completions]

    return Adapter()


def begun(context: Sequence[int]) -> list[int]:
    """The ids of a context with the mark that begins every document, once."""
    return list(context) if context and context[0] == END_OF_TEXT else [END_OF_TEXT, *context]


def wishes(given: dict[str, Any]) -> dict[str, Any]:
    """How a task wants its text: "until" (stop strings), "tokens" and "sampling" (arguments of sampling.sampling_params).

    Greedy unless the task says `do_sample` or a temperature. Raises InputError for what this generator cannot do.
    """
    given = dict(given)
    until = given.pop("until", None) or []
    tokens = [
        given.pop(name)
        for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        if name in given
    ]
    sample = given.pop("do_sample", None)
    temperature = given.pop("temperature", 1.0 if sample else 0.0)
    settings = {"temperature": 0.0 if sample is False else float(temperature)}
    settings |= {
        name: given.pop(name)
        for name in ("top_k", "top_p", "min_p", "repetition_penalty")
        if name in given
    }
    if given:
        raise InputError(
            f"a task asks to generate with {', '.join(given)}, which this generator does not know"
        )
    return {
        "until": [until] if isinstance(until, str) else list(until),
        "tokens": int(tokens[0] if tokens else GENERATED),
        "sampling": settings,
    }


def warn_of_cuts(surplus: Sequence[int]) -> None:
    """Say how many contexts lose their beginning; `surplus` has the tokens that each is too long."""
    count = sum(tokens > 0 for tokens in surplus)
    if count:
        print(
            f"warning: {count} of {len(surplus)} contexts are longer than the model's: their beginning was cut off",
            file=sys.stderr,
        )
