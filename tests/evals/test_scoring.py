"""A continuation has the probability that a plain forward pass over its whole row gives it, whoever shares its batch."""

import json
import random
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax import loss
from minigpt_jax.errors import EvaluationStopped, InputError
from minigpt_jax.evals import scoring
from minigpt_jax.evals.scoring import Group, Score, cut, score
from minigpt_jax.model import GPT, GPTConfig
from minigpt_jax.sharding import AXES, make_mesh, replicated
from tests.harness import ENVIRONMENT, ROOT

CONFIG = GPTConfig(vocab_size=300, context=48, layers=2, heads=2, embed=32)


def weights(scale: float = 4.0) -> dict:
    """Fresh weights, enlarged so that words differ in probability."""
    fresh = nn.unbox(GPT(CONFIG).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    return jax.tree.map(lambda a: a * scale, fresh)


def some_groups() -> list[Group]:
    """Contexts of one token up to longer than the model's, with one or four continuations of one token up to as many as fit."""
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(CONFIG.vocab_size) for _ in range(count)]

    groups: list[Group] = [
        (ids(draw.randint(1, 30)), [ids(draw.randint(1, 18)) for _ in range(4)]) for _ in range(12)
    ]
    groups += [(ids(n), [ids(4)]) for n in (1, 44, 45, 46, 60)]
    return [*groups, (ids(40), [ids(3), ids(48), ids(9)])]


@partial(jax.jit, static_argnums=0)
def all_logprobs(model: GPT, params, rows):
    hidden, _ = model.apply({"params": params}, rows)  # pyright: ignore
    return jax.nn.log_softmax(loss.logits(hidden, params["wte"], model.config.vocab_size))


def plainly(params: dict, context: list[int], continuation: list[int]) -> Score:
    """One row, one forward pass, all logits."""
    row = [*context, *continuation][-(CONFIG.context + 1) :]
    padded = np.zeros((1, CONFIG.context), np.int32)
    padded[0, : len(row) - 1] = row[:-1]
    logprobs = np.asarray(all_logprobs(GPT(CONFIG), params, padded))[
        0, len(row) - 1 - len(continuation) : len(row) - 1
    ]
    chosen = logprobs[np.arange(len(continuation)), continuation]
    return Score(
        float(chosen.sum()), len(continuation), bool((logprobs.argmax(-1) == continuation).all())
    )


def scored(params: dict, groups: list[Group], mesh: jax.sharding.Mesh, **how) -> list[list[Score]]:
    found = score(jax.device_put(params, replicated(mesh)), CONFIG, mesh, groups, **how)
    assert found is not None
    return found


def assert_same(found: list[list[Score]], expected: list[list[Score]]) -> None:
    for own, other in zip(found, expected, strict=True):
        for a, b in zip(own, other, strict=True):
            assert (a.tokens, a.greedy) == (b.tokens, b.greedy)
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


@pytest.fixture(scope="module")
def params() -> dict:
    return weights()


@pytest.fixture(scope="module")
def expected(params) -> list[list[Score]]:
    return [
        [plainly(params, list(context), list(c)) for c in continuations]
        for context, continuations in some_groups()
    ]


@pytest.mark.parametrize(
    ("sizes", "batch"), [((4, 1, 1), 64), ((4, 1, 1), 4), ((2, 1, 2), 8), ((1, 4, 1), 8)]
)
def test_scores_are_those_of_a_plain_forward_pass_on_any_mesh_in_any_batch(
    params, expected, sizes, batch
):
    assert_same(scored(params, some_groups(), make_mesh(*sizes), batch=batch), expected)


def test_the_vocabulary_in_slices_is_the_vocabulary(params, expected, monkeypatch):
    """Three slices instead of one; and rows as short as the model's context, of which most groups need several."""
    monkeypatch.setattr(scoring, "SLICE", 128)
    monkeypatch.setattr(scoring, "WIDTH", CONFIG.context)
    assert max(row.first for row in scoring._rows(some_groups(), CONFIG.context)) > 0
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    assert_same(scored(params, some_groups(), mesh, batch=3), expected)


def test_order_does_not_matter_and_nothing_else_is_needed(params, expected):
    groups, order = some_groups(), list(range(len(expected)))
    random.Random(1).shuffle(order)
    assert_same(
        scored(params, [groups[i] for i in order], make_mesh()), [expected[i] for i in order]
    )
    assert_same(scored(params, groups[:1], make_mesh()), expected[:1])
    assert scored(params, [], make_mesh()) == []


def test_one_device_agrees_with_four(expected):
    assert jax.device_count() == 4  # what all other tests here use
    code = """
import json, tests.evals.test_scoring as t
found = t.scored(t.weights(), t.some_groups(), t.make_mesh())
print(json.dumps([t.jax.device_count(), found]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    devices, found = json.loads(done.stdout)
    assert devices == 1
    assert_same([[Score(*s) for s in own] for own in found], expected)


def test_greedy_says_what_greedy_decoding_would_write(params):
    text = [5]
    for _ in range(6):
        padded = np.zeros((1, CONFIG.context), np.int32)
        padded[0, : len(text)] = text
        text.append(
            int(np.asarray(all_logprobs(GPT(CONFIG), params, padded))[0, len(text) - 1].argmax())
        )
    other = [*text[1:-1], (text[-1] + 1) % CONFIG.vocab_size]
    (found,) = scored(params, [([5], [text[1:], other])], make_mesh())
    assert [s.greedy for s in found] == [True, False]
    assert found[0].loss == pytest.approx(-found[0].logprob / 6) and found[0].loss < found[1].loss


def test_a_context_is_cut_from_the_left_only_as_far_as_needed():
    assert cut([1, 2, 3], [4, 5], 4) == [1, 2, 3]  # the last token is predicted, not seen
    assert cut([1, 2, 3], [4, 5], 3) == [2, 3]
    assert cut([1, 2, 3], [4, 5], 2) == [3]


@pytest.mark.parametrize("group", [([], [[1]]), ([1], []), ([1], [[2], []]), ([1], [[2] * 49])])
def test_what_cannot_be_scored_is_refused(params, group):
    with pytest.raises(InputError, match="token"):
        score(params, CONFIG, make_mesh(), [([1], [[1]]), group])


def test_scoring_stops_on_request(params):
    with pytest.raises(EvaluationStopped):
        score(params, CONFIG, make_mesh(), some_groups(), stop_requested=lambda: True)
