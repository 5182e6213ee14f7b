"""Is this GPT-2, and is this NanoChat? Compares a package with transformers and PyTorch.

    python -m tests.parity

Models, losses, gradients and GPT-2's training step. Prints each difference and the largest allowed
one. The package is an argument, so that
test_parity.py can pass wrong ones.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.golden.layout import Golden, architecture, from_transformers

MODULES = ("attention", "architectures", "model_config", "loss", "optim", "step", "sharding")
# The tables of a model, whose rows are padded.
TABLES = ("wte", "lm_head")
# The golden rows of 12 tokens take three blocks of attention, as long rows take more than one.
BLOCK = 5
LOSS_CHUNK = 5


class Difference(NamedTuple):
    """How far one number, or the farthest of an array, is from what it should be."""

    what: str
    found: float
    allowed: float

    @property
    def is_wrong(self) -> bool:
        """NaN is wrong too."""
        return not self.found <= self.allowed


def load_golden(name: str = "gpt2") -> dict[str, np.ndarray]:
    """The arrays in tests/golden/NAME.npz."""
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as file:
        return dict(file)


def problems(package: str = "minigpt_jax", **kwargs) -> Iterator[str]:
    """A line for each difference that is too large.

    A generator: the next check is computed only when the next line is needed.
    """
    for d in differences(package, **kwargs):
        if d.is_wrong:
            yield f"{d.what}: differs by {d.found:.2e}, allowed {d.allowed:.0e}"


def differences(
    package: str = "minigpt_jax",
    *,
    golden: Golden | None = None,
    checks: Sequence[str] = (),
) -> Iterator[Difference]:
    """The differences between `package` and `golden` (default: the golden files).

    `checks`: names in CHECKS, by default all.
    """
    modules = SimpleNamespace(**{name: import_module(f"{package}.{name}") for name in MODULES})
    for name in checks or CHECKS:
        with jax.enable_x64(True), patch.object(modules.attention, "MIN_BLOCK", BLOCK):
            # As a list, because a generator would leave float64 enabled while its caller runs.
            file = "nanochat" if name in NANOCHAT_CHECKS else "gpt2"
            found = list(CHECKS[name](modules, load_golden(file) if golden is None else golden))
        yield from found


def outputs(modules, golden: Golden, *, attention: str) -> Iterator[Difference]:
    """Logits and masked loss of the first batch, without a gradient."""
    tokens = golden["tokens"][0].astype(np.int32)
    vocab = int(golden["vocab"])

    @jax.jit
    def compute(params):
        model = build(modules, golden, attention)
        hidden = model.apply({"params": params}, tokens[:, :-1])[0]
        head = modules.architectures.output_head(params)
        logits = modules.loss.logits(hidden, head, vocab, model.config.logit_cap)
        return mean_loss(modules, golden, params, hidden, model.config.logit_cap), logits

    loss, logits = compute(model_params(golden))
    yield Difference("logits", farthest(logits[..., :vocab], golden["logits"]), 1e-12)
    padding_is_masked = np.isneginf(logits[..., vocab:]).all()
    yield Difference("logits of padded rows", float(not padding_is_masked), 0)
    yield Difference("loss", farthest(loss, golden["loss"]), 1e-12)


def gradients(modules, golden: Golden, *, attention: str) -> Iterator[Difference]:
    """Loss and all gradients of the first batch, each relative to its largest number."""
    tokens = golden["tokens"][0].astype(np.int32)

    def loss(params):
        model = build(modules, golden, attention)
        hidden = model.apply({"params": params}, tokens[:, :-1])[0]
        return mean_loss(modules, golden, params, hidden, model.config.logit_cap)

    value, found = jax.jit(jax.value_and_grad(loss))(model_params(golden))
    yield Difference("loss with its gradient", farthest(value, golden["loss"]), 1e-12)
    for name, ours, theirs in pairs(found, golden, "gradient"):
        relative = farthest(ours, theirs) / float(np.abs(theirs).max())
        yield Difference(f"gradient of {name}", relative, 1e-11)


def training(modules, golden: Golden, *, attention: str, accumulation: int) -> Iterator[Difference]:
    """Every step of training with the optimizer's defaults.

    Each batch is cut into `accumulation` micro-batches.
    """
    steps, rows = golden["tokens"].shape[:2]
    mesh = jax.make_mesh(
        (1, 1, 1),
        modules.sharding.AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:1],
    )
    model = build(modules, golden, attention)
    optimizer = modules.optim.make_optimizer()
    # The golden rates in float64: our schedule, in f32, has a check of its own.
    rates = jnp.asarray(golden["rates"])
    step = modules.step.make_train_step(
        model, optimizer, rates.__getitem__, mesh, seed=0, loss_chunk=LOSS_CHUNK
    )
    params = model_params(golden)
    state = modules.step.TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    # Placed as in a run: elsewhere, the first step would be compiled apart from the second.
    abstract = modules.step.abstract_state(model, optimizer, mesh)
    state = jax.device_put(state, jax.tree.map(lambda a: a.sharding, abstract))
    losses = []
    norms = []
    for tokens, mask in zip(golden["tokens"], golden["mask"], strict=True):
        micro_batches = (accumulation, rows // accumulation, -1)
        batch = modules.step.Batch(tokens.reshape(micro_batches), mask.reshape(micro_batches))
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    how = f"in {steps} steps, accumulation {accumulation}"
    yield Difference(f"losses {how}", farthest(losses, golden["losses"]), 1e-11)
    yield Difference(f"norms {how}", farthest(norms, golden["norms"]), 1e-11)
    for name, ours, theirs in pairs(state.params, golden, "after"):
        # The bias of the keys has no gradient but rounding (softmax cancels it), which Adam divides
        # by 1e-8.
        yield Difference(f"{name} {how}", farthest(ours, theirs), 1e-10)


def schedule(modules, golden: Golden) -> Iterator[Difference]:
    """The learning rate of every step, relative to the highest; ours is computed in f32."""
    steps = len(golden["rates"])
    settings = {name: golden[name].item() for name in ("peak", "warmup", "floor")}
    rate = partial(modules.optim.learning_rate, horizon=steps, **settings)
    difference = farthest(jax.jit(rate)(jnp.arange(steps)), golden["rates"])
    yield Difference("cosine schedule", difference / settings["peak"], 1e-6)


def start(modules, _golden: Golden) -> Iterator[Difference]:
    """What a run begins with: model size, fresh weights, defaults of the optimizer."""
    yield model_size(modules, modules.model_config.GPTConfig(), 124_439_808)
    residual = 0.02 / math.sqrt(2 * 4)
    stds = {"layers/attention/out/kernel": residual, "layers/mlp/down/kernel": residual}
    yield from fresh_weights(modules, stds, others=0.02)
    parameters = inspect.signature(modules.optim.make_optimizer).parameters
    defaults = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0}
    for name, value in defaults.items():
        difference = abs(parameters[name].default - value)
        yield Difference(f"default {name} of the optimizer", difference, 0)


def nanochat_start(modules, _golden: Golden) -> Iterator[Difference]:
    """What a run begins with: all that adds to the residual stream, and the head, with zeros."""
    nanochat = {"architecture": "nanochat"}
    config = modules.model_config.GPTConfig(heads=6, **nanochat)
    yield model_size(modules, config, 162_129_408)
    zeros = ("layers/attention/out/kernel", "layers/mlp/down/kernel", "lm_head")
    stds = dict.fromkeys(zeros, 0.0) | {"wte": 1.0}
    yield from fresh_weights(modules, stds, others=0.5 / math.sqrt(64), **nanochat)


def model_size(modules, config, expected: int) -> Difference:
    """The number of parameters, without the rows that pad the tables."""
    shapes = jax.eval_shape(partial(fresh, modules, config))
    padding = sum((50304 - 50257) * 768 for name in TABLES if name in shapes)
    count = sum(math.prod(a.shape) for a in jax.tree.leaves(shapes)) - padding
    return Difference(f"parameters of {config.name} in GPT-2's width", abs(count - expected), 0)


def fresh_weights(
    modules, stds: dict[str, float], others: float, **fields: str
) -> Iterator[Difference]:
    """The standard deviation of each array, all of 4 layers. Biases are 0 and scales 1."""
    shape = {"vocab_size": 1000, "context": 128, "layers": 4, "heads": 4, "embed": 64}
    config = modules.model_config.GPTConfig(**shape, **fields)
    for name, array in named_arrays(jax.jit(partial(fresh, modules, config))()):
        std = stds.get(name, others)
        if name.endswith(("bias", "scale")) or std == 0:
            expected = np.full_like(array, name.endswith("scale"))
            yield Difference(f"fresh {name}", farthest(array, expected), 0)
        else:
            relative = abs(float(array.std()) / std - 1)
            yield Difference(f"standard deviation of fresh {name}", relative, 0.03)


def fresh(modules, config) -> dict:
    """Initial weights."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    model = modules.architectures.make_model(config)
    return nn.unbox(model.init(jax.random.key(0), tokens)["params"])


