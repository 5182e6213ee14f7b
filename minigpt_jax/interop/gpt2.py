"""Which of transformers' GPT-2 tensors is which of our weights, both ways and without a copy that changes a bit.

Theirs: one tensor a layer, matrices [in, out], `transformer.h.3.attn.c_attn.weight`. Ours: layers stacked into one array
[L, ...], and attention's matrices in their true shapes. Rows of the embedding beyond the live vocabulary are ours alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.model import LAYER_NORM_EPS, GPTConfig
from minigpt_jax.tokenizer import CHAT_VOCAB, END, END_OF_TEXT, TEXT_VOCAB

PREFIX = "transformer."
# Our path inside a layer, theirs.
_LAYER = {
    ("ln_1", "scale"): "ln_1.weight",
    ("ln_1", "bias"): "ln_1.bias",
    ("attention", "qkv", "kernel"): "attn.c_attn.weight",
    ("attention", "qkv", "bias"): "attn.c_attn.bias",
    ("attention", "out", "kernel"): "attn.c_proj.weight",
    ("attention", "out", "bias"): "attn.c_proj.bias",
    ("ln_2", "scale"): "ln_2.weight",
    ("ln_2", "bias"): "ln_2.bias",
    ("mlp", "up", "kernel"): "mlp.c_fc.weight",
    ("mlp", "up", "bias"): "mlp.c_fc.bias",
    ("mlp", "down", "kernel"): "mlp.c_proj.weight",
    ("mlp", "down", "bias"): "mlp.c_proj.bias",
}
_AROUND = {
    ("wte",): "wte.weight",
    ("wpe",): "wpe.weight",
    ("ln_f", "scale"): "ln_f.weight",
    ("ln_f", "bias"): "ln_f.bias",
}
# What transformers' config.json may say without being another architecture; anything else would compute something else.
_FIXED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": LAYER_NORM_EPS,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "add_cross_attention": False,
}
_SIZES = {
    "vocab_size": "vocab_size",
    "context": "n_positions",
    "layers": "n_layer",
    "heads": "n_head",
    "embed": "n_embd",
}


def to_gpt2(params: Mapping, config: GPTConfig) -> dict[str, np.ndarray]:
    """Tensors as `GPT2LMHeadModel` names them, `config.vocab_size` rows of the embedding; the tied head is not repeated."""
    shapes = _shapes(config)
    tensors = {name: np.asarray(_at(params, path)) for path, name in _AROUND.items()}
    tensors["wte.weight"] = tensors["wte.weight"][: config.vocab_size]
    for path, name in _LAYER.items():
        stacked = np.asarray(_at(params["layers"], path))
        for i in range(config.layers):
            tensors[f"h.{i}.{name}"] = stacked[i].reshape(shapes[f"h.{i}.{name}"])
    return {PREFIX + name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def from_gpt2(tensors: Mapping[str, np.ndarray], config: GPTConfig) -> dict:
    """Our weights, f32, from transformers' tensors. Raises InputError for one that is missing, unknown or of another shape."""
    short = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    if len(short) < len(tensors):
        raise InputError(
            f"tensors stand there twice, with and without {PREFIX!r} before their names"
        )
    # Buffers of old versions (the causal mask), and the head that is the embedding.
    short = {
        name: tensor
        for name, tensor in short.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias")) and name != "lm_head.weight"
    }
    if "lm_head.weight" in tensors and not np.array_equal(
        tensors["lm_head.weight"], short.get("wte.weight", ())
    ):
        raise InputError(
            "lm_head.weight: differs from wte.weight, but the two are one matrix in this model (tie_word_embeddings)"
        )
    expected = _shapes(config)
    for name in expected.keys() | short.keys():
        found, wanted = (tuple(short[name].shape) if name in short else None), expected.get(name)
        if found != wanted:
            raise InputError(f"tensor {name}: found {found or 'none'}, expected {wanted or 'none'}")
        if not np.isfinite(_f32(short[name])).all():
            raise InputError(f"tensor {name}: holds values that are not finite")
    layout = {
        "qkv": (config.embed, 3, config.heads, config.head_dim),
        "out": (config.heads, config.head_dim, config.embed),
    }
    layers: dict = {}
    for path, name in _LAYER.items():
        stacked = np.stack([_f32(short[f"h.{i}.{name}"]) for i in range(config.layers)])
        if path[0] == "attention":
            shape = layout[path[1]]
            stacked = stacked.reshape(
                config.layers,
                *(shape if path[2] == "kernel" else shape[1:] if path[1] == "qkv" else shape[2:]),
            )
        _put(layers, path, stacked)
    params: dict = {"layers": layers}
    for path, name in _AROUND.items():
        _put(params, path, _f32(short[name]))
    params["wte"] = np.pad(params["wte"], ((0, config.padded_vocab - config.vocab_size), (0, 0)))
    return params


