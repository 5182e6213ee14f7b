"""Convert between transformers' NanoChat tensors and our parameters, without changing a bit.

transformers has one tensor per layer and matrices of shape [out, in], such as
`model.layers.3.self_attn.q_proj.weight`. Ours are [in, out] and stacked over the layers; those of
queries, keys and values are one array with dimensions for heads; and both tables are padded with
rows that are no token ids.
"""

from collections.abc import Mapping

import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.functional import RMS_NORM_EPS
from minigpt_jax.interop.config_json import check_fixed_fields, check_vocab_size, sizes_in
from minigpt_jax.interop.tensors import as_f32, check_tensors, with_vocab_size, without_prefix
from minigpt_jax.interop.vocabulary import stop_tokens
from minigpt_jax.model_config import LOGIT_CAP, GPTConfig
from minigpt_jax.nanochat import ROTARY_BASE
from minigpt_jax.tokenizer import END_OF_TEXT

# Of all names but the head's.
PREFIX = "model."
# Frequencies of the rotary positions, which transformers computes and other programs may store.
ROTARY_BUFFERS = (".inv_freq",)
# transformers' names within a layer, in the order of our array of queries, keys and values.
QKV = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
OUT = "self_attn.o_proj.weight"
UP = "mlp.fc1.weight"
DOWN = "mlp.fc2.weight"
# Our tables -> their names, without prefix.
TABLE_NAMES = {"wte": "embed_tokens.weight", "lm_head": "lm_head.weight"}
# Fields of transformers' config.json. With another value the model would compute something else.
FIXED_FIELDS = {
    "model_type": "nanochat",
    "hidden_act": "relu2",
    "rms_norm_eps": RMS_NORM_EPS,
    "final_logit_softcapping": LOGIT_CAP,
    "attention_bias": False,
    "tie_word_embeddings": False,
}
ROTARY_FIELDS = {"rope_type": "default", "rope_theta": float(ROTARY_BASE)}
# What else other files may say of the same rotary positions. "type" is a former name.
OTHER_ROTARY_FIELDS = {"type": "default", "partial_rotary_factor": 1.0}
# Field of GPTConfig -> field of config.json.
SIZE_FIELDS = {
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "embed": "hidden_size",
}
# In messages: transformers' NanoChat has choices that this one has not.
MODEL = "our NanoChat"
# transformers' default, where config.json does not have the field.
DEFAULT_MLP = 8192
ANOTHER_MODEL = (
    "choose a NanoChat that export_hf wrote, or one that is built like it (minigpt_jax/nanochat.py)"
)


def to_nanochat(params: Mapping, config: GPTConfig) -> dict[str, np.ndarray]:
    """Tensors on the host with the names of `NanoChatForCausalLM`.

    Both tables have `config.vocab_size` rows.
    """
    attention, mlp = params["layers"]["attention"], params["layers"]["mlp"]
    parts = (attention["qkv"], attention["out"], mlp["up"], mlp["down"])
    qkv, out, up, down = (np.asarray(part["kernel"]) for part in parts)
    stacks = {name: qkv[:, :, i] for i, name in enumerate(QKV)} | {OUT: out, UP: up, DOWN: down}
    tensors = {}
    for name, (outputs, inputs) in _layer_shapes(config).items():
        for i in range(config.layers):
            # There, heads and their dimensions are one dimension.
            matrix = stacks[name][i].reshape(inputs, outputs)
            tensors[f"{PREFIX}layers.{i}.{name}"] = np.ascontiguousarray(matrix.T)
    for ours, name in TABLE_NAMES.items():
        rows = np.ascontiguousarray(np.asarray(params[ours])[: config.vocab_size])
        tensors[name if ours == "lm_head" else PREFIX + name] = rows
    return tensors


