"""Schedules must be what their names say, biases must not decay, AdamW the published one."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from minigpt_jax.optim import decay_mask, learning_rate, make_optimizer

STEPS = 100
FLOOR = 0.1
RATE = partial(learning_rate, horizon=STEPS, peak=1.0, warmup=10, floor=FLOOR, decay=0.2)


@lru_cache
def rates(kind: str) -> np.ndarray:
    return np.array([float(RATE(step, kind=kind)) for step in range(STEPS)])


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
def test_warm_up_rises_in_equal_steps_to_the_peak_and_does_not_start_at_zero(kind):
    np.testing.assert_allclose(rates(kind)[:10], np.arange(1, 11) / 10, rtol=1e-6)
    assert rates(kind).max() == pytest.approx(1.0)


def test_cosine_and_linear_are_half_way_down_in_the_middle():
    # Half way between the end of warm-up and the end of the run.
    middle = 55
    assert rates("cosine")[middle] == pytest.approx(0.55, abs=1e-3)
    assert rates("linear")[middle] == pytest.approx(0.55, abs=1e-3)
    assert rates("cosine")[30] > rates("linear")[30]


def test_wsd_does_not_jump_where_the_warmup_reaches_into_the_fall():
    rate = partial(RATE, kind="wsd", warmup=60, decay=0.7)
    found = np.array([float(rate(step)) for step in range(STEPS)])
    assert np.abs(np.diff(found)).max() < 1 / 30
    assert 0.7 < found.max() < 0.9


def test_wsd_stays_then_falls_and_constant_stays():
    assert (rates("wsd")[10:80] == 1).all()
    assert rates("wsd")[90] == pytest.approx(0.55)
    assert (rates("constant")[10:] == 1).all()


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_rates_fall_to_the_floor_and_stay_there_after_the_end(kind):
    assert rates(kind)[-1] == pytest.approx(FLOOR, abs=0.06)
    assert (np.diff(rates(kind)[10:]) <= 1e-7).all()
    assert float(RATE(10 * STEPS, kind=kind)) == pytest.approx(FLOOR)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="unknown schedule 'step'"):
        RATE(0, kind="step")


def test_only_matrices_and_embeddings_decay():
    params = {
        "wte": jnp.ones((4, 2)),
        "wpe": jnp.ones((4, 2)),
        "layers": {
            "ln_1": {"scale": jnp.ones((3, 2)), "bias": jnp.ones((3, 2))},
            "mlp": {"up": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}},
        },
    }
    assert decay_mask(params) == {
        "wte": True,
        "wpe": True,
        "layers": {
            "ln_1": {"scale": False, "bias": False},
            "mlp": {"up": {"kernel": True, "bias": False}},
        },
    }


def test_five_steps_are_those_of_adamw_as_published():
    draw = np.random.default_rng(0)
    expected = {"kernel": draw.normal(size=(3, 2)), "bias": draw.normal(size=2)}
    decays = {"kernel": 0.1, "bias": 0.0}
    m = dict.fromkeys(expected, 0.0)
    v = dict.fromkeys(expected, 0.0)
    optimizer = make_optimizer(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0)
    params = jax.tree.map(jnp.array, expected)
    state = optimizer.init(params)
    for t in range(1, 6):
        gradient = {name: draw.normal(size=w.shape) * 3 for name, w in expected.items()}
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        # Sums of seven gradients, and the factor that makes means of them.
        sums = jax.tree.map(lambda g: jnp.array(g) * 7, gradient)
        direction, state = optimizer.update(sums, state, params, scale=1 / 7, norm=norm)
        params = optax.apply_updates(params, jax.tree.map(lambda d: -0.01 * d, direction))
        for name, decay in decays.items():
            g = gradient[name] / max(norm, 1.0)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            adam = (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.95**t)) + 1e-8)
            expected[name] = expected[name] - 0.01 * (adam + decay * expected[name])
    for name in expected:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-5)
