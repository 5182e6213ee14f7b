"""Train a GPT: python train.py --config configs/pretrain.py

The whole story in the order it happens: parse, build, resume or begin, fold, log, save. Pretraining and finetuning
differ in their config alone, and the command that starts a run also continues it.
"""

from minigpt_jax.runtime.interrupt import Interrupt

if (
    __name__ == "__main__"
):  # before JAX and everything else that takes long: a machine may be taken away at any time
    interrupt = Interrupt()

import sys

from minigpt_jax.config import config_diff, horizon_steps, parse, to_json
from minigpt_jax.errors import InputError, RunError, exit_on_error
from minigpt_jax.evals import hellaswag
from minigpt_jax.runtime.files import write_json
from minigpt_jax.token_stream import Stream, open_splits

if (
    __name__ == "__main__"
):  # still before JAX: nobody should wait for it to learn of a wrong flag or a damaged file
    asked = exit_on_error(lambda: parse(sys.argv))
    given = exit_on_error(
        lambda: open_splits(
            asked.data.folder,
            asked.model.vocab_size,
            asked.model.context,
            packed=asked.data.isolate_documents,
        )
    )
    asking = asked.eval.hellaswag and asked.eval.hellaswag_every
    questions = exit_on_error(
        lambda: (
            hellaswag.load(asked.eval.hellaswag, asked.model.context, asked.eval.hellaswag_rows)
            if asking
            else []
        )
    )

import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax

from minigpt_jax import chat, data, generate, memory, optim, runs
from minigpt_jax.attention import attention_kernel
from minigpt_jax.checkpoint import Checkpoints, load_params
from minigpt_jax.evals import bits, scoring
from minigpt_jax.model import GPT, GPTConfig, grow_vocab, resolve_compute_dtype
from minigpt_jax.runtime.compilation_cache import enable_compilation_cache
from minigpt_jax.runtime.distributed import (
    broadcast_from_main,
    is_main_process,
    join_processes,
    min_over_processes,
    should_stop,
)
from minigpt_jax.runtime.failpoint import failpoint
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.sampling import sampling_params
from minigpt_jax.sharding import (
    batch_sharding,
    check_divides,
    data_parallel_size,
    make_mesh,
    replicated,
)
from minigpt_jax.step import (
    Batch,
    TrainState,
    abstract_state,
    init_state,
    make_eval_step,
    make_train_step,
)
from minigpt_jax.tokenizer import CHAT_VOCAB, END_OF_TEXT, load_tokenizer
from minigpt_jax.tracking.environment import describe_environment
from minigpt_jax.tracking.report import write_report
from minigpt_jax.tracking.run_log import RunLog