def to_config(config: GPTConfig) -> dict:
    """transformers' config.json of these weights."""
    return _FIXED | {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_embd": config.embed,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": None,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": stop_tokens(config)[0],
        "dtype": "float32",
    }


def from_config(found: Mapping) -> GPTConfig:
    """What config.json describes. Raises InputError where that is no GPT-2, or one with another vocabulary."""
    for name, wanted in _FIXED.items():
        if found.get(name, wanted) != wanted:
            raise InputError(f"config.json: {name} is {found[name]!r}, only {wanted!r} is GPT-2")
    sizes = {ours: _size(found, theirs) for ours, theirs in _SIZES.items()}
    dropout = found.get("resid_pdrop", 0.0)
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise InputError(
            f"config.json: resid_pdrop is {dropout!r}, expected a number from 0 to below 1"
        )
    config = GPTConfig(**sizes, dropout=float(dropout))
    if found.get("n_inner") not in (None, config.mlp):
        raise InputError(
            f"config.json: n_inner is {found['n_inner']}, only 4 n_embd = {config.mlp} is GPT-2"
        )
    if config.vocab_size not in (TEXT_VOCAB, CHAT_VOCAB):
        raise InputError(
            f"config.json: vocab_size is {config.vocab_size}, expected {TEXT_VOCAB} (GPT-2's vocabulary) or {CHAT_VOCAB} (with our role markers)"
        )
    return config


def stop_tokens(config: GPTConfig) -> list[int]:
    """Ids that end a text: the end of a turn first, where the model has one."""
    return [END, END_OF_TEXT] if config.vocab_size >= CHAT_VOCAB else [END_OF_TEXT]


def _shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor under its short name."""
    embed, mlp = config.embed, config.mlp
    layer = {
        "ln_1.weight": (embed,),
        "ln_1.bias": (embed,),
        "ln_2.weight": (embed,),
        "ln_2.bias": (embed,),
        "attn.c_attn.weight": (embed, 3 * embed),
        "attn.c_attn.bias": (3 * embed,),
        "attn.c_proj.weight": (embed, embed),
        "attn.c_proj.bias": (embed,),
        "mlp.c_fc.weight": (embed, mlp),
        "mlp.c_fc.bias": (mlp,),
        "mlp.c_proj.weight": (mlp, embed),
        "mlp.c_proj.bias": (embed,),
    }
    around = {
        "wte.weight": (config.vocab_size, embed),
        "wpe.weight": (config.context, embed),
        "ln_f.weight": (embed,),
        "ln_f.bias": (embed,),
    }
    return around | {
        f"h.{i}.{name}": shape for i in range(config.layers) for name, shape in layer.items()
    }


def _size(found: Mapping, name: str) -> int:
    if name not in found:
        raise InputError(f"config.json: {name} is missing")
    if type(found[name]) is not int or not 1 <= found[name] <= 10**6:
        raise InputError(
            f"config.json: {name} is {found[name]!r}, expected a whole number from 1 to 1,000,000"
        )
    return found[name]


def _f32(tensor: np.ndarray) -> np.ndarray:
    return np.asarray(tensor).astype(np.float32, copy=False)


def _at(tree: Mapping, path: Sequence[str]):
    for key in path:
        tree = tree[key]
    return tree


def _put(tree: dict, path: Sequence[str], value) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
