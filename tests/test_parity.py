"""GPT-2 is what transformers computes, to the last digits; and a model that is wrong in one place does not pass for it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest

import minigpt_jax
from minigpt_jax.loss import logits
from minigpt_jax.model import GPT, GPTConfig
from tests.parity import CHECKS, load_golden, problems


class Mutant(NamedTuple):
    """One replacement in one file of the package, and the check that must see it."""

    what: str
    file: str
    old: str
    new: str
    check: str
    times: int = 1  # that `old` stands in the file


PRE_NORM = """\
        normal = LayerNorm(self.dtype, name="ln_1")(x)
        y, cache = Attention(self.config, self.dtype, self.attention, name="attention")(normal, positions, segments, cache)
        x = x + dropout(y)
        y = MLP(self.config, self.dtype, name="mlp")(LayerNorm(self.dtype, name="ln_2")(x))
        x = nn.with_logical_constraint(x + dropout(y), ("batch", None, None))
"""
POST_NORM = """\
        y, cache = Attention(self.config, self.dtype, self.attention, name="attention")(x, positions, segments, cache)
        x = LayerNorm(self.dtype, name="ln_1")(x + dropout(y))
        y = MLP(self.config, self.dtype, name="mlp")(x)
        x = LayerNorm(self.dtype, name="ln_2")(x + dropout(y))
"""
SUMS = (
    "return _loss_sum(vocab_size, chunk, hidden, table, targets, weights), weights.sum(dtype=wide)"
)
MEANS = "return _loss_sum(vocab_size, chunk, hidden, table, targets, weights) / weights.sum(), jnp.ones((), wide)"
MUTANTS = [
    Mutant("erf GELU", "model", "approximate=True", "approximate=False", "outputs"),
    Mutant("epsilon of LayerNorm", "model", "EPSILON = 1e-5", "EPSILON = 1e-6", "outputs"),
    Mutant("no 1 / sqrt(K)", "model", " / math.sqrt(q.shape[-1])", "", "outputs"),
    Mutant("post-LayerNorm", "model", PRE_NORM, POST_NORM, "outputs"),
    Mutant(
        "no last LayerNorm",
        "model",
        'return LayerNorm(self.dtype, name="ln_f")(x), cache',
        "return x, cache",
        "outputs",
    ),
    Mutant(
        "no bias",
        "model",
        "return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)",
        "return y",
        "outputs",
    ),
    Mutant(
        "positions from 1",
        "model",
        "jnp.arange(tokens.shape[1])",
        "jnp.arange(1, tokens.shape[1] + 1)",
        "outputs",
    ),
    Mutant("sees its successor", "model", "end, start, dtype", "end, start + 1, dtype", "outputs"),
    Mutant(
        "sees its successor on a CPU",
        "cpu",
        "end, start, dtype",
        "end, start + 1, dtype",
        "outputs",
    ),
    Mutant(
        "gradient past the softmax on a CPU",
        "cpu",
        "(weights * (d_weights - share[:, start:]))",
        "(weights * d_weights)",
        "gradients",
    ),
    Mutant(
        "mean over all tokens",
        "loss",
        SUMS,
        SUMS.replace("weights", "jnp.ones_like(weights)"),
        "outputs",
    ),
    Mutant("gradient of all tokens", "loss", "- hit) * w[..., None])", "- hit))", "gradients"),
    Mutant("mean of means", "loss", SUMS, MEANS, "accumulation"),
    Mutant(
        "head apart",
        "step",
        'cross_entropy(hidden, params["wte"]',
        'cross_entropy(hidden, jax.lax.stop_gradient(params["wte"])',
        "training",
    ),
    Mutant(
        "everything decays", "optim", "weight_decay, mask=decay_mask", "weight_decay", "training"
    ),
    Mutant("b2 of Adam", "optim", "b2: float = 0.95", "b2: float = 0.999", "training"),
    Mutant("warm-up from 0", "optim", "peak * (step + 1)", "peak * step", "schedule"),
    Mutant(
        "no smaller start of residuals",
        "model",
        "std = INIT_STD / math.sqrt(2 * c.layers)",
        "std = INIT_STD",
        "start",
        times=2,
    ),
]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder from which a package "copied" can be imported, and will be forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "copied"]:
        del sys.modules[name]


def copy(place: Path, mutant: Mutant | None = None) -> str:
    """Our package under another name, wrong where the mutant says."""
    root = Path(minigpt_jax.__file__).parent
    for path in root.rglob("*.py"):
        text = path.read_text()
        if mutant and path == root / f"{mutant.file}.py":
            assert text.count(mutant.old) == mutant.times, (
                f"{path.name} has changed: say anew what would be wrong there ({mutant.what})"
            )
            text = text.replace(mutant.old, mutant.new)
        copied = place / "copied" / path.relative_to(root)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(text.replace("minigpt_jax", "copied"))
    return "copied"


def test_logits_loss_gradients_and_ten_steps_are_those_of_transformers():
    assert list(problems()) == []


def test_a_copy_passes_where_nothing_is_wrong(place):
    checks = [
        name for name in CHECKS if name != "accumulation"
    ]  # the dearest to compile; it passes for the original
    assert list(problems(copy(place), checks=checks)) == []
    assert "copied.step" in sys.modules


def test_every_check_is_one_that_can_fail():
    assert {mutant.check for mutant in MUTANTS} == set(CHECKS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_wrong_model_does_not_pass(place, mutant):
    assert next(problems(copy(place, mutant), checks=[mutant.check]), None)


def test_the_golden_file_is_what_transformers_computes():
    pytest.importorskip("torch", exc_type=ImportError)
    from tests.golden.make import outcomes

    golden = load_golden()
    for name, array in outcomes(golden).items():
        np.testing.assert_allclose(array, golden[name], rtol=0, atol=1e-10, err_msg=name)


def test_other_weights_and_another_shape_are_those_of_transformers_too():
    pytest.importorskip("torch", exc_type=ImportError)
    from tests.golden.make import inputs, outcomes

    golden = inputs(seed=1, layers=3, heads=4, embed=32, vocab=300, context=16)
    assert list(problems(golden=golden | outcomes(golden), checks=["outputs", "gradients"])) == []


def test_fresh_gpt2_small_in_float32_gives_the_logits_of_transformers():
    torch = pytest.importorskip("torch", exc_type=ImportError)
    from benchmarks.transformers_gpt2 import gpt2_with_weights

    config = GPTConfig()
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, 24))
    params = nn.unbox(jax.jit(GPT(config).init)(jax.random.key(0), ids)["params"])
    ours = jax.jit(
        lambda p: logits(GPT(config).apply({"params": p}, ids)[0], p["wte"], config.vocab_size)
    )(params)
    with torch.no_grad():
        theirs = gpt2_with_weights(config, params).eval()(torch.tensor(ids)).logits
    np.testing.assert_allclose(ours[..., : config.vocab_size], theirs.numpy(), rtol=0, atol=2e-5)
