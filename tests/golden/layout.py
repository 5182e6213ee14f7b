"""The golden arrays, which have the names and the layout of transformers, as our parameters.

Written apart from minigpt_jax.interop, which it would otherwise test with itself.
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np

# The arrays that make.py and make_nanochat.py describe.
Golden = Mapping[str, np.ndarray]


def architecture(golden: Golden) -> str:
    """ "gpt2" or "nanochat"."""
    return str(golden.get("architecture", "gpt2"))


def from_transformers(golden: Golden, kind: str) -> dict:
    """The arrays "KIND/NAME" as our parameters."""
    return {"gpt2": _gpt2, "nanochat": _nanochat}[architecture(golden)](golden, kind)


def _gpt2(golden: Golden, kind: str) -> dict:
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

    return {
        "wte": golden[f"{kind}/wte.weight"],
        "wpe": golden[f"{kind}/wpe.weight"],
        "layers": _stacked(golden, layer),
        "ln_f": pair("ln_f", "scale"),
    }


def _nanochat(golden: Golden, kind: str) -> dict:
    heads, embed = int(golden["heads"]), int(golden["embed"])
    each = embed // heads

    def layer(i: int) -> dict:
        def matrix(name: str) -> np.ndarray:
            return golden[f"{kind}/model.layers.{i}.{name}.weight"].T

        qkv = [matrix(f"self_attn.{name}_proj").reshape(embed, heads, each) for name in "qkv"]
        out = matrix("self_attn.o_proj").reshape(heads, each, embed)
        return {
            "attention": {"qkv": {"kernel": np.stack(qkv, 1)}, "out": {"kernel": out}},
            "mlp": {"up": {"kernel": matrix("mlp.fc1")}, "down": {"kernel": matrix("mlp.fc2")}},
        }

    return {
        "wte": golden[f"{kind}/model.embed_tokens.weight"],
        "lm_head": golden[f"{kind}/lm_head.weight"],
        "layers": _stacked(golden, layer),
    }


def _stacked(golden: Golden, layer: Callable[[int], dict]) -> dict:
    layers = map(layer, range(int(golden["layers"])))
    return jax.tree.map(lambda *arrays: np.stack(arrays), *layers)
