"""Muon must be the published one for each matrix of each layer, on any mesh."""

import re
from collections import Counter
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from minigpt_jax.architectures import make_model
from minigpt_jax.model_config import ARCHITECTURES, GPTConfig
from minigpt_jax.muon import newton_schulz, orthogonalize_matrices
from minigpt_jax.optim import make_optimizer, weight_groups
from minigpt_jax.sharding import AXIS_RULES, make_mesh, state_sharding

MOMENTUM = 0.9
DECAY = 0.1
CLIP = 1.0
RATES = {"embedding_lr_scale": 28.0, "head_lr_scale": 0.16, "vector_lr_scale": 0.6}
SETTINGS = {"momentum": MOMENTUM, "weight_decay": DECAY, "clip": CLIP} | RATES
MUON = make_optimizer(kind="muon", dtype=jnp.float64, **SETTINGS)
STEPS = 3
# Each step's sums are those of so many rows.
ROWS = 7
# Neither the 3 layers nor their 9 matrices of queries, keys and values divide by four devices.
CONFIG = GPTConfig(vocab_size=100, context=8, layers=3, heads=4, embed=16, architecture="nanochat")
MESHES = {"data": (4, 1, 1), "fsdp": (1, 4, 1), "fsdp and tensor": (1, 2, 2)}


def boxed_params(config: GPTConfig) -> dict:
    """Shapes of the weights in Flax's boxes, with the names of their dimensions."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(lambda: make_model(config).init(jax.random.key(0), tokens))["params"]


def random_like(params: dict, seed: int) -> dict:
    """Float64 numbers in the shape of `params`; each array has another size of its numbers."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: draw.normal(size=a.shape) * 10.0 ** draw.integers(-3, 1), nn.unbox(params)
    )


