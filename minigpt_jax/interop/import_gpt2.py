"""Make a run of GPT-2 weights in Hugging Face's format: to finetune (`init_from`), to talk to, to evaluate.

    python -m minigpt_jax.interop.import_gpt2 --source openai-community/gpt2 --out runs/gpt2

The source is a hub id (with "@revision" if wanted) or a folder with config.json and model.safetensors, in one file or in
several with an index. Any size of GPT-2 will do, and what export_hf wrote.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.flax import load_file

from minigpt_jax.checkpoint import Checkpoints
from minigpt_jax.errors import InputError, exit_cleanly
from minigpt_jax.interop.gpt2 import from_config, from_gpt2
from minigpt_jax.model import GPTConfig
from minigpt_jax.runs import checkpoint_steps, lock
from minigpt_jax.step import TrainState


def main() -> int:
    """Read, check, write a run with one checkpoint, of step 0."""
    parser = argparse.ArgumentParser(
        prog="python -m minigpt_jax.interop.import_gpt2",
        description="Make a run of GPT-2 weights in Hugging Face's format.",
    )
    parser.add_argument(
        "--source", required=True, help="hub id, such as openai-community/gpt2-medium, or a folder"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the new run, such as runs/gpt2"
    )
    options = parser.parse_args()
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"{options.out}: is a file; choose another name")
    refuse_a_run(options.out)
    config, params = read_gpt2(fetch(options.source))
    options.out.mkdir(parents=True, exist_ok=True)
    with lock(options.out):
        refuse_a_run(options.out)  # another import may have been faster
        write_run(options.out, config, params, options.source)
    print(
        f"{options.out}: GPT-2 with {config.parameters:,} parameters, {config.vocab_size:,} token ids, context {config.context}"
    )
    print(f"talk to it:  python sample.py --run {options.out}")
    sizes = " ".join(
        f"--config.model.{name}={getattr(config, name)}"
        for name in ("context", "layers", "heads", "embed")
    )
    print(
        f"finetune it: python train.py --config configs/finetune.py --config.init_from={options.out} {sizes}"
    )
    return 0


def refuse_a_run(out: Path) -> None:
    """Raise InputError where `out` has checkpoints."""
    if checkpoint_steps(out):
        raise InputError(f"{out}: holds a run already; choose another folder")


def fetch(source: str) -> Path:
    """The folder that `source` names, downloaded where it is a hub id. Raises InputError where there is none."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    name, _, revision = source.partition("@")
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=["config.json", "*.safetensors", "*.safetensors.index.json"],
            )
        )
    except Exception as error:  # the hub's own, and those of whichever HTTP library it uses
        reason = next(
            (line for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise InputError(
            f"{source}: no such folder, and the hub does not give it ({reason}). A local folder with config.json and model.safetensors will do"
        ) from None


def read_gpt2(folder: Path) -> tuple[GPTConfig, dict]:
    """Config and weights (f32, on the host) of a folder. Raises InputError for missing, damaged and foreign files."""
    config = from_config(_json(folder / "config.json"))
    tensors: dict[str, np.ndarray] = {}
    for path in _weight_files(folder):
        tensors |= _read(path)
    try:
        return config, from_gpt2(tensors, config)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def _read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file. Raises InputError for a damaged file and for types that are no weights of a GPT-2."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 (the file itself cannot be iterated)
                kind = file.get_slice(name).get_dtype()
                if kind not in ("F32", "F16", "BF16") and not name.endswith(
                    (".attn.bias", ".attn.masked_bias")
                ):
                    raise InputError(f"{path}: tensor {name} is {kind}, expected F32, F16 or BF16")
        with jax.default_device(
            jax.local_devices(backend="cpu")[0]
        ):  # through JAX: numpy alone does not know bfloat16
            return {name: np.asarray(tensor) for name, tensor in load_file(path).items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}): fetch it again") from None


def write_run(run: Path, config: GPTConfig, params: dict, source: str) -> None:
    """A run whose one checkpoint, of step 0, holds these weights and no optimizer."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32), params=jax.tree.map(jnp.asarray, params), opt_state=()
    )
    with Checkpoints(run, keep=1) as checkpoints:
        checkpoints.save(
            state,
            0,
            {
                "model": asdict(config),
                "config": {},
                "data": f"imported from {source}",
                "validation_loss": None,
            },
        )
        checkpoints.close()


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = _json(index).get("weight_map")
        if (
            not isinstance(names, dict)
            or not names
            or not all(isinstance(n, str) and n == Path(n).name for n in names.values())
        ):
            raise InputError(f"{index}: expected a weight_map from tensors to files beside it")
        return [folder / name for name in sorted(set(names.values()))]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    more = (
        "; pytorch_model.bin can run code when it is read, and is not"
        if (folder / "pytorch_model.bin").exists()
        else ""
    )
    raise InputError(
        f"{folder}: no model.safetensors{more}. In transformers: model.save_pretrained(folder)"
    )


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except ValueError as error:
        raise InputError(f"{path}: no JSON ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected an object, found {type(found).__name__}")
    return found


if __name__ == "__main__":
    exit_cleanly(main)
