"""Convert between transformers' GPT-2 tensors and our parameters, without changing a bit.

transformers has one tensor per layer and matrices of shape [in, out], such as
`transformer.h.3.attn.c_attn.weight`. Ours are stacked over the layers, [L, ...]; those of attention
have dimensions for heads; and our embedding is padded with rows that are no token ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.functional import LAYER_NORM_EPS
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.tokenizer import CHAT_VOCAB, END, END_OF_TEXT, TEXT_VOCAB

PREFIX = "transformer."
# Causal masks, which old versions of transformers stored as tensors.
MASK_BUFFERS = (".attn.bias", ".attn.masked_bias")

# Path of a parameter within our layers -> transformers' name within one of its layers.
LAYER_NAMES = {
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
# The same for the parameters outside of the layers.
OTHER_NAMES = {
    ("wte",): "wte.weight",
    ("wpe",): "wpe.weight",
    ("ln_f", "scale"): "ln_f.weight",
    ("ln_f", "bias"): "ln_f.bias",
}
# Fields of transformers' config.json. With another value the model would compute something else.
FIXED_FIELDS = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": LAYER_NORM_EPS,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "add_cross_attention": False,
}
# Names in transformers of one and the same function, GPT-2's GELU.
SAME_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate", "gelu_fast")
# What to do about a field with another value.
WAYS_OUT = {
    "scale_attn_weights": "multiply the part of each c_attn that makes queries by the root of the "
    "head's size, and set it to true",
    "scale_attn_by_inverse_layer_idx": "divide the part of each c_attn that makes queries by its "
    "layer's number, counted from 1, and set it to false",
    "tie_word_embeddings": "if lm_head.weight and wte.weight are the same, set it to true; "
    "otherwise choose a model with one matrix for both",
}
ANOTHER_MODEL = "choose a model that is a GPT-2, such as openai-community/gpt2"
# Field of GPTConfig -> field of config.json.
SIZE_FIELDS = {
    "vocab_size": "vocab_size",
    "context": "n_positions",
    "layers": "n_layer",
    "heads": "n_head",
    "embed": "n_embd",
}
# Larger than any GPT-2 has: a damaged config.json is reported before an array of its size is made.
MAX_SIZE = 1_000_000


def to_gpt2(params: Mapping, config: GPTConfig) -> dict[str, np.ndarray]:
    """Tensors on the host with the names of `GPT2LMHeadModel`.

    The embedding has `config.vocab_size` rows. The head is left out, because it is the embedding.
    """
    shapes = _tensor_shapes(config)
    tensors = {name: np.asarray(_get(params, path)) for path, name in OTHER_NAMES.items()}
    tensors["wte.weight"] = tensors["wte.weight"][: config.vocab_size]
    for path, name in LAYER_NAMES.items():
        stacked = np.asarray(_get(params["layers"], path))
        for i in range(config.layers):
            full_name = f"h.{i}.{name}"
            tensors[full_name] = stacked[i].reshape(shapes[full_name])
    return {PREFIX + name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def from_gpt2(tensors: Mapping[str, np.ndarray], config: GPTConfig) -> dict:
    """Our parameters, f32, from transformers' tensors.

    Raises InputError for a tensor that is missing, unknown, of another shape or not finite.
    """
    tensors = _without_prefix(tensors)
    _check_tensors(tensors, config)
    layers: dict = {}
    attention_shapes = _attention_shapes(config)
    for path, name in LAYER_NAMES.items():
        stacked = np.stack([_as_f32(tensors[f"h.{i}.{name}"]) for i in range(config.layers)])
        if path in attention_shapes:
            stacked = stacked.reshape(config.layers, *attention_shapes[path])
        _set(layers, path, stacked)
    params: dict = {"layers": layers}
    for path, name in OTHER_NAMES.items():
        _set(params, path, _as_f32(tensors[name]))
    padding = config.padded_vocab - config.vocab_size
    params["wte"] = np.pad(params["wte"], ((0, padding), (0, 0)))
    return params


def with_vocab_size(params: dict, config: GPTConfig, vocab_size: int) -> tuple[dict, GPTConfig]:
    """The model with the first `vocab_size` rows of its embedding, the others being padding."""
    config = replace(config, vocab_size=vocab_size)
    padding = config.padded_vocab - vocab_size
    rows = np.pad(params["wte"][:vocab_size], ((0, padding), (0, 0)))
    return params | {"wte": rows}, config


def _without_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without PREFIX in their names, without mask buffers and without the tied head.

    Raises InputError where a tensor occurs twice, and where the head is not the embedding.
    """
    short = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    if len(short) < len(tensors):
        raise InputError(f"found the same tensors twice, with and without the prefix {PREFIX!r}")
    head = short.pop("lm_head.weight", None)
    embedding = short.get("wte.weight")
    # A missing embedding is reported with the other missing tensors.
    if head is not None and embedding is not None and not np.array_equal(head, embedding):
        raise InputError(
            "lm_head.weight: differs from wte.weight, but this model has one matrix for both "
            "(tie_word_embeddings)"
        )
    return {name: tensor for name, tensor in short.items() if not name.endswith(MASK_BUFFERS)}


