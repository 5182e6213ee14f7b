"""Run tasks of lm-evaluation-harness (Gao et al. 2021), which most published numbers come from.

This is the only file that imports `lm_eval`, an optional package. It brings torch, so it is
imported inside the functions that need it.
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from minigpt_jax.errors import InputError, first_line
from minigpt_jax.evals.scoring import Group, Score, score
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.sampling import sampling_params
from minigpt_jax.tokenizer import END_OF_TEXT

# Tokens of a generated text if the task does not set a limit; lm_eval's own default.
DEFAULT_MAX_NEW_TOKENS = 256
# The names that lm_eval accepts for this limit, the most common one first.
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING_NAMES = ("top_k", "top_p", "min_p", "repetition_penalty")


class GenerationSettings(NamedTuple):
    """How a task wants its texts generated. `sampling`: arguments of `sampling_params`."""

    stop: list[str]
    max_new_tokens: int
    sampling: dict[str, Any]


class GenerationRequest(NamedTuple):
    """A text to continue. `number` is its place among the requests, and its seed."""

    number: int
    prompt: list[int]
    settings: GenerationSettings


def evaluate(
    run: LoadedRun,
    mesh: jax.sharding.Mesh,
    *,
    tasks: Sequence[str],
    batch: int,
    limit: int | None = None,
    include: Path | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> tuple[dict[str, Any], str]:
    """lm_eval's results for `tasks`, and its own table of them.

    `limit` is the number of rows per task, `include` a folder with more tasks. Raises InputError
    where the package, a task or its data are missing.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    try:
        lm_eval: Any = import_module("lm_eval")
        task_manager_class = import_module("lm_eval.tasks").TaskManager
        make_table = import_module("lm_eval.utils").make_table
        task_manager = task_manager_class(include_path=str(include) if include else None)
    except ImportError as error:
        raise InputError(
            f"lm-evaluation-harness is not installed ({error}): pip install lm_eval"
        ) from None
    if unknown := [task for task in tasks if not task_manager.match_tasks([task])]:
        raise InputError(
            f"no task {' and no '.join(unknown)} in lm_eval: `lm_eval ls tasks` lists them, "
            "--include-path names a folder of your own"
        )
    try:
        results = lm_eval.simple_evaluate(
            make_adapter(run, mesh, batch=batch, dtype=dtype),
            tasks=list(tasks),
            limit=limit,
            task_manager=task_manager,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            raise
        raise InputError(
            f"lm_eval cannot evaluate {', '.join(tasks)} ({first_line(error)}). "
            "Most tasks fetch their data from the hub when they are first used"
        ) from error
    return results, make_table(results)


def make_adapter(
    run: LoadedRun,
    mesh: jax.sharding.Mesh,
    *,
    batch: int,
    dtype: jax.typing.DTypeLike | None = None,
) -> Any:
    """`run` as an `lm_eval.api.model.LM`. `batch`: rows at a time."""
    base: Any = import_module("lm_eval.api.model").TemplateLM

    class Adapter(Requests, base):
        """The base class encodes texts and calls the methods of Requests."""

    return Adapter(run, mesh, batch=batch, dtype=dtype)


class Requests:
    """Answers to lm_eval's three kinds of requests. The names of the methods are lm_eval's.

    Every text begins with <|endoftext|>, as the training documents do.
    """

    eot_token_id = END_OF_TEXT

    def __init__(
        self,
        run: LoadedRun,
        mesh: jax.sharding.Mesh,
        *,
        batch: int,
        dtype: jax.typing.DTypeLike | None,
    ):
        super().__init__()
        self.run = run
        self.mesh = mesh
        self.rows = batch
        self.dtype = dtype

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs
    ) -> list[int]:
        """Token ids of `string`, without special tokens."""
        return self.run.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests, **kwargs) -> list[tuple[float, bool]]:
        """(log probability, greedy) of each (texts, context ids, continuation ids)."""
        pairs = [(with_bos(context), list(ids)) for _, context, ids in requests]
        max_length = self.run.config.context
        warn_about_truncation([len(context) + len(ids) - 1 - max_length for context, ids in pairs])
        groups: list[Group] = [
            (context, [ids for _, ids in group])
            for context, group in groupby(pairs, key=lambda pair: pair[0])
        ]
        return [(s.logprob, s.greedy) for scores in self._score(groups) for s in scores]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log probability of each whole text.

        A text longer than the context is cut into windows that score each token once.
        """
        windowing: Any = import_module("lm_eval.utils")
        groups: list[Group] = []
        # The number of the request that each window belongs to.
        owners: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.run.tokenizer.encode(request.args[0])
            for window in windowing.get_rolling_token_windows(
                tokens, END_OF_TEXT, self.run.config.context, 1
            ):
                context, continuation = windowing.make_disjoint_window(window)
                groups.append((context, [continuation]))
                owners.append(number)
        totals = np.zeros(len(requests))
        np.add.at(totals, owners, [scores[0].logprob for scores in self._score(groups)])
        return totals.tolist()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to a stop string or `max_gen_toks`."""
        encode = self.run.tokenizer.encode
        pending = [
            GenerationRequest(i, encode(request.args[0]), generation_settings(request.args[1]))
            for i, request in enumerate(requests)
        ]
        warn_about_truncation(
            [
                len(r.prompt) + 1 + self._max_new_tokens(r.settings) - self.run.config.context
                for r in pending
            ]
        )
        # Requests with the same settings share a batch, and those of similar length stand together.
        pending.sort(key=lambda r: (repr(r.settings), len(r.prompt)))
        texts = [""] * len(requests)
        for _, same_settings in groupby(pending, key=lambda r: repr(r.settings)):
            same_settings = list(same_settings)
            for start in range(0, len(same_settings), self.rows):
                part = same_settings[start : start + self.rows]
                for request, text in zip(part, self._generate(part), strict=True):
                    texts[request.number] = text
        return texts

    def _score(self, groups: list[Group]) -> list[list[Score]]:
        return score(self.run, self.mesh, groups, batch=self.rows, dtype=self.dtype)

    def _max_new_tokens(self, settings: GenerationSettings) -> int:
        """The limit for a text: half of the context at most, so that a prompt remains."""
        return min(settings.max_new_tokens, self.run.config.context // 2)

    def _generate(self, requests: Sequence[GenerationRequest]) -> list[str]:
        """The texts of requests with the same settings."""
        settings = requests[0].settings
        max_new_tokens = self._max_new_tokens(settings)
        config = self.run.config
        # Truncated from the left, so that the new tokens fit into the context.
        prompts = [with_bos(r.prompt)[max_new_tokens - config.context :] for r in requests]
        params = sampling_params(len(prompts), config, **settings.sampling)
        seeds = np.array([r.number for r in requests], np.uint32)
        completions = self.run.generator(rows=len(prompts), dtype=self.dtype).complete(
            prompts,
            params._replace(seed=seeds),
            max_new_tokens=max_new_tokens,
            stop=settings.stop,
        )
        return [completion.text for completion in completions]


def with_bos(context: Sequence[int]) -> list[int]:
    """The ids of a context with <|endoftext|> at its beginning, once."""
    return list(context) if context and context[0] == END_OF_TEXT else [END_OF_TEXT, *context]


def generation_settings(kwargs: dict[str, Any]) -> GenerationSettings:
    """The settings in a task's `generation_kwargs`: greedy unless they ask for sampling.

    Raises InputError for an argument that our generator does not have.
    """
    remaining = dict(kwargs)
    stop = remaining.pop("until", None) or []
    lengths = [remaining.pop(name) for name in LENGTH_NAMES if name in remaining]
    do_sample = remaining.pop("do_sample", None)
    temperature = remaining.pop("temperature", 1.0 if do_sample else 0.0)
    sampling = {"temperature": 0.0 if do_sample is False else float(temperature)}
    sampling |= {name: remaining.pop(name) for name in SAMPLING_NAMES if name in remaining}
    if remaining:
        raise InputError(
            f"a task sets {', '.join(remaining)} for generation, which our generator does not have"
        )
    return GenerationSettings(
        stop=[stop] if isinstance(stop, str) else list(stop),
        max_new_tokens=int(lengths[0] if lengths else DEFAULT_MAX_NEW_TOKENS),
        sampling=sampling,
    )


def warn_about_truncation(excess: Sequence[int]) -> None:
    """Print how many contexts are truncated; `excess` has the tokens that each is too long."""
    count = sum(tokens > 0 for tokens in excess)
    if count:
        print(
            f"warning: {count} of {len(excess)} contexts are longer than the model's context: "
            "they are truncated from the left",
            file=sys.stderr,
        )