def train(
    c,
    text: Stream,
    held_out: Stream,
    questions: Sequence[hellaswag.Question] = (),
    stop_requested: Callable[[], bool] = lambda: False,
) -> None:
    """Run the config `c` to its horizon on `text`, from wherever it stands. Raises InputError and RunError."""
    # ---- devices
    prepare_jax(c)
    main_process = is_main_process()
    mesh = make_mesh(**c.mesh)
    sharding = batch_sharding(mesh)

    # ---- the model
    config = GPTConfig(**c.model)
    model = GPT(config, **c.compute)
    check_divides(
        mesh,
        {
            "embed": config.embed,
            "heads": config.heads,
            "mlp": config.mlp,
            "vocab": config.padded_vocab,
        },
    )
    accum = parts_of_batch(c, config, mesh)

    # ---- the step
    horizon = horizon_steps(
        c.data.batch, config.context, data.row_count(text, config.context), **c.horizon
    )
    if c.schedule.warmup > horizon:
        raise InputError(
            f"schedule.warmup {c.schedule.warmup} is longer than the whole run of {horizon} steps"
        )
    optimizer = optim.make_optimizer(**c.optimizer)
    schedule = partial(optim.learning_rate, horizon=horizon, **c.schedule)
    how = {
        "loss_chunk": c.loss.chunk,
        "separator": END_OF_TEXT if c.data.isolate_documents else None,
    }
    train_step = make_train_step(model, optimizer, schedule, mesh, seed=c.seed, **how)
    eval_step = make_eval_step(model, mesh, **how)

    run = runs.run_folder(Path(c.runs), c.name)
    run.mkdir(parents=True, exist_ok=True)
    with (
        runs.lock(run) if main_process else nullcontext(),
        Checkpoints(run, keep=c.save.keep) as checkpoints,
    ):
        # ---- where to begin
        abstract = abstract_state(model, optimizer, mesh)
        accept = partial(refuse_changes, c, text=text, run=run)
        resumed = None if c.fresh else checkpoints.restore(abstract, config, accept)
        if resumed:  # 1. this run's newest checkpoint that verifies
            state, meta = resumed
            origin = f"goes on from step {meta['step']}"
        else:
            state = init_state(model, optimizer, c.seed, mesh)
            origin = "begins with fresh weights"  # 3. fresh weights
            if c.init_from:  # 2. the weights of another run
                state = state.replace(
                    params=weights_of(Path(c.init_from), config, abstract.params, mesh)
                )
                origin = f"begins with the weights of {c.init_from}"
            checkpoints.clear()
        begin = int(state.step)
        evaluated, reported = broadcast_from_main(
            on_record(run, begin) if resumed else [False, False]
        )
        if begin >= horizon and evaluated and reported:
            if main_process:
                print(
                    f"{run}: all {horizon} steps are done. For a longer run, raise what config.horizon gives"
                )
            return

        # ---- what is written down
        journal = RunLog(
            run,
            start=begin,
            horizon=horizon,
            every=c.log.every,
            tensorboard=c.log.tensorboard,
            main_process=main_process,
            tokens_per_step=c.data.batch * config.context,
            flops_per_step=c.data.batch * config.context * config.flops_per_token,
        )
        settings = json.loads(to_json(c))
        if main_process:
            write_json(run / "config.json", settings)
            write_json(run / "environment.json", describe_environment())
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind} in {c.compute.dtype}"
        journal.say(
            f"{run}: {config.parameters:,} parameters on {devices}; {horizon} steps of {c.data.batch} x {config.context} tokens; {origin}"
        )
        abandon = (
            stop_requested if jax.process_count() == 1 else lambda: False
        )  # several leave an evaluation together or not at all
        evaluate = partial(
            evaluation,
            eval_step=eval_step,
            streams=(text, held_out),
            questions=questions,
            horizon=horizon,
            c=c,
            config=config,
            mesh=mesh,
        )
        stop = should_stop(stop_requested, begin)
        if not (evaluated or stop) and (begin % c.eval.every == 0 or begin >= horizon):
            if record := evaluate(begin, state, abandon):
                journal.evaluation(record)
            else:
                stop = True

        # ---- the fold: state, metrics = step(state, batch_at(step))
        batches = data.device_batches(
            text,
            seed=c.seed,
            steps=range(begin, horizon),
            batch=c.data.batch,
            context=config.context,
            accum=accum,
            sharding=sharding,
        )
        unread, done = None, begin
        journal.start_clock()
        for step in range(begin, begin if stop else horizon):
            with journal.waiting():
                rows, batch = next(batches)
            state, result = train_step(state, Batch(*batch))
            if unread:  # look at the step before while this one runs
                checkpoints.wait()  # no step is on record before the save before it: a kill costs one interval at most
                journal.step(*unread)
            unread = (step, data.batch_hash(text, rows), result)
            profile(c, run, step - begin)
            failpoint("after_step", step)

            done, validation_loss = step + 1, None
            stop = should_stop(stop_requested, done)
            evaluate_now = not stop and (done % c.eval.every == 0 or done == horizon)
            save_now = stop or done % c.save.every == 0 or done == horizon
            if evaluate_now or save_now:  # a checkpoint's steps are on record before it is
                checkpoints.wait()
                journal.step(*unread)
                unread = None
            if evaluate_now:
                if record := evaluate(done, state, abandon):
                    journal.evaluation(record)
                    validation_loss = record["validation_loss"]
                else:  # we were told to stop meanwhile: the resumed run makes up for it
                    stop = save_now = True
            if save_now:
                checkpoints.save(
                    state,
                    done,
                    {
                        "model": asdict(config),
                        "config": settings,
                        "data": text.identity,
                        "validation_loss": validation_loss,
                    },
                )
            if evaluate_now or save_now:
                journal.start_clock()
            if stop:
                break

        # ---- the end
        batches.close()
        if c.profile and 5 < done - begin <= 15:
            jax.profiler.stop_trace()
        checkpoints.close()
        journal.close()
        if main_process:
            page = write_report(run)
            journal.say(f"report: {page}")
        if done < horizon:
            again = "the same command, without --config.fresh," if c.fresh else "the same command"
            journal.say(
                f"stopped after step {done} of {horizon}; everything is saved. To go on, run {again} again"
            )
        else:
            journal.say(
                f"all {horizon} steps are done. Try the model: python sample.py --run {run}"
            )


