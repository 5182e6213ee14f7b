"""Schedules must have the shape their names promise, decay must spare biases, and AdamW must be the published one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from minigpt_jax.optim import decay_mask, learning_rate, make_optimizer

RATE = partial(learning_rate, horizon=100, peak=1.0, warmup=10, floor=0.1, decay=0.2)


def rates(kind: str) -> np.ndarray:
    return np.array([float(RATE(step, kind=kind)) for step in range(100)])


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
def test_warm_up_rises_in_equal_steps_to_the_peak_and_never_starts_at_zero(kind):
    np.testing.assert_allclose(rates(kind)[:10], np.arange(1, 11) / 10, rtol=1e-6)
    assert rates(kind).max() == pytest.approx(1.0)


def test_each_kind_falls_as_its_name_says():
    middle = 55  # half way between warm-up and end
    assert rates("cosine")[middle] == pytest.approx(0.55, abs=1e-3)
    assert rates("linear")[middle] == pytest.approx(0.55, abs=1e-3)
    assert rates("cosine")[30] > rates("linear")[30]
    assert (rates("wsd")[10:80] == 1).all() and rates("wsd")[90] == pytest.approx(0.55)
    assert (rates("constant")[10:] == 1).all()
    for kind in ("cosine", "linear", "wsd"):
        assert (
            rates(kind)[-1] == pytest.approx(0.1, abs=0.06)
            and (np.diff(rates(kind)[10:]) <= 1e-7).all()
        )
        assert float(RATE(1000, kind=kind)) == pytest.approx(
            0.1
        )  # past the horizon it stays at the floor


def test_only_matrices_and_embeddings_decay():
    params = {
        "wte": jnp.ones((4, 2)),
        "wpe": jnp.ones((4, 2)),
        "layers": {
            "ln_1": {"scale": jnp.ones((3, 2)), "bias": jnp.ones((3, 2))},
            "mlp": {"up": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}},
        },
    }
    mask = decay_mask(params)
    assert mask == {
        "wte": True,
        "wpe": True,
        "layers": {
            "ln_1": {"scale": False, "bias": False},
            "mlp": {"up": {"kernel": True, "bias": False}},
        },
    }


def test_five_steps_are_those_of_adamw_as_published():
    draw = np.random.default_rng(0)
    weight, bias = draw.normal(size=(3, 2)), draw.normal(size=2)
    optimizer = make_optimizer(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0)
    params = {"kernel": jnp.array(weight), "bias": jnp.array(bias)}
    state = optimizer.init(params)
    ours, m, v = {"kernel": weight, "bias": bias}, {}, {}
    for t in range(1, 6):
        gradient = {"kernel": draw.normal(size=(3, 2)) * 3, "bias": draw.normal(size=2) * 3}
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        direction, state = optimizer.update(
            jax.tree.map(lambda g: jnp.array(g) * 7, gradient),
            state,
            params,
            scale=1 / 7,
            norm=norm,
        )
        params = optax.apply_updates(params, jax.tree.map(lambda d: -0.01 * d, direction))
        for name, decay in (("kernel", 0.1), ("bias", 0.0)):
            g = gradient[name] / max(norm, 1.0)
            m[name] = 0.9 * m.get(name, 0) + 0.1 * g
            v[name] = 0.95 * v.get(name, 0) + 0.05 * g**2
            adam = (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.95**t)) + 1e-8)
            ours[name] = ours[name] - 0.01 * (adam + decay * ours[name])
    for name in ours:
        np.testing.assert_allclose(params[name], ours[name], rtol=1e-5)
