"""Is this GPT-2? Every number of a package's model, loss and training step beside those of transformers and PyTorch.

    python -m tests.parity

Prints each difference beside what is allowed. The package is an argument, so that test_parity.py can give wrong ones.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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

Golden = Mapping[str, np.ndarray]  # what tests/golden/make.py describes


class Difference(NamedTuple):
    """How far one number, or the farthest of an array, is from what it should be."""

    what: str
    found: float
    allowed: float

    @property
    def wrong(self) -> bool:
        """NaN is wrong too."""
        return not self.found <= self.allowed


def load_golden() -> dict[str, np.ndarray]:
    """The file that stands beside its maker."""
    with np.load(Path(__file__).parent / "golden" / "gpt2.npz") as file:
        return dict(file)


def problems(package: str = "minigpt_jax", **what) -> Iterator[str]:
    """A line for each difference that is too large, as it is found: who wants only the first spares the rest."""
    return (
        f"{d.what}: differs by {d.found:.2e}, allowed {d.allowed:.0e}"
        for d in differences(package, **what)
        if d.wrong
    )


def differences(
    package: str = "minigpt_jax",
    *,
    golden: Golden | None = None,
    checks: Sequence[str] | None = None,
) -> Iterator[Difference]:
    """What is compared, in the order of CHECKS: all of them and with the golden file, unless told otherwise."""
    golden = load_golden() if golden is None else golden
    modules = SimpleNamespace(
        **{
            name: import_module(f"{package}.{name}")
            for name in ("attention", "model", "loss", "optim", "step", "sharding")
        }
    )
    for name in CHECKS if checks is None else checks:
        # Blocks of 5 queries: the golden rows of 16 must cross the borders that long rows cross.
        with jax.enable_x64(True), patch.object(modules.attention, "MIN_BLOCK", 5):
            found = list(
                CHECKS[name](modules, golden)
            )  # before the mode is left: a generator would take it to its caller
        yield from found


def outputs(modules, golden: Golden) -> Iterator[Difference]:
    """Logits and masked loss of the first batch, without a gradient."""
    tokens, vocab = golden["tokens"][0].astype(np.int32), int(golden["vocab"])

    def compute(params, attention):
        hidden = build(modules, golden, attention).apply({"params": params}, tokens[:, :-1])[0]
        return mean_loss(modules, golden, attention, params), modules.loss.logits(
            hidden, params["wte"], vocab
        )

    for attention in ("xla", "auto"):
        value, logits = jax.jit(partial(compute, attention=attention))(model_params(golden))
        yield Difference(
            f"logits, attention {attention}", farthest(logits[..., :vocab], golden["logits"]), 1e-12
        )
        yield Difference(
            "logits beyond the vocabulary", float(not np.isneginf(logits[..., vocab:]).all()), 0
        )
        yield Difference(f"loss, attention {attention}", farthest(value, golden["loss"]), 1e-12)


def gradients(modules, golden: Golden) -> Iterator[Difference]:
    """Loss and all gradients of the first batch, each relative to its largest number."""
    for attention in ("xla", "auto"):
        value, found = jax.jit(jax.value_and_grad(partial(mean_loss, modules, golden, attention)))(
            model_params(golden)
        )
        yield Difference("loss beside its gradient", farthest(value, golden["loss"]), 1e-12)
        for name, ours, theirs in pairs(found, golden, "gradient"):
            yield Difference(
                f"gradient of {name}, attention {attention}",
                farthest(ours, theirs) / float(np.abs(theirs).max()),
                1e-11,
            )


def training(modules, golden: Golden, *, accum: int) -> Iterator[Difference]:
    """Every step of training, each batch cut into `accum` parts, with the optimizer's defaults."""
    steps, rows = golden["tokens"].shape[:2]
    mesh = jax.make_mesh(
        (1, 1, 1),
        modules.sharding.AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:1],
    )
    model, optimizer, params = (
        build(modules, golden),
        modules.optim.make_optimizer(),
        model_params(golden),
    )
    rates = jnp.asarray(
        golden["rates"]
    ).__getitem__  # in float64; ours, in f32, are a check of their own
    step = modules.step.make_train_step(model, optimizer, rates, mesh, seed=0, loss_chunk=5)
    state = modules.step.TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    # Where a run has it from the start: elsewhere, the first step would be another program than the second.
    state = jax.device_put(
        state,
        jax.tree.map(lambda a: a.sharding, modules.step.abstract_state(model, optimizer, mesh)),
    )
    curves = []
    for tokens, mask in zip(golden["tokens"], golden["mask"], strict=True):
        batch = modules.step.Batch(*(a.reshape(accum, rows // accum, -1) for a in (tokens, mask)))
        state, metrics = step(state, batch)
        curves.append([float(metrics[name]) for name in ("loss", "grad_norm")])
    how = f"in {steps} steps, accumulation {accum}"
    for name, found in zip(("losses", "norms"), np.array(curves).T, strict=True):
        yield Difference(f"{name} {how}", farthest(found, golden[name]), 1e-11)
    for name, ours, theirs in pairs(state.params, golden, "after"):
        # The bias of the keys has no gradient but rounding (softmax does not see it), which Adam divides by 1e-8.
        yield Difference(f"{name} {how}", farthest(ours, theirs), 1e-10)


def schedule(modules, golden: Golden) -> Iterator[Difference]:
    """The learning rate of every step, relative to the highest; ours is computed in f32."""
    steps, how = (
        len(golden["rates"]),
        {name: golden[name].item() for name in ("peak", "warmup", "floor")},
    )
    rates = jax.jit(partial(modules.optim.learning_rate, horizon=steps, **how))(jnp.arange(steps))
    yield Difference(
        "cosine schedule", farthest(rates, golden["rates"]) / float(golden["peak"]), 1e-6
    )


def start(modules, _golden: Golden) -> Iterator[Difference]:
    """What a run begins with: the size of the default model, the spread of fresh weights, the optimizer's defaults."""
    shapes = fresh(modules, modules.model.GPTConfig(), jax.eval_shape)
    live = sum(math.prod(a.shape) for a in jax.tree.leaves(shapes)) - (50304 - 50257) * 768
    yield Difference("parameters of GPT-2 124M", abs(live - 124_439_808), 0)
    layers = 4
    config = modules.model.GPTConfig(vocab_size=1000, context=128, layers=layers, heads=4, embed=64)
    residual = 0.02 / math.sqrt(2 * layers)
    stds = {"layers/attention/out/kernel": residual, "layers/mlp/down/kernel": residual}
    for path, array in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(np.asarray, fresh(modules, config, lambda f: jax.jit(f)()))
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith(("bias", "scale")):
            yield Difference(
                f"fresh {name}", farthest(array, np.full_like(array, name.endswith("scale"))), 0
            )
        else:
            yield Difference(
                f"spread of fresh {name}", abs(float(array.std()) / stds.get(name, 0.02) - 1), 0.03
            )
    defaults = inspect.signature(modules.optim.make_optimizer).parameters
    for name, value in {
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "clip": 1.0,
    }.items():
        yield Difference(f"default {name} of the optimizer", abs(defaults[name].default - value), 0)


def fresh(modules, config, evaluate):
    """Fresh weights of a model, or only their shapes, as `evaluate` has it."""
    return nn.unbox(
        evaluate(
            lambda: modules.model.GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))[
                "params"
            ]
        )
    )


def build(modules, golden: Golden, attention: str = "auto"):
    """The package's model of the golden shape, in float64; `attention` as runs have it, here cpu.py's, unless told otherwise."""
    shape = {name: int(golden[name]) for name in ("context", "layers", "heads", "embed")}
    return modules.model.GPT(
        modules.model.GPTConfig(vocab_size=int(golden["vocab"]), **shape),
        dtype="float64",
        attention=attention,
    )


def mean_loss(modules, golden: Golden, attention: str, params: dict) -> jax.Array:
    """Masked mean loss of the first batch."""
    tokens, mask = golden["tokens"][0].astype(np.int32), golden["mask"][0].astype(np.float64)
    hidden = build(modules, golden, attention).apply({"params": params}, tokens[:, :-1])[0]
    total, weight = modules.loss.cross_entropy(
        hidden, params["wte"], tokens[:, 1:], mask, vocab_size=int(golden["vocab"]), chunk=5
    )
    return total / weight


def model_params(golden: Golden) -> dict:
    """The golden weights as our parameters; the rows that pad the embedding are far from zero, so that they show where they count."""
    params = jax.tree.map(jnp.array, from_transformers(golden, "before"))
    return params | {
        "wte": jnp.pad(params["wte"], ((0, -len(params["wte"]) % 128), (0, 0)), constant_values=3.0)
    }


def pairs(tree: dict, golden: Golden, kind: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, ours, theirs of each array, those of the layers one by one."""
    live = jax.tree.map(np.asarray, tree)
    live["wte"] = live["wte"][: golden["vocab"]]
    expected = from_transformers(golden, kind)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(live), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.startswith("layers/"):
            yield from ((f"{name}[{i}]", ours[i], theirs[i]) for i in range(len(theirs)))
        else:
            yield name, ours, theirs


def from_transformers(golden: Golden, kind: str) -> dict:
    """The arrays "KIND/NAME", named and laid out as in transformers, as the tree of our parameters."""
    heads, embed = int(golden["heads"]), int(golden["embed"])
    each = embed // heads

    def pair(name: str, ours: str = "kernel") -> dict:
        return {ours: golden[f"{kind}/{name}.weight"], "bias": golden[f"{kind}/{name}.bias"]}

    def layer(i: int) -> dict:
        qkv = pair(f"h.{i}.attn.c_attn")
        out = pair(f"h.{i}.attn.c_proj")
        return {
            "ln_1": pair(f"h.{i}.ln_1", "scale"),
            "ln_2": pair(f"h.{i}.ln_2", "scale"),
            "attention": {
                "qkv": {
                    "kernel": qkv["kernel"].reshape(embed, 3, heads, each),
                    "bias": qkv["bias"].reshape(3, heads, each),
                },
                "out": {"kernel": out["kernel"].reshape(heads, each, embed), "bias": out["bias"]},
            },
            "mlp": {"up": pair(f"h.{i}.mlp.c_fc"), "down": pair(f"h.{i}.mlp.c_proj")},
        }

    layers = jax.tree.map(
        lambda *arrays: np.stack(arrays), *map(layer, range(int(golden["layers"])))
    )
    return {
        "wte": golden[f"{kind}/wte.weight"],
        "wpe": golden[f"{kind}/wpe.weight"],
        "layers": layers,
        "ln_f": pair("ln_f", "scale"),
    }


def farthest(found, expected: np.ndarray) -> float:
    """Largest absolute difference of two arrays of one shape; NaN where there is one."""
    assert np.shape(found) == expected.shape, f"{np.shape(found)} beside {expected.shape}"
    return float(np.abs(np.asarray(found) - expected).max())


CHECKS: dict[str, Callable[..., Iterator[Difference]]] = {
    "outputs": outputs,
    "gradients": gradients,
    "training": partial(training, accum=1),
    "accumulation": partial(training, accum=4),
    "schedule": schedule,
    "start": start,
}


if __name__ == "__main__":
    for difference in differences():
        print(
            f"{difference.what:<60} {difference.found:.1e} of {difference.allowed:.0e} {'WRONG' * difference.wrong}"
        )