def prepare_jax(c) -> None:
    """What must be settled before the first array: processes, determinism, where compiled programs are kept, and the precision of products."""
    if c.deterministic:
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
        )
    join_processes()
    enable_compilation_cache(Path(c.runs))
    c.compute.dtype = resolve_compute_dtype(c.compute.dtype)  # on record as what it is
    if jax.default_backend() == "cpu" and Path("/proc/driver/nvidia/version").exists():
        print(
            "warning: this machine has an NVIDIA GPU that JAX does not see; install its plugin with: make install CUDA=1",
            file=sys.stderr,
        )


def parts_of_batch(c, config: GPTConfig, mesh: jax.sharding.Mesh) -> int:
    """Number A of micro-batches that the global batch is cut into."""
    shards = data_parallel_size(mesh)
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    known = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")

    settings = memory.StepSettings(
        dtype=c.compute.dtype,
        remat=c.compute.remat,
        keeps_scores=attention_kernel(c.compute.attention, c.compute.dtype, mesh.size) == "xla",
        loss_chunk=c.loss.chunk,
        on_cpu=jax.default_backend() == "cpu",
        parameter_shards=fsdp * tensor,
        tensor_shards=tensor,
    )

    def bytes_of(rows: int) -> float:
        steps = c.data.batch // shards // rows
        return memory.step_memory(config, settings, rows=rows, accumulation_steps=steps).total

    # All processes must choose the same micro-batch.
    room = min_over_processes(known or memory.host_bytes() / jax.local_device_count())
    return memory.accumulation_steps(
        c.data.batch, shards, micro_batch=c.data.micro_batch, device_bytes=room, bytes_of=bytes_of
    )


def refuse_changes(c, meta: dict, *, text: Stream, run: Path) -> None:
    """A resumed run is the same run: what shapes its mathematics may change only when the user says so."""
    differing = config_diff(meta["config"], c)
    if meta["data"] != text.identity:
        differing.append(
            f"the data: {c.data.folder} does not hold the training tokens that the run began with"
        )
    if differing and not c.accept_changes:
        raise InputError(
            f"{run} was begun with other settings ({'; '.join(differing)}). Set them back, choose another --config.name, "
            "or insist with --config.accept_changes=True"
        )


def on_record(run: Path, step: int) -> list[bool]:
    """Whether the evaluation after `step` steps has been made, and whether the report is younger than that checkpoint."""
    page, checkpoint = run / "report.html", run / "checkpoints" / str(step)
    evaluated = any(record["step"] == step for record in read_jsonl(run / "evaluations.jsonl"))
    return [evaluated, page.exists() and page.stat().st_mtime >= checkpoint.stat().st_mtime]