def from_nanochat(tensors: Mapping[str, np.ndarray], config: GPTConfig) -> dict:
    """Our parameters, f32, from transformers' tensors.

    Raises InputError for a tensor that is missing, unknown, of another shape or not finite.
    """
    tensors = without_prefix(tensors, PREFIX, ROTARY_BUFFERS)
    if TABLE_NAMES["lm_head"] not in tensors:
        raise InputError(
            f"tensor {TABLE_NAMES['lm_head']}: found none, but a NanoChat has a head of its own: "
            "save the whole NanoChatForCausalLM, not its NanoChatModel"
        )
    check_tensors(tensors, _tensor_shapes(config))

    def stack(name: str) -> np.ndarray:
        return np.stack([as_f32(tensors[f"layers.{i}.{name}"]).T for i in range(config.layers)])

    heads = (config.layers, config.embed, config.heads, config.head_dim)
    qkv = np.stack([stack(name).reshape(heads) for name in QKV], axis=2)
    out = stack(OUT).reshape(config.layers, config.heads, config.head_dim, config.embed)
    layers = {
        "attention": {"qkv": {"kernel": qkv}, "out": {"kernel": out}},
        "mlp": {"up": {"kernel": stack(UP)}, "down": {"kernel": stack(DOWN)}},
    }
    tables = {ours: as_f32(tensors[name]) for ours, name in TABLE_NAMES.items()}
    return with_vocab_size({"layers": layers} | tables, config, config.vocab_size)[0]


def _layer_shapes(config: GPTConfig) -> dict[str, tuple[int, int]]:
    """Shape of every tensor of transformers in one layer."""
    embed, mlp = config.embed, config.mlp
    square = dict.fromkeys((*QKV, OUT), (embed, embed))
    return square | {UP: (mlp, embed), DOWN: (embed, mlp)}


def _tensor_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of transformers, by its name without prefix."""
    table = (config.vocab_size, config.embed)
    layer = _layer_shapes(config)
    return dict.fromkeys(TABLE_NAMES.values(), table) | {
        f"layers.{i}.{name}": shape for i in range(config.layers) for name, shape in layer.items()
    }


def to_nanochat_config(config: GPTConfig) -> dict:
    """The content of transformers' config.json."""
    sizes = {theirs: getattr(config, ours) for ours, theirs in SIZE_FIELDS.items()}
    return FIXED_FIELDS | {
        "architectures": ["NanoChatForCausalLM"],
        **sizes,
        "num_key_value_heads": config.heads,
        "intermediate_size": config.mlp,
        "rope_parameters": ROTARY_FIELDS,
        "attention_dropout": 0.0,
        # transformers' default; only a new model would use it.
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": stop_tokens(config.vocab_size)[0],
        # transformers' default, 1, would keep the embedding of a token of text from learning.
        "pad_token_id": None,
        "dtype": "float32",
    }


def from_nanochat_config(fields: Mapping) -> GPTConfig:
    """The model that config.json describes.

    Its vocabulary counts all rows of the tables. Raises InputError for another architecture, and
    for a size that is missing or not possible.
    """
    check_fixed_fields(fields, FIXED_FIELDS, MODEL, {}, ANOTHER_MODEL)
    _check_rotary_fields(fields)
    config = GPTConfig(**sizes_in(fields, SIZE_FIELDS), architecture="nanochat")
    _check_derived_sizes(fields, config)
    check_vocab_size(config)
    return config


def _check_rotary_fields(fields: Mapping) -> None:
    """Raise InputError unless positions turn whole heads, by angles with our base."""
    known = ROTARY_FIELDS | OTHER_ROTARY_FIELDS
    # Formerly these two stood beside the object.
    found = [(name, fields.get(name)) for name in ("rope_theta", "partial_rotary_factor")]
    for name in ("rope_scaling", "rope_parameters"):
        part = fields.get(name) or {}
        if not isinstance(part, Mapping):
            raise InputError(f"config.json: {name} is {part!r}, expected an object: fetch it again")
        found += part.items()
    for name, value in found:
        expected = known.get(name)
        if value not in (None, expected):
            raise InputError(
                f"config.json: {name} of the rotary positions is {value!r}, but {MODEL} has "
                f"{'none' if expected is None else repr(expected)}: {ANOTHER_MODEL}"
            )


def _check_derived_sizes(fields: Mapping, config: GPTConfig) -> None:
    """Raise InputError for a size that does not follow from the others as in our model."""
    derived = {
        "num_key_value_heads": ("num_attention_heads", config.heads),
        "head_dim": ("hidden_size / num_attention_heads", config.head_dim),
        "intermediate_size": ("4 * hidden_size", config.mlp),
    }
    found = {"intermediate_size": DEFAULT_MLP}
    found |= {name: value for name, value in fields.items() if value is not None}
    for name, (formula, expected) in derived.items():
        if found.get(name, expected) != expected:
            raise InputError(
                f"config.json: {name} is {found[name]!r}, but {MODEL} has {formula} = {expected}: "
                f"{ANOTHER_MODEL}"
            )
