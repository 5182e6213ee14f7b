"""Read and write model folders in Hugging Face's format, which transformers and vLLM load."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import safetensors
from safetensors.flax import load_file
from safetensors.numpy import save_file

from minigpt_jax.architectures import TABLES
from minigpt_jax.errors import InputError
from minigpt_jax.interop import gpt2, nanochat, vocabulary
from minigpt_jax.interop.foreign_vocabulary import known_vocab_size
from minigpt_jax.interop.model_card import model_card
from minigpt_jax.interop.tensors import with_vocab_size
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.runtime.files import errors_name
from minigpt_jax.tokenizer import END_OF_TEXT

# The same defaults as those of `minigpt sample`.
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}
WEIGHT_TYPES = ("F32", "F16", "BF16")
# Endings of the names of tensors that are not weights and may have any type.
BUFFERS = gpt2.MASK_BUFFERS + nanochat.ROTARY_BUFFERS
# Weights in formats that are not read.
OTHER_FORMATS = ("*.bin", "*.h5", "*.msgpack", "*.gguf", "*.ckpt*", "*.pt", "*.pth", "*.onnx")


def write_folder(folder: Path, run: LoadedRun, name: str) -> None:
    """Write weights (safetensors, f32), config, tokenizer, chat template, stop tokens, model card.

    The folder is complete or absent, also after a crash. It must not exist, or be empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        unfinished = Path(temporary, "unfinished")
        unfinished.mkdir()
        _write_files(unfinished, run, name)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)


def _write_files(folder: Path, run: LoadedRun, name: str) -> None:
    config = run.config
    stop_tokens = vocabulary.stop_tokens(config.vocab_size)
    generation_config = SAMPLING | {
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": stop_tokens if len(stop_tokens) > 1 else stop_tokens[0],
        "pad_token_id": END_OF_TEXT,
        # No max_length: transformers would warn at every generate(max_new_tokens=...).
    }
    contents = {
        "config.json": to_config(config),
        "generation_config.json": generation_config,
        "tokenizer.json": vocabulary.tokenizer_json(config.vocab_size),
        "tokenizer_config.json": vocabulary.tokenizer_config(
            config.vocab_size, config.context, stop_tokens[0]
        ),
    }
    for file_name, content in contents.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / file_name).write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(model_card(run, name), encoding="utf-8")
    weights = folder / "model.safetensors"
    save_file(to_tensors(run.params, config), weights, metadata={"format": "pt"})
    # safetensors makes a file that only its owner can read.
    weights.chmod((folder / "config.json").stat().st_mode)


def read_folder(folder: Path) -> tuple[GPTConfig, dict]:
    """Config and weights (f32, on the host) of a model folder, without padding of its vocabulary.

    Raises InputError for missing and damaged files, and for other architectures and tokenizers.
    """
    config = read_config(folder)
    tensors = _read_weights(folder)
    try:
        params = from_tensors(tensors, config)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    tables = [params[name][: config.vocab_size] for name in TABLES if name in params]
    params, config = with_vocab_size(params, config, known_vocab_size(folder, *tables))
    return config, params


def read_config(folder: Path) -> GPTConfig:
    """The model that a folder's config.json describes. Raises InputError, see `read_folder`."""
    return from_config(_read_json(folder / "config.json"))


def to_tensors(params: Mapping, config: GPTConfig) -> dict[str, np.ndarray]:
    """Tensors with the names that transformers has for the model."""
    convert = gpt2.to_gpt2 if config.is_gpt2 else nanochat.to_nanochat
    return convert(params, config)


def from_tensors(tensors: Mapping[str, np.ndarray], config: GPTConfig) -> dict:
    """Our parameters, f32. Raises InputError for tensors that are not those of the model."""
    convert = gpt2.from_gpt2 if config.is_gpt2 else nanochat.from_nanochat
    return convert(tensors, config)


def to_config(config: GPTConfig) -> dict:
    """The content of transformers' config.json."""
    return gpt2.to_gpt2_config(config) if config.is_gpt2 else nanochat.to_nanochat_config(config)


def from_config(fields: Mapping) -> GPTConfig:
    """The model that config.json describes. Raises InputError for one that is not ours."""
    if fields.get("model_type") == "nanochat":
        return nanochat.from_nanochat_config(fields)
    return gpt2.from_gpt2_config(fields)


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of `folder`, in one file or in those of an index.

    Raises InputError where it has both and they differ: programs disagree which of them counts.
    """
    whole = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    tensors = _read_tensors(whole) if whole.is_file() else None
    if not index.is_file():
        if tensors is None:
            raise InputError(_nothing_to_read(folder))
        return tensors
    parts: dict[str, np.ndarray] = {}
    for path in _files_of_index(index):
        parts |= _read_tensors(path)
    if tensors is not None and not _are_equal(tensors, parts):
        raise InputError(
            f"{folder}: {whole.name} and the files of {index.name} hold different weights; "
            "remove those that are not meant"
        )
    return parts


def _files_of_index(index: Path) -> list[Path]:
    weight_map = _read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    # A name with a folder in it could lead outside of the index's folder.
    if not names or not all(isinstance(n, str) and n == Path(n).name for n in names):
        raise InputError(f"{index}: expected a weight_map from tensors to files beside it")
    return [index.parent / name for name in sorted(set(names))]


def _are_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether all tensors are the same, bit for bit."""
    contents = [
        {name: (t.dtype, t.shape, t.tobytes()) for name, t in tensors.items()} for tensors in (a, b)
    ]
    return contents[0] == contents[1]


def _nothing_to_read(folder: Path) -> str:
    found = ""
    others = [name for pattern in OTHER_FORMATS for name in sorted(folder.glob(pattern))]
    if others:
        name = others[0].name
        kind = "a pickle, which can run code" if name.endswith(".bin") else "of another format"
        found = f" ({name} is {kind}: it is not read)"
    if (folder / "adapter_model.safetensors").exists():
        found = " (adapter_model.safetensors holds an adapter: merge it into its model first)"
    return (
        f"{folder}: no model.safetensors{found}. To make one, in transformers: "
        "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
    )


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file.

    Raises InputError for a lost or damaged file and for integer weights, OSError naming a file that
    cannot be read.
    """
    try:
        # safetensors calls whatever prevents opening a file "No such file or directory".
        with errors_name(path), path.open("rb") as opened:
            opened.read(1)
        with safetensors.safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 (the file itself is not iterable)
                dtype = file.get_slice(name).get_dtype()
                if dtype not in WEIGHT_TYPES and not name.endswith(BUFFERS):
                    raise InputError(
                        f"{path}: tensor {name} is {dtype}, expected {', '.join(WEIGHT_TYPES[:-1])}"
                        f" or {WEIGHT_TYPES[-1]}: convert it, in transformers: "
                        "model.float().save_pretrained(folder)"
                    )
        # Through JAX, because numpy alone does not know bfloat16.
        with jax.default_device(_cpu_or_first_device()):
            return {name: np.asarray(tensor) for name, tensor in load_file(path).items()}
    except (safetensors.SafetensorError, FileNotFoundError) as error:
        raise InputError(f"{path}: cannot be read ({error}): fetch it again") from None


def _cpu_or_first_device():
    try:
        return jax.local_devices(backend="cpu")[0]
    # JAX_PLATFORMS=cuda leaves out the CPU.
    except RuntimeError:
        return jax.local_devices()[0]


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object, found {type(content).__name__}")
    return content