def build(modules, golden: Golden, attention: str):
    """The package's model in the golden shape, in float64."""
    shape = {name: int(golden[name]) for name in ("context", "layers", "heads", "embed")}
    config = modules.model_config.GPTConfig(
        vocab_size=int(golden["vocab"]), architecture=architecture(golden), **shape
    )
    return modules.architectures.make_model(config, dtype="float64", attention=attention)


def mean_loss(
    modules, golden: Golden, params: dict, hidden: jax.Array, cap: float | None
) -> jax.Array:
    """Masked mean loss of the first batch."""
    total, weight = modules.loss.cross_entropy(
        hidden,
        modules.architectures.output_head(params),
        jnp.asarray(golden["tokens"][0, :, 1:], jnp.int32),
        jnp.asarray(golden["mask"][0], jnp.float64),
        vocab_size=int(golden["vocab"]),
        chunk=LOSS_CHUNK,
        cap=cap,
    )
    return total / weight


def model_params(golden: Golden) -> dict:
    """The golden weights as our parameters.

    Padded rows are far from zero, so that a result that uses them is wrong.
    """
    params = jax.tree.map(jnp.array, from_transformers(golden, "before"))
    padding = ((0, -len(params["wte"]) % 128), (0, 0))
    return params | {
        name: jnp.pad(params[name], padding, constant_values=3.0)
        for name in TABLES
        if name in params
    }


