"""Train a GPT: python train.py --config configs/pretrain.py

In the order in which things happen: check the input, build the model and the step, resume or
initialise, train, record, save. Pretraining and finetuning differ only in their config. The command
that starts a run also resumes it.
"""

from minigpt_jax.preflight import Preflight, preflight

if __name__ == "__main__":
    # Install the signal handlers and check flags and data. This happens before the imports below,
    # which take seconds: JAX is not needed to find a wrong flag, and the machine may be taken away
    # at any time.
    checked = preflight()

import sys
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax

from minigpt_jax import config, optim, runs
from minigpt_jax.architectures import make_model
from minigpt_jax.checkpoint import Checkpoints
from minigpt_jax.data import Batches, row_count
from minigpt_jax.errors import EvaluationStopped, InputError, RunError
from minigpt_jax.evals.evaluator import EvalSettings, Evaluator
from minigpt_jax.hardware import resolve_compute_dtype
from minigpt_jax.interop.push import Push
from minigpt_jax.micro_batch import choose_micro_batches
from minigpt_jax.mixture import describe_sources, identity
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.resume import (
    Done,
    already_done,
    initial_params_from,
    pinned,
    recorded_config,
    refuse_changes,
)
from minigpt_jax.runtime.distributed import (
    broadcast_from_main,
    is_main_process,
    should_stop,
)
from minigpt_jax.runtime.failpoint import failpoint
from minigpt_jax.runtime.files import shell_word, write_json
from minigpt_jax.runtime.program import exit_on_error
from minigpt_jax.runtime.startup import prepare_jax
from minigpt_jax.sharding import batch_sharding, check_divides, data_parallel_size, make_mesh
from minigpt_jax.step import abstract_state, init_state, make_eval_step, make_train_step
from minigpt_jax.tokenizer import END_OF_TEXT
from minigpt_jax.tracking.environment import describe_environment
from minigpt_jax.tracking.profile import Profile
from minigpt_jax.tracking.report import try_report
from minigpt_jax.tracking.run_log import RunLog


