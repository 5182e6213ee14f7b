"""GPT-2 and NanoChat are what transformers computes; a model that is wrong must not pass.

tests/mutants.py lists the wrong models, tests/parity.py makes the comparison.
"""

import math
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minigpt_jax
from minigpt_jax.architectures import make_model
from minigpt_jax.interop.nanochat import to_nanochat, to_nanochat_config
from minigpt_jax.loss import logits
from minigpt_jax.model import GPT
from minigpt_jax.model_config import GPTConfig
from tests.mutants import MUTANTS, Mutant
from tests.parity import CHECKS, GPT2_CHECKS, NANOCHAT_CHECKS, load_golden, problems

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


@pytest.mark.campaign
def test_a_correct_copy_passes(place):
    copy_package(place)
    # Accumulation takes longest to compile, and training shows that the copy's step works.
    checks = [name for name in CHECKS if name != "accumulation"]
    assert list(problems(COPY, checks=checks)) == []
    assert f"{COPY}.step" in sys.modules


def test_every_check_can_fail():
    assert {mutant.check for mutant in MUTANTS} == set(CHECKS)


# Every day one of each check.
DAILY = {mutant.check: mutant for mutant in reversed(MUTANTS)}.values()


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(m, id=m.what, marks=[] if m in DAILY else pytest.mark.campaign) for m in MUTANTS],
)
def test_a_wrong_model_does_not_pass(place, mutant):
    copy_package(place, mutant)
    assert next(problems(COPY, checks=[mutant.check]), None)


@pytest.mark.parametrize("model", ["gpt2", "nanochat"])
def test_the_golden_file_is_what_transformers_computes(model):
    golden = load_golden(model)
    for name, array in maker(model).outcomes(golden).items():
        np.testing.assert_allclose(array, golden[name], rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    ("model", "checks"), [("gpt2", GPT2_CHECKS), ("nanochat", NANOCHAT_CHECKS)]
)
def test_other_weights_and_another_shape_are_those_of_transformers_too(model, checks):
    make = maker(model)
    golden = make.inputs(seed=1, layers=3, heads=4, embed=32, vocab=300, context=16)
    golden |= make.outcomes(golden)
    names = [name for name in checks if "outputs" in name or "gradients" in name]
    assert len(names) == 4
    assert list(problems(golden=golden, checks=names)) == []


def maker(model: str) -> ModuleType:
    """The module that makes the golden file of a model. Skips the test where it cannot run."""
    pytest.importorskip("torch", exc_type=ImportError)
    pytest.importorskip("transformers", minversion=None if model == "gpt2" else "5")
    return import_module("tests.golden.make" if model == "gpt2" else "tests.golden.make_nanochat")


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


def test_nanochat_in_float32_gives_the_logits_of_transformers():
    """Unlike the golden file, with transformers' own RMSNorm, rotary angles and softmax."""
    torch = pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers", minversion="5")
    config = GPTConfig(context=64, layers=4, heads=2, embed=256, architecture="nanochat")
    draw = np.random.default_rng(0)
    ids = draw.integers(0, config.vocab_size, (2, 64))
    model = make_model(config)
    fresh = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), ids)["params"])

    # A fresh model has zeros where it must not.
    def random(shape):
        return jnp.asarray(draw.normal(size=shape.shape) / math.sqrt(config.embed), jnp.float32)

    params = jax.tree.map(random, fresh)

    @jax.jit
    def compute_logits(p):
        hidden = model.apply({"params": p}, ids)[0]
        return logits(hidden, p["lm_head"], config.vocab_size, config.logit_cap)

    ours = compute_logits(params)[..., : config.vocab_size]
    theirs = transformers.NanoChatForCausalLM(
        transformers.NanoChatConfig(**to_nanochat_config(config))
    ).eval()
    tensors = {name: torch.tensor(t) for name, t in to_nanochat(params, config).items()}
    theirs.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    assert expected.std() > 0.5
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5)