def named_arrays(tree: dict) -> Iterator[tuple[str, np.ndarray]]:
    """Each array of `tree` with its path."""
    for path, array in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(array)


def pairs(tree: dict, golden: Golden, kind: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, ours and theirs of each array; the layers of a stack one by one."""
    tree = tree | {name: tree[name][: golden["vocab"]] for name in TABLES if name in tree}
    expected = jax.tree.leaves(from_transformers(golden, kind))
    for (name, ours), theirs in zip(named_arrays(tree), expected, strict=True):
        if name.startswith("layers/"):
            for i in range(len(theirs)):
                yield f"{name}[{i}]", ours[i], theirs[i]
        else:
            yield name, ours, theirs


def farthest(found, expected: np.ndarray) -> float:
    """Largest absolute difference of two arrays of the same shape; NaN if one of them has a NaN."""
    assert np.shape(found) == expected.shape, f"{np.shape(found)} beside {expected.shape}"
    return float(np.abs(np.asarray(found) - expected).max())


# "auto" is the kernel for a CPU here.
GPT2_CHECKS: dict[str, Callable[..., Iterator[Difference]]] = {
    "outputs": partial(outputs, attention="xla"),
    "outputs on a CPU": partial(outputs, attention="auto"),
    "gradients": partial(gradients, attention="xla"),
    "gradients on a CPU": partial(gradients, attention="auto"),
    "training": partial(training, attention="xla", accumulation=1),
    "accumulation": partial(training, attention="auto", accumulation=4),
    "schedule": schedule,
    "start": start,
}
NANOCHAT_CHECKS: dict[str, Callable[..., Iterator[Difference]]] = {
    "NanoChat outputs": partial(outputs, attention="xla"),
    "NanoChat outputs on a CPU": partial(outputs, attention="auto"),
    "NanoChat gradients": partial(gradients, attention="xla"),
    "NanoChat gradients on a CPU": partial(gradients, attention="auto"),
    "NanoChat start": nanochat_start,
}
CHECKS = GPT2_CHECKS | NANOCHAT_CHECKS


if __name__ == "__main__":
    for check in CHECKS:
        for d in differences(checks=[check]):
            verdict = "WRONG" if d.is_wrong else ""
            print(f"{check + ': ' + d.what:<75} {d.found:.1e} of {d.allowed:.0e} {verdict}")
