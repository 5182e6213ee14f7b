"""Write a run as a GGUF file with the names and keys of llama.cpp's "gpt2" architecture."""

from pathlib import Path

import gguf
import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.functional import LAYER_NORM_EPS
from minigpt_jax.interop import gpt2, vocabulary
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.tokenizer import END_OF_TEXT

# transformers' name of a module -> llama.cpp's name.
LAYER_NAMES = {
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
OTHER_NAMES = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
# q8_0 quantizes a row in blocks of this many numbers.
Q8_BLOCK = 32


def write_file(path: Path, run: LoadedRun, *, name: str, dtype: str) -> None:
    """Write weights and vocabulary. `dtype` is that of the matrices: "f32", "f16" or "q8_0".

    Raises InputError for another model than GPT-2.
    """
    check_architecture(run.config)
    config = run.config
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name(name)
    file_types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[file_types[dtype]])
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.embed)
    writer.add_feed_forward_length(config.mlp)
    writer.add_block_count(config.layers)
    writer.add_head_count(config.heads)
    writer.add_layer_norm_eps(LAYER_NORM_EPS)
    _add_vocabulary(writer, run)
    for hf_name, tensor in gpt2.to_gpt2(run.params, config).items():
        _add_tensor(writer, tensor_name(hf_name), tensor.astype(np.float32), dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_architecture(config: GPTConfig) -> None:
    """Raise InputError where llama.cpp has no architecture for the model."""
    if not config.is_gpt2:
        raise InputError(
            f"the run is a {config.name}, an architecture that llama.cpp and GGUF do not have: "
            "use minigpt export hf (transformers loads that), or train a GPT-2 "
            "(model.architecture=gpt2)"
        )


def tensor_name(hf_name: str) -> str:
    """llama.cpp's name of a tensor that transformers calls `hf_name`."""
    module, _, parameter = hf_name.removeprefix(gpt2.PREFIX).rpartition(".")
    if module.startswith("h."):
        _, layer, inner = module.split(".", 2)
        return f"blk.{layer}.{LAYER_NAMES[inner]}.{parameter}"
    return f"{OTHER_NAMES[module]}.{parameter}"


def _add_tensor(writer, name: str, tensor: np.ndarray, dtype: str) -> None:
    is_table = name.startswith(("token_embd", "position_embd"))
    if tensor.ndim == 2 and not is_table:
        # llama.cpp stores matrices as [out, in], GPT-2 as [in, out]. Both store tables alike.
        tensor = np.ascontiguousarray(tensor.T)
    if tensor.ndim == 1 or name.startswith("position_embd"):
        # llama.cpp adds the positions in f32.
        dtype = "f32"
    elif dtype == "q8_0" and tensor.shape[-1] % Q8_BLOCK:
        # Rows that are not a whole number of blocks cannot be quantized.
        dtype = "f16"
    quantization = gguf.GGMLQuantizationType[dtype.upper()]
    writer.add_tensor(name, gguf.quants.quantize(tensor, quantization), raw_dtype=quantization)


def _add_vocabulary(writer, run: LoadedRun) -> None:
    special = vocabulary.special_tokens(run.config.vocab_size)
    tokens = [*vocabulary.vocabulary(), *sorted(special, key=special.__getitem__)]
    types = [
        gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens
    ]
    stop_token = vocabulary.stop_tokens(run.config.vocab_size)[0]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges()])
    writer.add_bos_token_id(END_OF_TEXT)
    writer.add_eos_token_id(stop_token)
    writer.add_pad_token_id(END_OF_TEXT)
    # The chat template writes the BOS token itself.
    writer.add_add_bos_token(not run.can_chat)
    if run.can_chat:
        writer.add_eot_token_id(stop_token)
        writer.add_chat_template(vocabulary.CHAT_TEMPLATE)
