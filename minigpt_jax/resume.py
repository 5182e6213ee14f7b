"""How a run begins: from its own checkpoints, or with the weights of another run or of the hub."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import jax

from minigpt_jax.architectures import grow_vocab
from minigpt_jax.checkpoint import load_params
from minigpt_jax.checkpoint_meta import read_meta
from minigpt_jax.config import config_diff
from minigpt_jax.errors import DamageError, InputError
from minigpt_jax.interop import hub
from minigpt_jax.interop.hugging_face import read_config, read_folder
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime.distributed import broadcast_from_main, is_main_process
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.sharding import replicated


class Done(NamedTuple):
    """What exists already for the step that a run resumes from."""

    evaluated: bool
    # Whether the report is as new as the checkpoint.
    reported: bool


def already_done(run: Path, step: int) -> Done:
    """What the files of `run` hold for its checkpoint of `step`."""
    report = run / "report.html"
    checkpoint = run / "checkpoints" / str(step)
    evaluations = read_jsonl(run / "evaluations.jsonl")
    return Done(
        evaluated=any(record["step"] == step for record in evaluations),
        reported=report.exists() and report.stat().st_mtime >= checkpoint.stat().st_mtime,
    )


def recorded_config(run: Path) -> dict | None:
    """The config in the newest undamaged checkpoint of `run`; None where there is none."""
    for step in reversed(checkpoint_steps(run)):
        # A damaged checkpoint is skipped silently: restoring it reports what is wrong.
        with suppress(DamageError, InputError):
            return read_meta(run, step)["config"]
    return None


def refuse_changes(run: Path, settings: dict, data_identity: str, meta: dict) -> None:
    """Raise InputError where the checkpoint with `meta` had other settings or other data.

    The setting `accept_changes` allows other settings and other data.
    """
    differing = config_diff(meta["config"], settings)
    if meta["data"] != data_identity:
        before = meta["config"]["data"].get("mixture", "")
        mixture = settings["data"]["mixture"]
        if mixture == before:
            where = mixture or settings["data"]["folder"]
            differing.append(f"the data: {where} does not hold the training tokens of this run")
        else:
            differing.append(f"data.mixture: {before!r} -> {mixture!r}")
    if differing and not settings["accept_changes"]:
        raise InputError(
            f"{run} was started with other settings ({'; '.join(differing)}). Set them back, "
            "choose another --config.name, or accept them with --config.accept_changes=True"
        )


def pinned(init_from: str) -> str:
    """`init_from`; a hub id with the commit that it means now, the same on all processes.

    All of them must call it. Raises InputError for a model that the hub does not have, or that is
    not ours.
    """
    if is_main_process() and hub.is_hub_id(init_from):
        _, commit = _config_on_hub(init_from)
        init_from = f"{init_from.partition('@')[0]}@{commit}"
    return broadcast_from_main(init_from)


def initial_params_from(
    source: str, config: GPTConfig, abstract_params, mesh: jax.sharding.Mesh
) -> dict:
    """The weights of `source` for a model of `config`, placed like `abstract_params`.

    `source`: the folder of a run, or a hub id, which each process then downloads. A larger
    vocabulary gets new rows. Raises InputError for other differences of the models, except in what
    has no weights: dropout, and the context of a NanoChat.
    """
    if hub.is_hub_id(source):
        # Before the weights are fetched, which may be large.
        _refuse_another_model(source, _config_on_hub(source)[0], config)
        saved, arrays = _read_from_hub(source)
        params = jax.device_put(arrays, replicated(mesh))
    else:
        params, saved, _ = load_params(Path(source), replicated(mesh))
        _refuse_another_model(source, saved, config)
    if config.vocab_size < saved.vocab_size:
        raise InputError(
            f"init_from {source}: its vocabulary is larger ({saved.vocab_size} -> "
            f"{config.vocab_size}): set config.model.vocab_size to match it"
        )
    shardings = jax.tree.map(lambda array: array.sharding, abstract_params)
    return jax.device_put(grow_vocab(params, saved.vocab_size, config), shardings)


def _refuse_another_model(source: str, saved: GPTConfig, config: GPTConfig) -> None:
    """Raise InputError where weights of the model `saved` do not fit `config`."""
    wanted = asdict(config)
    may_differ = ("vocab_size", "dropout", *([] if config.is_gpt2 else ["context"]))
    differing = [
        f"{name} {value} -> {wanted[name]}"
        for name, value in asdict(saved).items()
        if name not in may_differ and value != wanted[name]
    ]
    if differing:
        raise InputError(
            f"init_from {source}: it holds another model ({', '.join(differing)}): "
            "set config.model to match it"
        )


def _config_on_hub(source: str) -> tuple[GPTConfig, str]:
    """The model of a hub id, and its commit."""
    folder = hub.download(source, ["config.json"])
    with _named(source):
        return read_config(folder), folder.name


def _read_from_hub(source: str) -> tuple[GPTConfig, dict]:
    folder = hub.download(source)
    with _named(source):
        return read_folder(folder)


@contextmanager
def _named(source: str) -> Iterator[None]:
    """What is wrong with a downloaded folder is reported with the id that was given."""
    try:
        yield
    except InputError as error:
        raise InputError(f"init_from {source}: {error}") from None
