"""A continuation has the probability that a plain forward pass over its row gives, in any batch."""

import json
import random
import subprocess
import sys
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.errors import EvaluationStopped, InputError
from minigpt_jax.evals import packing, scoring
from minigpt_jax.evals.packing import Group, pack_rows, truncate_context
from minigpt_jax.evals.scoring import Score, score
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model import GPT
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.sharding import AXES, make_mesh, replicated
from minigpt_jax.tokenizer import load_tokenizer
from tests.evals.plain import next_token_logprobs
from tests.harness import ENVIRONMENT, ROOT
from tests.models import weights

CONFIG = GPTConfig(vocab_size=300, context=48, layers=2, heads=2, embed=32)


def make_run(mesh: jax.sharding.Mesh, scale: float = 4.0) -> LoadedRun:
    """Fresh weights on `mesh`, enlarged so that tokens differ in probability."""
    fresh = nn.unbox(GPT(CONFIG).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    params = jax.tree.map(lambda a: a * scale, fresh)
    return LoadedRun(jax.device_put(params, replicated(mesh)), CONFIG, load_tokenizer())


def make_groups() -> list[Group]:
    """Contexts of one token up to longer than the model's, with one, three or four continuations.

    The continuations have one token up to as many as fit. All rows have one of two lengths, so
    that few programs are compiled.
    """
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(CONFIG.vocab_size) for _ in range(count)]

    groups: list[Group] = []
    for _ in range(12):
        lengths = draw.sample((1, 6, 9, 18), k=4)
        groups.append((ids(draw.randint(1, 30)), [ids(length) for length in lengths]))
    groups += [(ids(length), [ids(4)]) for length in (44, 45, 46, 60)]
    groups.append((ids(1), [ids(40)]))
    groups.append((ids(40), [ids(3), ids(48), ids(9)]))
    return groups


def plain_score(run: LoadedRun, context: list[int], continuation: list[int]) -> Score:
    """The score by one forward pass with all logits."""
    row = [*context, *continuation][-(CONFIG.context + 1) :]
    logprobs = next_token_logprobs(run, row[:-1])[-len(continuation) :]
    chosen = logprobs[np.arange(len(continuation)), continuation]
    greedy = (logprobs.argmax(-1) == continuation).all()
    return Score(float(chosen.sum()), len(continuation), bool(greedy))


def score_on(mesh: jax.sharding.Mesh, groups: list[Group], **options) -> list[list[Score]]:
    return score(make_run(mesh), mesh, groups, **options)


def one_device() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)


def assert_same(found: list[list[Score]], expected: list[list[Score]]) -> None:
    assert [len(group) for group in found] == [len(group) for group in expected]
    for found_group, expected_group in zip(found, expected, strict=True):
        for a, b in zip(found_group, expected_group, strict=True):
            assert (a.tokens, a.greedy) == (b.tokens, b.greedy)
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


@pytest.fixture(scope="module")
def run() -> LoadedRun:
    return make_run(one_device())


@pytest.fixture(scope="module")
def expected(run) -> list[list[Score]]:
    return [
        [plain_score(run, list(context), list(c)) for c in continuations]
        for context, continuations in make_groups()
    ]


@pytest.mark.parametrize(
    ("sizes", "batch"), [((4, 1, 1), 64), ((4, 1, 1), 4), ((2, 1, 2), 8), ((1, 4, 1), 8)]
)
def test_scores_are_those_of_a_plain_forward_pass_on_any_mesh_in_any_batch(expected, sizes, batch):
    assert_same(score_on(make_mesh(*sizes), make_groups(), batch=batch), expected)


def test_slices_of_the_vocabulary_and_short_rows_change_nothing(expected, monkeypatch):
    """Three slices of the vocabulary instead of one, and rows that hold only part of a group."""
    long_rows = list(pack_rows(make_groups(), CONFIG.context))
    monkeypatch.setattr(scoring, "VOCAB_SLICE", 128)
    monkeypatch.setattr(packing, "MAX_ROW_LENGTH", CONFIG.context)
    assert len(list(pack_rows(make_groups(), CONFIG.context))) > len(long_rows)
    # A batch size that no other test has: the constants are read when a program is compiled.
    assert_same(score_on(one_device(), make_groups(), batch=3), expected)


def test_scores_of_nanochat_are_those_of_a_plain_forward_pass(monkeypatch):
    """With three slices of its own head, and logits so large that their cap counts."""
    monkeypatch.setattr(scoring, "VOCAB_SLICE", 128)
    mesh = make_mesh(2, 1, 2)
    config = replace(CONFIG, architecture="nanochat")
    params = weights(config)
    params |= {"lm_head": params["lm_head"] * 20}
    run = LoadedRun(jax.device_put(params, replicated(mesh)), config, load_tokenizer())
    groups = make_groups()[:6]
    expected = [[plain_score(run, c, ending) for ending in endings] for c, endings in groups]
    assert_same(score(run, mesh, groups, batch=8), expected)


def test_the_order_of_groups_does_not_matter(expected):
    groups = make_groups()
    order = list(range(len(groups)))
    random.Random(1).shuffle(order)
    shuffled = score_on(make_mesh(), [groups[i] for i in order], batch=64)
    assert_same(shuffled, [expected[i] for i in order])


def test_one_group_and_no_group_are_scored(expected):
    assert_same(score_on(make_mesh(), make_groups()[:1], batch=64), expected[:1])
    assert score_on(make_mesh(), []) == []


@pytest.mark.campaign
def test_one_device_agrees_with_four(expected):
    # The other tests here use four.
    assert jax.device_count() == 4
    code = """
import json, tests.evals.test_scoring as t
print(json.dumps([t.jax.device_count(), t.score_on(t.make_mesh(), t.make_groups())]))
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
    assert_same([[Score(*score) for score in group] for group in found], expected)


def test_greedy_is_true_for_what_greedy_decoding_generates(run):
    text = [5]
    for _ in range(6):
        text.append(int(next_token_logprobs(run, text)[-1].argmax()))
    other = [*text[1:-1], (text[-1] + 1) % CONFIG.vocab_size]
    ((greedy, not_greedy),) = score_on(one_device(), [([5], [text[1:], other])])
    assert greedy.greedy and not not_greedy.greedy
    assert greedy.loss == pytest.approx(-greedy.logprob / 6)
    assert greedy.loss < not_greedy.loss


def test_a_context_is_truncated_only_as_far_as_needed():
    # The last token is predicted, but it is not an input.
    assert truncate_context([1, 2, 3], [4, 5], 4) == [1, 2, 3]
    assert truncate_context([1, 2, 3], [4, 5], 3) == [2, 3]
    assert truncate_context([1, 2, 3], [4, 5], 2) == [3]


@pytest.mark.parametrize("group", [([], [[1]]), ([1], []), ([1], [[2], []]), ([1], [[2] * 49])])
def test_what_cannot_be_scored_is_refused(group):
    with pytest.raises(InputError, match="token"):
        score_on(one_device(), [([1], [[1]]), group])


def test_a_requested_stop_ends_the_evaluation():
    with pytest.raises(EvaluationStopped):
        score_on(one_device(), make_groups(), stop_requested=lambda: True)
