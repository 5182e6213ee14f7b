"""What a run measures while it trains: losses on fixed rows, HellaSwag, and sampled texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax

from minigpt_jax import chat
from minigpt_jax.errors import EvaluationStopped
from minigpt_jax.evals import bits, hellaswag, scoring
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.mixture import Source
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.runtime.failpoint import failpoint
from minigpt_jax.sampling import sampling_params
from minigpt_jax.sharding import replicated
from minigpt_jax.token_stream import Stream
from minigpt_jax.tokenizer import load_tokenizer

TEMPERATURE = 0.7
TOP_P = 0.9


class EvalSettings(NamedTuple):
    """The section `eval` of a config; configs/pretrain.py describes the fields."""

    every: int
    rows: int
    samples: int
    sample_tokens: int
    prompts: tuple[str, ...]
    hellaswag: str
    hellaswag_every: int
    hellaswag_rows: int


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the weights of one run. Every process must call it with the same arguments."""

    settings: EvalSettings
    config: GPTConfig
    mesh: jax.sharding.Mesh
    eval_step: Callable
    # Precision of HellaSwag's scores, and rows of the streams that are computed together.
    dtype: str
    batch: int
    # Steps of the run: after the last one everything is measured.
    horizon: int
    sources: Sequence[Source]
    questions: Sequence[hellaswag.Question] = ()
    # Asked again and again: an evaluation takes long, and a resumed run repeats it.
    stop_requested: Callable[[], bool] = lambda: False

    def due(self, step: int) -> bool:
        """Whether there is an evaluation after `step` steps."""
        return step % self.settings.every == 0 or step >= self.horizon

    def evaluate(self, step: int, params: dict) -> dict:
        """The record of an evaluation after `step` steps. Raises EvaluationStopped.

        It holds "step", "train_loss", "validation_loss", "bits_per_byte", "samples", and
        "hellaswag" where it is due. The rows depend neither on the seed nor on the step.

        Of several sources it holds "validation_loss/FOLDER" too, as a run of that folder alone
        measures it; the values above are their means, weighted with the shares of the rows.
        """
        failpoint("during_evaluation", step)
        train = [self._measure(params, source.train) for source in self.sources]
        validation = [self._measure(params, source.val) for source in self.sources]
        record = {
            "step": step,
            "train_loss": self._mean([measure.loss for measure in train]),
            "validation_loss": self._mean([measure.loss for measure in validation]),
            "bits_per_byte": self._mean([measure.bits_per_byte for measure in validation]),
        }
        if len(self.sources) > 1:
            record |= {
                f"validation_loss/{source.folder}": measure.loss
                for source, measure in zip(self.sources, validation, strict=True)
            }
        if self._hellaswag_due(step):
            score = partial(
                scoring.score,
                *(LoadedRun(params, self.config, load_tokenizer()), self.mesh),
                dtype=self.dtype,
                stop_requested=self.stop_requested,
            )
            record["hellaswag"] = hellaswag.accuracy(self.questions, score)
        self._check_stop()
        record["samples"] = self._samples(params)
        return record

    def _check_stop(self) -> None:
        if self.stop_requested():
            raise EvaluationStopped

    def _measure(self, params: dict, stream: Stream) -> bits.Measure:
        return bits.measure(
            *(params, stream, self.eval_step, self.mesh),
            rows=self.settings.rows,
            batch=self.batch,
            context=self.config.context,
            stop_requested=self.stop_requested,
        )

    def _mean(self, values: Sequence[float]) -> float:
        """Of a value for each source, weighted with their shares."""
        total = sum(source.share for source in self.sources)
        weights = [source.share / total for source in self.sources]
        return sum(weight * value for weight, value in zip(weights, values, strict=True))

    def _hellaswag_due(self, step: int) -> bool:
        """True at the first evaluation after each multiple of `hellaswag_every`, and at the end."""
        every = self.settings.hellaswag_every
        if not (self.questions and every):
            return False
        return step % every < self.settings.every or step == self.horizon

    def _samples(self, params: dict) -> list[dict]:
        """[{"prompt", "text"}] of the first prompts, with fixed seeds."""
        prompts = self.settings.prompts[: self.settings.samples]
        if not prompts:
            return []
        whole = jax.jit(lambda p: p, out_shardings=replicated(self.mesh))(params)
        run = LoadedRun(whole, self.config, load_tokenizer())
        generator = run.generator(rows=len(prompts))
        ids = [_prompt_ids(run, prompt)[: self.config.context] for prompt in prompts]
        settings = sampling_params(len(ids), self.config, temperature=TEMPERATURE, top_p=TOP_P)
        for _ in generator.stream(ids, settings, max_new_tokens=self.settings.sample_tokens):
            self._check_stop()
        self._check_stop()
        return [
            {"prompt": prompt, "text": completion.text}
            for prompt, completion in zip(prompts, generator.completions, strict=True)
        ]


def _prompt_ids(run: LoadedRun, prompt: str) -> list[int]:
    if run.can_chat:
        return chat.prompt([{"role": "user", "content": prompt}], run.tokenizer)
    return run.tokenizer.encode_document(prompt)
