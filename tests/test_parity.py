"""GPT-2 is what transformers computes; a model that is wrong in one place must not pass.

tests/mutants.py lists the wrong models, tests/parity.py makes the comparison.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

import minigpt_jax
from minigpt_jax.loss import logits
from minigpt_jax.model import GPT
from minigpt_jax.model_config import GPTConfig
from tests.mutants import MUTANTS, Mutant
from tests.parity import CHECKS, load_golden, problems

COPY = "copied"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder from which the package COPY can be imported, until the test ends."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == COPY]:
        del sys.modules[name]


def copy_package(place: Path, mutant: Mutant | None = None) -> None:
    """Write our package to `place` under the name COPY, with the mutant's mistake."""
    root = Path(minigpt_jax.__file__).parent
    for path in root.rglob("*.py"):
        text = path.read_text()
        if mutant and path == root / f"{mutant.file}.py":
            assert text.count(mutant.old) == mutant.times, (
                f"{path.name} has changed: update the mutant {mutant.what!r} in tests/mutants.py"
            )
            text = text.replace(mutant.old, mutant.new)
        copied = place / COPY / path.relative_to(root)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(text.replace("minigpt_jax", COPY))


def test_logits_loss_gradients_and_ten_steps_are_those_of_transformers():
    assert list(problems()) == []


def test_a_correct_copy_passes(place):
    copy_package(place)
    # Accumulation takes longest to compile, and training shows that the copy's step works.
    checks = [name for name in CHECKS if name != "accumulation"]
    assert list(problems(COPY, checks=checks)) == []
    assert f"{COPY}.step" in sys.modules


def test_every_check_can_fail():
    assert {mutant.check for mutant in MUTANTS} == set(CHECKS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_wrong_model_does_not_pass(place, mutant):
    copy_package(place, mutant)
    assert next(problems(COPY, checks=[mutant.check]), None)


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
    golden |= outcomes(golden)
    checks = [name for name in CHECKS if name.startswith(("outputs", "gradients"))]
    assert list(problems(golden=golden, checks=checks)) == []


def test_fresh_gpt2_small_in_float32_gives_the_logits_of_transformers():
    torch = pytest.importorskip("torch", exc_type=ImportError)
    from benchmarks.transformers_gpt2 import gpt2_with_weights

    config = GPTConfig()
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, 24))
    params = nn.unbox(jax.jit(GPT(config).init)(jax.random.key(0), ids)["params"])

    @jax.jit
    def compute_logits(p):
        hidden = GPT(config).apply({"params": p}, ids)[0]
        return logits(hidden, p["wte"], config.vocab_size)

    ours = compute_logits(params)[..., : config.vocab_size]
    with torch.no_grad():
        theirs = gpt2_with_weights(config, params).eval()(torch.tensor(ids)).logits
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=2e-5)