def weights_of(source: Path, config: GPTConfig, target, mesh: jax.sharding.Mesh) -> dict:
    """The weights of another run as the start of this one, with rows for new vocabulary, placed like `target`."""
    params, theirs, _ = load_params(source, replicated(mesh))
    free = ("vocab_size", "dropout")
    differing = [
        f"{k} {v} -> {asdict(config)[k]}"
        for k, v in asdict(theirs).items()
        if k not in free and v != asdict(config)[k]
    ]
    if differing or config.vocab_size < theirs.vocab_size:
        raise InputError(
            f"init_from {source}: another model ({', '.join(differing) or 'a larger vocabulary'}): set config.model to match it"
        )
    return jax.device_put(
        grow_vocab(params, theirs.vocab_size, config), jax.tree.map(lambda a: a.sharding, target)
    )


def evaluation(
    done: int,
    state: TrainState,
    abandon: Callable[[], bool],
    *,
    eval_step,
    streams: tuple[Stream, Stream],
    questions,
    horizon: int,
    c,
    config,
    mesh,
) -> dict | None:
    """Record of an evaluation: mean loss on fixed rows of the training and the held-out text, HellaSwag where it is due, and samples.

    Every process takes part; the rows depend neither on seed nor step. None when there is no time for it: `abandon` is
    asked again and again, and a resumed run makes up for it.
    """
    failpoint("during_evaluation", done)
    shards = data_parallel_size(mesh)
    how = {
        "rows": c.eval.rows,
        "batch": (c.data.micro_batch or min(c.data.batch // shards, 8)) * shards,
        "context": config.context,
    }
    record: dict = {"step": done}
    for name, stream in zip(("train_loss", "validation_loss"), streams, strict=True):
        found = bits.measure(state.params, stream, eval_step, mesh, abandon=abandon, **how)
        if found is None:
            return None
        record |= {name: found.loss, "bits_per_byte": found.bits_per_byte}
    every = (
        c.eval.hellaswag_every
    )  # the first evaluation after each of its multiples, and the last of the run
    if questions and every and (done % every < c.eval.every or done == horizon):
        record["hellaswag"] = hellaswag.accuracy(
            questions,
            partial(
                scoring.score, state.params, config, mesh, dtype=c.compute.dtype, abandon=abandon
            ),
        )
    record["samples"] = (
        [] if abandon() else write_samples(state.params, c.eval, config, mesh, abandon)
    )
    return None if abandon() else record


def write_samples(
    params, settings, config: GPTConfig, mesh, abandon: Callable[[], bool]
) -> list[dict]:
    """What the model makes of the first `settings.samples` prompts, with fixed seeds: [{"prompt", "text"}]."""
    prompts = list(settings.prompts)[: settings.samples]
    if not prompts:
        return []
    tokenizer = load_tokenizer()
    whole = jax.jit(lambda p: p, out_shardings=replicated(mesh))(params)
    writer = generate.Generator(whole, config, tokenizer, rows=len(prompts))
    if config.vocab_size >= CHAT_VOCAB:
        ids = [chat.prompt([{"role": "user", "content": p}], tokenizer) for p in prompts]
    else:
        ids = [[END_OF_TEXT, *tokenizer.encode(p)] for p in prompts]
    ids = [i[: config.context] for i in ids]
    for _ in writer.stream(
        ids,
        sampling_params(len(ids), config, temperature=0.7, top_p=0.9),
        max_new_tokens=settings.sample_tokens,
    ):
        if abandon():
            break
    return [{"prompt": p, "text": a.text} for p, a in zip(prompts, writer.completions, strict=True)]


def profile(c, run: Path, step: int) -> None:
    """Trace ten steps of this process, once compilation is behind it; `step` counts from its first."""
    if c.profile and step == 5:
        jax.profiler.start_trace(str(run / "profile"))
    if c.profile and step == 15:
        jax.profiler.stop_trace()


def main() -> None:
    """Train as the command line says."""
    try:
        train(asked, *given, questions, stop_requested=lambda: interrupt.requested)
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized():
            raise
        raise RunError(
            f"another process of this run has gone, or cannot be reached ({str(error).splitlines()[0]})"
        ) from error


if __name__ == "__main__":
    exit_on_error(main, hard=True)