def _check_tensors(tensors: Mapping[str, np.ndarray], config: GPTConfig) -> None:
    shapes = _tensor_shapes(config)
    for name in sorted(shapes.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else "none"
        expected = shapes.get(name, "none")
        if found != expected:
            raise InputError(f"tensor {name}: found {found}, expected {expected}")
        if not np.isfinite(_as_f32(tensors[name])).all():
            raise InputError(f"tensor {name}: found values that are not finite")


def to_gpt2_config(config: GPTConfig) -> dict:
    """The content of transformers' config.json."""
    return FIXED_FIELDS | {
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
        # transformers' default; only a new model would use it.
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": stop_tokens(config)[0],
        "dtype": "float32",
    }


def from_gpt2_config(fields: Mapping) -> GPTConfig:
    """The model that config.json describes.

    Its vocabulary counts all rows of the embedding. Raises InputError for another architecture, and
    for a size or a dropout that is missing or not possible.
    """
    if fields.get("activation_function") in SAME_GELU:
        fields = {**fields, "activation_function": FIXED_FIELDS["activation_function"]}
    # A field that is missing has transformers' default, which is the value of GPT-2.
    for name, expected in FIXED_FIELDS.items():
        if fields.get(name, expected) != expected:
            raise InputError(
                f"config.json: {name} is {fields[name]!r}, but GPT-2 has {expected!r}: "
                f"{WAYS_OUT.get(name, ANOTHER_MODEL)}"
            )
    sizes: dict[str, Any] = {ours: _size(fields, theirs) for ours, theirs in SIZE_FIELDS.items()}
    # transformers' default is 0.1. Dropout matters only for training, where a config sets its own.
    dropout = fields.get("resid_pdrop", 0.0)
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise InputError(
            f"config.json: resid_pdrop is {dropout!r}, expected a number from 0 to below 1"
        )
    config = GPTConfig(**sizes, dropout=float(dropout))
    if fields.get("n_inner") not in (None, config.mlp):
        raise InputError(
            f"config.json: n_inner is {fields['n_inner']}, but GPT-2 has 4 * n_embd = "
            f"{config.mlp}: {ANOTHER_MODEL}"
        )
    if config.vocab_size < TEXT_VOCAB:
        raise InputError(
            f"config.json: vocab_size is {config.vocab_size}, expected {TEXT_VOCAB} "
            "(GPT-2's vocabulary) or more (with padding): choose a model with GPT-2's tokenizer"
        )
    return config


def stop_tokens(config: GPTConfig) -> list[int]:
    """Ids that end a text; the first is the end of a turn if the model has one."""
    return [END, END_OF_TEXT] if config.vocab_size >= CHAT_VOCAB else [END_OF_TEXT]


def _attention_shapes(config: GPTConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Our shapes of attention's parameters in one layer, where they differ from transformers'."""
    embed, heads, head_dim = config.embed, config.heads, config.head_dim
    return {
        ("attention", "qkv", "kernel"): (embed, 3, heads, head_dim),
        ("attention", "qkv", "bias"): (3, heads, head_dim),
        ("attention", "out", "kernel"): (heads, head_dim, embed),
    }


def _tensor_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of transformers, by its name without prefix."""
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
    shapes = {
        "wte.weight": (config.vocab_size, embed),
        "wpe.weight": (config.context, embed),
        "ln_f.weight": (embed,),
        "ln_f.bias": (embed,),
    }
    for i in range(config.layers):
        shapes |= {f"h.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def _size(fields: Mapping, name: str) -> int:
    if name not in fields:
        raise InputError(f"config.json: {name} is missing")
    size = fields[name]
    # Not isinstance: True is an int.
    if type(size) is not int or not 1 <= size <= MAX_SIZE:
        raise InputError(
            f"config.json: {name} is {size!r}, expected a whole number from 1 to {MAX_SIZE:,}"
        )
    return size


def _as_f32(tensor: np.ndarray) -> np.ndarray:
    return np.asarray(tensor).astype(np.float32, copy=False)


def _get(tree: Mapping, path: Sequence[str]):
    for key in path:
        tree = tree[key]
    return tree


def _set(tree: dict, path: Sequence[str], value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