def train(checked: Preflight) -> int:
    """Train from the newest checkpoint to the horizon, which is the number of steps of the run.

    Returns the exit code. Raises InputError and RunError.
    """
    # ---- devices and settings
    prepare_jax(Path(checked.config.runs), deterministic=checked.config.deterministic)
    main_process = is_main_process()
    run = runs.run_folder(Path(checked.config.runs), checked.config.name)
    recorded = None if checked.config.fresh else broadcast_from_main(recorded_config(run))
    c = config.settings_for_resume(checked.config, checked.named_fields, recorded)
    # The checkpoint records what "auto" means here: it may be another one on another machine.
    c.compute.dtype = resolve_compute_dtype(c.compute.dtype)
    if recorded is None:
        # A hub id gets its commit, so that it means the same weights when the run is resumed.
        c.init_from = pinned(c.init_from)
    recorded_settings = config.to_json(c)
    mesh = make_mesh(**c.mesh)

    # ---- the model
    model_config = GPTConfig(**c.model)
    model = make_model(model_config, **c.compute)
    check_divides(mesh.shape, model_config.dimensions)
    micro_batches = choose_micro_batches(
        model_config,
        mesh,
        c.compute,
        batch=c.data.batch,
        micro_batch=c.data.micro_batch,
        loss_chunk=c.loss.chunk,
        optimizer=c.optimizer.kind,
    )
    context = model_config.context
    tokens_per_step = c.data.batch * context

    # ---- the step
    rows = sum(row_count(source.train, context) for source in checked.sources)
    horizon = config.horizon_steps(c.data.batch, context, rows, **c.horizon)
    if c.schedule.warmup > horizon:
        raise InputError(
            f"schedule.warmup {c.schedule.warmup} is longer than the whole run of {horizon} steps"
        )
    optimizer = optim.make_optimizer(**c.optimizer, dtype=c.compute.dtype)
    schedule = partial(optim.learning_rate, horizon=horizon, **c.schedule)
    losses = {
        "loss_chunk": c.loss.chunk,
        "separator": END_OF_TEXT if c.data.isolate_documents else None,
    }
    train_step = make_train_step(
        model,
        optimizer,
        schedule,
        mesh,
        seed=c.seed,
        scatter_each=micro_batches.scatter_each,
        **losses,
    )
    eval_step = make_eval_step(model, mesh, **losses)

    run.mkdir(parents=True, exist_ok=True)
    with (
        runs.lock(run) if main_process else nullcontext(),
        Checkpoints(run, keep=c.save.keep) as checkpoints,
    ):
        # ---- where to begin
        data_identity = identity(checked.sources)
        abstract = abstract_state(model, optimizer, mesh)
        check_unchanged = partial(refuse_changes, run, recorded_settings, data_identity)
        restored = None if c.fresh else checkpoints.restore(abstract, model_config, check_unchanged)
        if restored:
            # 1. the newest checkpoint of this run that verifies
            state, meta = restored
            origin = f"resumes from step {meta['step']}"
        elif c.init_from:
            # 2. the weights of another run, or of the hub
            state = init_state(model, optimizer, c.seed, mesh)
            params = initial_params_from(c.init_from, model_config, abstract.params, mesh)
            state = state.replace(params=params)
            origin = f"starts with the weights of {c.init_from}"
        else:
            # 3. fresh weights
            state = init_state(model, optimizer, c.seed, mesh)
            origin = "starts with fresh weights"
        if c.fresh:
            # The next command would resume from the old ones.
            checkpoints.set_aside()
        begin = int(state.step)
        done = Done(evaluated=False, reported=False)
        if restored:
            done = Done(*broadcast_from_main(already_done(run, begin)))
        if begin >= horizon and done.evaluated and done.reported:
            if main_process:
                print(f"{run}: all {horizon} steps are done. To train longer, raise config.horizon")
            return 0

        # ---- records
        run_log = RunLog(
            run,
            start=begin,
            horizon=horizon,
            main_process=main_process,
            tokens_per_step=tokens_per_step,
            flops_per_step=tokens_per_step * model_config.flops_per_token,
            **c.log,
        )
        if main_process:
            write_json(run / "config.json", recorded_settings)
            write_json(run / "data.json", describe_sources(checked.sources, context, c.data.batch))
            write_json(run / "environment.json", describe_environment())
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        run_log.say(
            f"{run}: {model_config.parameters:,} parameters on {devices} in {c.compute.dtype}; "
            f"{horizon} steps of {c.data.batch} x {context} tokens; {origin}"
        )
        # Names the waits of the devices, so that the rates of the run are those of its steps.
        clock = run_log.clock
        profile = Profile(run / "profile", enabled=c.profile)
        push = Push(run, c.save.push if main_process else "", run_log.say)

        # ---- evaluation
        data_parallel = data_parallel_size(mesh)
        # The memory of an evaluation is not planned, so the automatic number of rows is small.
        rows_per_device = c.data.micro_batch or min(c.data.batch // data_parallel, 8)
        evaluator = Evaluator(
            EvalSettings(**c.eval),
            model_config,
            mesh,
            eval_step,
            dtype=c.compute.dtype,
            batch=rows_per_device * data_parallel,
            horizon=horizon,
            sources=checked.sources,
            questions=checked.questions,
            # Several processes must all finish an evaluation or all stop it.
            stop_requested=checked.stop_requested if jax.process_count() == 1 else lambda: False,
        )
        stop = should_stop(checked.stop_requested, begin)
        if evaluator.due(begin) and not (done.evaluated or stop):
            try:
                with clock.pause("evaluation"):
                    record = evaluator.evaluate(begin, state.params)
                run_log.evaluation(record)
            except EvaluationStopped:
                stop = True

        # ---- training loop
        batches = Batches(
            checked.sources,
            batch_sharding(mesh),
            seed=c.seed,
            batch=c.data.batch,
            accumulation=micro_batches.number,
            context=context,
            horizon=horizon,
            waiting=partial(clock.pause, "data"),
        )
        steps_done = begin
        # The step whose metrics are not recorded yet: (number, hash of its batch, metrics).
        pending = None
        timed_step = clock.timed(train_step)
        for step in range(begin, begin if stop else horizon):
            state, metrics = timed_step(state, batches.at(step))
            if pending:
                # The devices compute this step while the metrics of the step before are read. A
                # step's metrics are recorded only after the save before it is on disk, so a kill
                # loses at most one save interval.
                with clock.pause("save"):
                    checkpoints.wait()
                run_log.step(*pending)
            pending = (step, batches.hash(step), metrics)
            profile.after_step(step - begin)
            # Does nothing, unless a test asks for a kill here.
            failpoint("after_step", step)

            steps_done = step + 1
            validation_loss = None
            stop = should_stop(checked.stop_requested, steps_done)
            evaluate_now = not stop and evaluator.due(steps_done)
            save_now = stop or steps_done % c.save.every == 0 or steps_done == horizon
            if evaluate_now or save_now:
                # All steps of a checkpoint are recorded before the checkpoint is saved.
                with clock.pause("save"):
                    checkpoints.wait()
                run_log.step(*pending)
                pending = None
            if evaluate_now:
                try:
                    with clock.pause("evaluation"):
                        record = evaluator.evaluate(steps_done, state.params)
                    run_log.evaluation(record)
                    validation_loss = record["validation_loss"]
                except EvaluationStopped:
                    # The resumed run repeats this evaluation.
                    stop = save_now = True
            if save_now:
                meta = {
                    "model": asdict(model_config),
                    "config": recorded_settings,
                    "data": data_identity,
                    "validation_loss": validation_loss,
                }
                with clock.pause("save"):
                    checkpoints.save(state, steps_done, meta)
                push.start(steps_done)
            if stop:
                break

        # ---- the end
        batches.close()
        profile.close()
        # Before the report, which must be newer than the last checkpoint: see already_done.
        checkpoints.close()
        report, problem = try_report(run) if main_process else (None, None)
        if report:
            run_log.say(f"report: {report}")
        without = " without --config.fresh" if c.fresh else ""
        exit_code = c.interrupted_exit_code
        if steps_done < horizon:
            saved = "everything is saved" if steps_done else "there was nothing to save"
            if c.fresh and any(run.glob("checkpoints/replaced-*")):
                saved += " (the checkpoints before it are kept as checkpoints/replaced-<step>)"
            run_log.say(
                f"stopped after step {steps_done} of {horizon}; {saved}. "
                f"To continue, run the same command{without} again"
            )
        elif stop and not (begin >= horizon and done.evaluated):
            run_log.say(
                f"all {horizon} steps are done, but the last evaluation is missing. "
                f"To make it, run the same command{without} again"
            )
        else:
            exit_code = 0
            run_log.say(
                f"all {horizon} steps are done. Try the model: "
                f"python sample.py --run {shell_word(run)}"
            )
        if problem:
            # After the ending, which it does not change: the training is as good as ever.
            print(f"warning: {problem}", file=sys.stderr)
        push.finish(stop, checked.stop_requested)
        run_log.close()
    return exit_code


def main() -> int:
    """Train as the command line says; returns the exit code."""
    try:
        return train(checked)
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized() or "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise RunError(
            f"another process of this run may have ended, or cannot be reached ({reason})"
        ) from error


if __name__ == "__main__":
    # Hard: after an error, waiting for Orbax's threads or for other processes could take forever.
    sys.exit(exit_on_error(main, hard=True))
