"""Write a run as one GGUF file, for llama.cpp and what is built on it (Ollama, LM Studio).

    python -m minigpt_jax.interop.export_gguf --run runs/finetune --out model.gguf [--type f32|f16|q8_0]

Names and keys are those of llama.cpp's "gpt2" architecture. Needs the gguf package (an extra).
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np

from minigpt_jax.checkpoint import load_params
from minigpt_jax.errors import InputError, exit_cleanly
from minigpt_jax.interop import gpt2, vocabulary
from minigpt_jax.model import LAYER_NORM_EPS, GPTConfig
from minigpt_jax.tokenizer import END_OF_TEXT

TYPES = ("f32", "f16", "q8_0")
_LAYER = {
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_AROUND = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}


def main() -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m minigpt_jax.interop.export_gguf", description="Write a run as a GGUF file."
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="file to write, such as model.gguf")
    parser.add_argument(
        "--type",
        choices=TYPES,
        default="f16",
        help="of the matrices; vectors stay f32 (default %(default)s)",
    )
    options = parser.parse_args()
    out = options.out.absolute()
    if out.exists():
        raise InputError(f"{options.out}: exists; choose another name")
    params, config, _ = load_params(options.run)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as place:
        unfinished = Path(place, "whole")
        write(
            unfinished,
            options.run.resolve().name,
            config,
            gpt2.to_gpt2(jax.device_get(params), config),
            options.type,
        )
        unfinished.rename(out)
    print(
        f"{options.out}: {out.stat().st_size / 1e6:,.1f} MB, {options.type}; llama-cli -m {options.out}"
    )
    return 0


def write(
    path: Path, name: str, config: GPTConfig, tensors: dict[str, np.ndarray], kind: str
) -> None:
    """`tensors` (named as transformers names them) and the vocabulary as GGUF; `kind`: one of TYPES."""
    gguf = _package()
    matrix = {
        "f32": gguf.GGMLQuantizationType.F32,
        "f16": gguf.GGMLQuantizationType.F16,
        "q8_0": gguf.GGMLQuantizationType.Q8_0,
    }[kind]
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name(name)
    writer.add_file_type(
        {
            "f32": gguf.LlamaFileType.ALL_F32,
            "f16": gguf.LlamaFileType.MOSTLY_F16,
            "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        }[kind]
    )
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.embed)
    writer.add_feed_forward_length(config.mlp)
    writer.add_block_count(config.layers)
    writer.add_head_count(config.heads)
    writer.add_layer_norm_eps(LAYER_NORM_EPS)
    _add_vocabulary(writer, gguf, config)
    for long, tensor in tensors.items():
        tensor, theirs = tensor.astype(np.float32), tensor_name(long)
        if (
            long.endswith("weight")
            and tensor.ndim == 2
            and not theirs.startswith(("token_embd", "position_embd"))
        ):
            tensor = np.ascontiguousarray(tensor.T)  # llama.cpp keeps matrices [out, in]
        # llama.cpp adds positions in f32; q8_0 packs 32 numbers of a row, so narrow models keep f16.
        wanted = (
            gguf.GGMLQuantizationType.F32
            if tensor.ndim == 1 or theirs.startswith("position_embd")
            else matrix
        )
        if wanted == gguf.GGMLQuantizationType.Q8_0 and tensor.shape[-1] % 32:
            wanted = gguf.GGMLQuantizationType.F16
        writer.add_tensor(theirs, gguf.quants.quantize(tensor, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_name(name: str) -> str:
    """llama.cpp's name of one of transformers' tensors."""
    stem, _, kind = name.removeprefix(gpt2.PREFIX).rpartition(".")
    if stem.startswith("h."):
        _, layer, inner = stem.split(".", 2)
        return f"blk.{layer}.{_LAYER[inner]}.{kind}"
    return f"{_AROUND[stem]}.{kind}"


def _add_vocabulary(writer, gguf, config: GPTConfig) -> None:
    special = vocabulary.special_tokens(config.vocab_size)
    tokens = [*vocabulary.vocabulary(), *sorted(special, key=special.__getitem__)]
    types = [
        gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges()])
    writer.add_bos_token_id(END_OF_TEXT)
    writer.add_eos_token_id(gpt2.stop_tokens(config)[0])
    writer.add_pad_token_id(END_OF_TEXT)
    writer.add_add_bos_token(len(special) == 1)  # the chat template writes it itself
    if len(special) > 1:
        writer.add_eot_token_id(gpt2.stop_tokens(config)[0])
        writer.add_chat_template(vocabulary.CHAT_TEMPLATE)


def _package():
    try:
        import gguf
    except ImportError:
        raise InputError("the gguf package is missing: pip install gguf") from None
    return gguf


if __name__ == "__main__":
    exit_cleanly(main)