def orthogonalized(matrix: np.ndarray) -> np.ndarray:
    """Jordan's iteration as his code states it, through the singular values: U f(S) V^T."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    s = s / (np.sqrt((s**2).sum()) + 1e-8)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    inputs, outputs = matrix.shape
    return (u * s) @ v * np.sqrt(max(1, outputs / inputs))


def each_matrix(name: str, kernel: np.ndarray, function) -> np.ndarray:
    """`function` of every matrix [inputs, outputs] in the stacked `kernel` of a linear layer."""
    result = np.empty_like(kernel)
    for layer in range(len(kernel)):
        if name == "qkv":  # [D, 3, H, K]
            for part in range(3):
                matrix = kernel[layer, :, part].reshape(kernel.shape[1], -1)
                result[layer, :, part] = function(matrix).reshape(kernel[layer, :, part].shape)
        else:  # [H, K, D], [D, F] or [F, D]
            matrix = kernel[layer].reshape(-1, kernel.shape[-1])
            result[layer] = function(matrix).reshape(kernel[layer].shape)
    return result


def gradient(step: int) -> dict:
    return random_like(boxed_params(CONFIG), seed=10 + step)


@pytest.fixture(scope="module")
def expected() -> list[dict]:
    """The directions of STEPS steps, by numpy. Kernels are "layers/.../kernel", tables by name."""
    params = flat(random_like(boxed_params(CONFIG), seed=1))
    trace, m, v = ({path: np.zeros_like(w) for path, w in params.items()} for _ in range(3))
    found = []
    for t in range(STEPS):
        gradients = flat(gradient(t))
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        directions = {}
        for path, g in gradients.items():
            g = g * min(1, CLIP / norm)
            if path.endswith("kernel"):
                trace[path] = g + MOMENTUM * trace[path]
                direction = g + MOMENTUM * trace[path]
                name = path.split("/")[-2]
                directions[path] = each_matrix(name, direction, orthogonalized)
                directions[path] += DECAY * params[path]
                continue
            m[path] = 0.9 * m[path] + 0.1 * g
            v[path] = 0.95 * v[path] + 0.05 * g**2
            adam = (m[path] / (1 - 0.9 ** (t + 1))) / (
                np.sqrt(v[path] / (1 - 0.95 ** (t + 1))) + 1e-8
            )
            rate = "head_lr_scale" if path == "lm_head" else "embedding_lr_scale"
            directions[path] = RATES[rate] * adam
        found.append(directions)
        params = {path: w - 0.02 * directions[path] for path, w in params.items()}
    return found


def flat(tree: dict) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def directions_on(mesh: jax.sharding.Mesh) -> list[dict]:
    """The directions of STEPS steps in float64, with weights and state split over `mesh`."""
    boxed = boxed_params(CONFIG)
    shardings = state_sharding(boxed, mesh)
    state_shardings = state_sharding(jax.eval_shape(MUON.init, boxed), mesh)
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
    params = jax.device_put(random_like(boxed, seed=1), shardings)
    gradients = [jax.device_put(gradient(t), shardings) for t in range(STEPS)]
    found = []
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(AXIS_RULES)):
        state = jax.jit(MUON.init, out_shardings=state_shardings)(params)

        @partial(jax.jit, out_shardings=(shardings, state_shardings))
        def update(gradients, state, params, norm):
            sums = jax.tree.map(lambda g: g * ROWS, gradients)
            return MUON.update(sums, state, params, scale=1 / ROWS, norm=norm, specs=specs)

        for g in gradients:
            directions, state = update(g, state, params, jax.jit(optax.tree.norm)(g))
            params = jax.tree.map(lambda p, d: p - 0.02 * d, params, directions)
            found.append(flat(directions))
    return found


@pytest.mark.parametrize("sizes", [None, *MESHES.values()], ids=["one device", *MESHES])
def test_the_updates_are_those_of_numpy_on_any_mesh(expected, sizes):
    with jax.enable_x64(True):
        mesh = make_mesh(*(sizes or ()), devices=None if sizes else jax.devices()[:1])
        found = directions_on(mesh)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for path, direction in theirs.items():
            assert ours[path].dtype == np.float64
            np.testing.assert_allclose(ours[path], direction, rtol=0, atol=1e-10, err_msg=path)


@pytest.mark.parametrize(
    ("mesh", "collectives"), [("data", {"all-gather": 1}), ("fsdp", {"all-to-all": 2})]
)
def test_a_matrix_crosses_between_devices_once_each_way(mesh: str, collectives: dict):
    """Copies need no exchange before the work, parts are exchanged for whole matrices and back."""
    devices = make_mesh(*MESHES[mesh])
    boxed = {"layers": {"mlp": {"up": boxed_params(CONFIG)["layers"]["mlp"]["up"]}}}
    shardings = state_sharding(boxed, devices)
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
    transform = orthogonalize_matrices(jnp.float32)
    with jax.set_mesh(devices):
        update = jax.jit(
            lambda g: transform.update(g, optax.EmptyState(), specs=specs)[0],
            in_shardings=(shardings,),
            out_shardings=shardings,
        )
        text = update.lower(nn.unbox(boxed)).compile().as_text()
    found = Counter(
        re.findall(
            r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(",
            text,
        )
    )
    assert found == collectives


def test_matrices_are_those_of_optax():
    """In float32, with optax's own momentum switched off: its Nesterov step is another one."""
    dimensions = {
        "qkv": optax.contrib.MuonDimensionNumbers(1, (3, 4)),
        "out": optax.contrib.MuonDimensionNumbers((1, 2), 3),
        "up": optax.contrib.MuonDimensionNumbers(1, 2),
        "down": optax.contrib.MuonDimensionNumbers(1, 2),
    }
    params = random_like(boxed_params(CONFIG), seed=2)["layers"]
    kernels = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    axes = jax.tree_util.tree_map_with_path(lambda path, _: dimensions[path[-2].key], kernels)
    theirs = optax.contrib.muon(-1.0, beta=0.0, muon_weight_dimension_numbers=axes)
    ours = orthogonalize_matrices(jnp.float32)
    expected = jax.jit(lambda g: theirs.update(g, theirs.init(g), g)[0])(kernels)
    found = jax.jit(lambda g: ours.update(g, ours.init(g))[0])(kernels)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), found, expected)


