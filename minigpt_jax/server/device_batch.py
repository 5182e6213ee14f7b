"""The model and its decode state for a fixed number of rows, and every shape that is compiled.

Shapes are few: a prompt is padded to a power of two, and a block of decoding reads the first 64,
128, 256, ... tokens of the cache. All are compiled by `warm_up`. Nothing in a block mixes rows, and
randomness depends on (seed, position) only. So the text of a row does not depend on its neighbours,
with one exception: a longer neighbour makes the block read more of the cache, which changes the
order of floating-point sums and may decide between two tokens that are almost equally likely.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax import decoding
from minigpt_jax.architectures import AnyModel
from minigpt_jax.decoding import DecodeState, TopLogprobs, empty_cache
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.sampling import Occurrences, SamplingParams, sampling_params
from minigpt_jax.server.request import MAX_LOGPROBS, MAX_PROMPT_LOGPROBS
from minigpt_jax.tokenizer import STOP_TOKENS

# The smallest part of the cache that a block reads.
MIN_CACHE_LENGTH = 64
_MIN_PROMPT_LENGTH = 16


class BlockPlan(NamedTuple):
    """One block of decoding."""

    # The settings of each active row.
    sampling: Mapping[int, SamplingParams]
    # The largest number of tokens to draw for a row.
    max_new_tokens: int
    # The block ends early when this many of the active rows have ended.
    stop_after: int
    # Tokens of the longest row after the block.
    max_length: int
    with_logprobs: bool


class DeviceBatch:
    """Rows that are prefilled one at a time and decoded together."""

    def __init__(
        self,
        run: LoadedRun,
        num_rows: int,
        *,
        quantize: str | None = None,
        min_cache_length: int = MIN_CACHE_LENGTH,
    ):
        """`quantize`: see `decoding.prepare_for_decoding`."""
        config = run.config
        self.num_rows = num_rows
        self._context = config.context
        self._min_cache_length = min_cache_length
        self._model, self.params = decoding.prepare_for_decoding(
            run.params, config, quantize=quantize
        )
        # The fields of DecodeState, in their order. Every row is done: none has a request.
        arrays = (
            empty_cache(config, num_rows, self._model.dtype),
            np.zeros(num_rows, np.int32),
            np.zeros(num_rows, np.int32),
            Occurrences.none(num_rows, config),
            np.ones(num_rows, bool),
        )
        sharding = jax.tree.leaves(run.params)[0].sharding
        self._state = DecodeState(*jax.device_put(arrays, sharding))
        self._idle = sampling_params(1, config, temperature=0.0)

    def warm_up(self) -> None:
        """Compile every shape.

        Twice, because JAX may compile again when the state is the output of a program instead of
        what the constructor put on the device.
        """
        for _ in range(2):
            for length in prompt_lengths(self._context):
                self.prefill(0, [0] * length)
            self.prompt_logprobs([0])
            for with_logprobs in (False, True):
                for length in cache_lengths(self._context, self._min_cache_length, with_logprobs):
                    plan = BlockPlan(
                        sampling={0: self._idle},
                        max_new_tokens=1,
                        stop_after=1,
                        max_length=length,
                        with_logprobs=with_logprobs,
                    )
                    self.decode(plan)
        jax.block_until_ready(self._state)

    def prefill(self, row: int, prompt: Sequence[int]) -> None:
        """Replace the contents of `row` with `prompt`."""
        length = next(n for n in prompt_lengths(self._context) if n >= len(prompt))
        tokens = np.zeros((1, length), np.int32)
        tokens[0, : len(prompt)] = prompt
        self._state = _prefill_slot(
            self._model, self.params, self._state, tokens, np.int32(len(prompt)), np.int32(row)
        )

    def prompt_logprobs(self, prompt: Sequence[int]) -> TopLogprobs:
        """Log-probabilities of the tokens of a prompt, and of the MAX_PROMPT_LOGPROBS likeliest.

        Changes no row. Of the results, those after the prompt mean nothing.
        """
        tokens = np.zeros(self._context, np.int32)
        tokens[: len(prompt)] = prompt
        length = np.int32(len(prompt))
        return decoding.prompt_logprobs(
            self._model, self.params, tokens, length, num_logprobs=MAX_PROMPT_LOGPROBS
        )

    def decode(self, plan: BlockPlan) -> tuple[jax.Array, TopLogprobs | None]:
        """Start one block on the device, without waiting for it.

        Returns the tokens [rows, BLOCK], with -1 after the last one of each row, and if
        `plan.with_logprobs` their log-probabilities and the MAX_LOGPROBS most likely tokens.
        """
        done = np.ones(self.num_rows, bool)
        done[list(plan.sampling)] = False
        rows = [plan.sampling.get(row, self._idle) for row in range(self.num_rows)]
        settings = SamplingParams(*map(np.concatenate, zip(*rows, strict=True)))
        lengths = cache_lengths(self._context, self._min_cache_length, plan.with_logprobs)
        cache_length = next(n for n in lengths if n >= min(plan.max_length, self._context))
        # `decoding.decode` also counts the rows without a request, which are done from the start.
        stop_after_rows = self.num_rows - len(plan.sampling) + plan.stop_after
        self._state, tokens, logprobs = decoding.decode(
            self._model,
            self.params,
            self._state._replace(done=done),
            settings,
            np.array(STOP_TOKENS),
            np.int32(plan.max_new_tokens),
            np.int32(stop_after_rows),
            num_logprobs=MAX_LOGPROBS if plan.with_logprobs else 0,
            cache_length=cache_length,
        )
        return tokens, logprobs


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _prefill_slot(model: AnyModel, params, state: DecodeState, tokens, size, row) -> DecodeState:
    """Prefill `tokens` [1, T], of which `size` are not padding, and store the result in `row`."""
    length = tokens.shape[1]
    # In a cache of its own: with the shared one, all rows would have to be computed.
    own_cache = jax.tree.map(
        lambda a: jnp.zeros((1, a.shape[1], length, a.shape[3]), a.dtype), state.cache
    )
    own_cache = decoding.prefill(model, params, own_cache, tokens, jnp.zeros(1, jnp.int32))
    # The whole row: a mask silences what an earlier request left there only if it is no NaN.
    cache = jax.tree.map(lambda shared, own: _replace_row(shared, own, row), state.cache, own_cache)
    in_prompt = jnp.asarray(state.occurrences.in_prompt)
    vocab = in_prompt.shape[1]
    # Padding gets an id beyond the vocabulary, which mode="drop" ignores.
    ids = jnp.where(jnp.arange(length) < size, tokens[0], vocab)
    own_prompt = jnp.zeros(vocab, bool).at[ids].set(True, mode="drop")
    occurrences = Occurrences(
        in_prompt.at[row].set(own_prompt), jnp.asarray(state.occurrences.drawn).at[row].set(0)
    )
    return DecodeState(
        cache,
        state.last.at[row].set(tokens[0, size - 1]),
        # The last token is in the cache too; the decode loop begins with it and writes it again.
        state.length.at[row].set(size - 1),
        occurrences,
        state.done,
    )


def _replace_row(shared: jax.Array, own: jax.Array, row) -> jax.Array:
    """`shared` [B, H, S, K] with `own` [1, H, T, K] in `row`, and zeros from T on."""
    rest = ((0, 0), (0, 0), (0, shared.shape[2] - own.shape[2]), (0, 0))
    return jax.lax.dynamic_update_slice(shared, jnp.pad(own, rest), (row, 0, 0, 0))


def prompt_lengths(context: int) -> list[int]:
    """Lengths to which prompts are padded: powers of two from 16 on, and the context."""
    return _powers_of_two(_MIN_PROMPT_LENGTH, context)


def cache_lengths(context: int, minimum: int, with_logprobs: bool) -> list[int]:
    """The possible lengths of the part of the cache that a block reads: less makes tokens cheaper.

    With log-probabilities it is always the whole cache: they are rare, and every length is one more
    program to compile.
    """
    return [context] if with_logprobs else _powers_of_two(minimum, context)


def _powers_of_two(first: int, last: int) -> list[int]:
    """`first`, doubled as long as it is below `last`; then `last`."""
    doubled = (first << i for i in itertools.count())
    return [*itertools.takewhile(lambda n: n < last, doubled), last]
