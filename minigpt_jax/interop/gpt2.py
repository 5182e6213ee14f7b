"""Convert between transformers' GPT-2 tensors and our parameters, without changing a bit.

transformers has one tensor per layer and matrices of shape [in, out], such as
`transformer.h.3.attn.c_attn.weight`. Ours are stacked over the layers, [L, ...]; those of attention
have dimensions for heads; and our embedding is padded with rows that are no token ids.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.functional import LAYER_NORM_EPS
from minigpt_jax.interop.config_json import check_fixed_fields, check_vocab_size, sizes_in
from minigpt_jax.interop.tensors import as_f32, check_tensors, with_vocab_size, without_prefix
from minigpt_jax.interop.vocabulary import stop_tokens
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.tokenizer import END_OF_TEXT

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
ANOTHER_MODEL = "choose a model that is a GPT-2, such as openai-community/gpt2"
# What to do about a field with another value.
WAYS_OUT = {
    "model_type": f"{ANOTHER_MODEL}, or a NanoChat",
    "scale_attn_weights": "multiply the part of each c_attn that makes queries by the root of the "
    "head's size, and set it to true",
    "scale_attn_by_inverse_layer_idx": "divide the part of each c_attn that makes queries by its "
    "layer's number, counted from 1, and set it to false",
    "tie_word_embeddings": "if lm_head.weight and wte.weight are the same, set it to true; "
    "otherwise choose a model with one matrix for both",
}
# Field of GPTConfig -> field of config.json.
SIZE_FIELDS = {
    "vocab_size": "vocab_size",
    "context": "n_positions",
    "layers": "n_layer",
    "heads": "n_head",
    "embed": "n_embd",
}


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
    tensors = without_prefix(tensors, PREFIX, MASK_BUFFERS)
    _check_head(tensors)
    tensors.pop("lm_head.weight", None)
    check_tensors(tensors, _tensor_shapes(config))
    layers: dict = {}
    attention_shapes = _attention_shapes(config)
    for path, name in LAYER_NAMES.items():
        stacked = np.stack([as_f32(tensors[f"h.{i}.{name}"]) for i in range(config.layers)])
        if path in attention_shapes:
            stacked = stacked.reshape(config.layers, *attention_shapes[path])
        _set(layers, path, stacked)
    params: dict = {"layers": layers}
    for path, name in OTHER_NAMES.items():
        _set(params, path, as_f32(tensors[name]))
    return with_vocab_size(params, config, config.vocab_size)[0]


def _check_head(tensors: Mapping[str, np.ndarray]) -> None:
    """Raise InputError where the head is there and is not the embedding."""
    head, embedding = tensors.get("lm_head.weight"), tensors.get("wte.weight")
    # A missing embedding is reported with the other missing tensors.
    if head is not None and embedding is not None and not np.array_equal(head, embedding):
        raise InputError(
            "lm_head.weight: differs from wte.weight, but this model has one matrix for both "
            "(tie_word_embeddings)"
        )


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
        "eos_token_id": stop_tokens(config.vocab_size)[0],
        "dtype": "float32",
    }


def from_gpt2_config(fields: Mapping) -> GPTConfig:
    """The model that config.json describes.

    Its vocabulary counts all rows of the embedding. Raises InputError for another architecture, and
    for a size or a dropout that is missing or not possible.
    """
    if fields.get("activation_function") in SAME_GELU:
        fields = {**fields, "activation_function": FIXED_FIELDS["activation_function"]}
    check_fixed_fields(fields, FIXED_FIELDS, "GPT-2", WAYS_OUT, ANOTHER_MODEL)
    sizes = sizes_in(fields, SIZE_FIELDS)
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
    check_vocab_size(config)
    return config


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


def _get(tree: Mapping, path: Sequence[str]):
    for key in path:
        tree = tree[key]
    return tree


def _set(tree: dict, path: Sequence[str], value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