@pytest.mark.parametrize("shape", [(2, 4, 12), (2, 12, 4), (1, 6, 6)])
def test_singular_values_come_close_to_one(shape):
    draw = np.random.default_rng(0)
    matrices = jnp.asarray(draw.normal(size=shape), jnp.float32)
    found = newton_schulz(matrices, jnp.float32)
    values = np.linalg.svd(np.asarray(found), compute_uv=False)
    assert values.min() > 0.3 and values.max() < 1.3
    # A factor, however small, changes nothing.
    np.testing.assert_allclose(newton_schulz(matrices * 1e-3, jnp.float32), found, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_gradients_give_zero(dtype):
    zeros = {"up": {"kernel": jnp.zeros((2, 4, 8))}}
    found, _ = orthogonalize_matrices(dtype).update(zeros, optax.EmptyState())
    assert found["up"]["kernel"].dtype == jnp.float32
    assert not found["up"]["kernel"].any()


def test_every_weight_is_in_its_group():
    groups = {
        architecture: flat(
            weight_groups(
                nn.unbox(
                    boxed_params(GPTConfig(layers=1, heads=1, embed=2, architecture=architecture))
                )
            )
        )
        for architecture in ARCHITECTURES
    }
    kernels = {
        f"layers/{part}/kernel": "matrix"
        for part in ("attention/qkv", "attention/out", "mlp/up", "mlp/down")
    }
    assert groups["nanochat"] == kernels | {"wte": "embedding", "lm_head": "head"}
    vectors = {path.replace("kernel", "bias"): "vector" for path in kernels}
    norms = ("layers/ln_1", "layers/ln_2", "ln_f")
    vectors |= {f"{norm}/{name}": "vector" for norm in norms for name in ("scale", "bias")}
    assert groups["gpt2"] == kernels | vectors | {"wte": "embedding", "wpe": "embedding"}


def test_only_matrices_decay_and_the_rates_of_the_groups_multiply():
    config = GPTConfig(vocab_size=20, context=4, layers=1, heads=1, embed=4)
    params = jax.tree.map(lambda a: jnp.ones(a.shape), nn.unbox(boxed_params(config)))
    zeros = jax.tree.map(jnp.zeros_like, params)

    muon = make_optimizer(kind="muon", **SETTINGS)

    @jax.jit
    def directions(gradients: dict) -> dict[str, jax.Array]:
        return flat(muon.update(gradients, muon.init(params), params, scale=1.0, norm=1.0)[0])

    decayed = directions(zeros)
    for path, direction in decayed.items():
        np.testing.assert_allclose(direction, DECAY if path.endswith("kernel") else 0.0)
    # Adam's first direction is the sign of the gradient.
    moved = directions(params)
    for path in ("wte", "wpe"):
        np.testing.assert_allclose(moved[path], RATES["embedding_lr_scale"], rtol=1e-5)
    for path in ("ln_f/scale", "layers/mlp/up/bias"):
        np.testing.assert_allclose(moved[path], RATES["vector_lr_scale"], rtol=1e-5)


def test_a_state_has_a_sharding_for_each_of_its_arrays_and_none_for_masked_weights():
    boxed = boxed_params(CONFIG)
    state = jax.eval_shape(MUON.init, boxed)
    mesh = make_mesh(1, 2, 2)
    shardings = state_sharding(state, mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(nn.unbox(state))
    of_params = flat(jax.tree.map(lambda s: str(s.spec), state_sharding(boxed, mesh)))
    arrays = 0
    for path, sharding in jax.tree_util.tree_leaves_with_path(shardings):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        own = next((p for p in of_params if "/".join(names).endswith(p)), None)
        if own:
            arrays += 1
            assert str(sharding.spec) == of_params[own]
    # Adam's two moments of both tables, and the momentum of the four kernels.
    assert arrays == 2 * 2 + 4
