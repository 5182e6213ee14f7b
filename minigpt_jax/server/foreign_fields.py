"""Fields that this API lacks: what would change the answer is refused by name, the rest is ignored.

Clients are written for OpenAI, vLLM, llama.cpp, Ollama, TGI or OpenRouter and send fields of these.
Each is accepted where its value asks for nothing.
"""

import difflib
from collections.abc import Collection, Iterable

from minigpt_jax.server.api_error import ApiError

# How alike (0 to 1) an unknown name and a known one are if the first is a typo of the second.
_TYPO = 0.8


def refused(*neutral, instead: str | None = None) -> dict:
    """The schema of a field that is not implemented: only null and values that ask for nothing.

    `instead` tells what a client can do, as the end of an error message.
    """
    schema = {
        "enum": [None, *neutral],
        "description": "Not supported: only these values, which have no effect.",
    }
    return schema | ({"x-instead": instead} if instead else {})


_LENGTH = "here it is max_tokens"
_STOP = "here it is stop, with texts"
_BESIDE = "here its fields stand beside the prompt or the messages"
_CONTEXT = "the context is that of the model, which /v1/models lists"
_SYSTEM = "here it is a message with the role system"

REFUSED = {
    # Constraints on the form of the answer.
    "response_format": refused({}, {"type": "text"}),
    "format": refused("", {}),
    "grammar": refused(""),
    "grammar_lazy": refused(False),
    "grammar_triggers": refused([]),
    "json_schema": refused({}),
    "guided_json": refused(),
    "guided_regex": refused(""),
    "guided_choice": refused([]),
    "guided_grammar": refused(""),
    "guided_whitespace_pattern": refused(""),
    "structured_outputs": refused({}),
    "structural_tag": refused(""),
    "regex": refused(""),
    "ebnf": refused(""),
    # Tools and other kinds of content.
    "tools": refused([]),
    "tool_choice": refused("none", "auto"),
    "functions": refused([]),
    "function_call": refused("none", "auto"),
    "modalities": refused(["text"]),
    "audio": refused(),
    "images": refused([]),
    "documents": refused([]),
    "prediction": refused(),
    "web_search_options": refused(),
    "plugins": refused([]),
    "transforms": refused([]),
    # Where the answer ends.
    "num_predict": refused(instead=_LENGTH),
    "n_predict": refused(instead=_LENGTH),
    "max_new_tokens": refused(instead=_LENGTH),
    "max_output_tokens": refused(instead=_LENGTH),
    "max_length": refused(instead=_LENGTH),
    "min_tokens": refused(0),
    "min_new_tokens": refused(0),
    "min_length": refused(0),
    "ignore_eos": refused(False, instead="a logit_bias of -100 on the end tokens does the same"),
    "t_max_predict_ms": refused(0, -1),
    "stop_sequences": refused([], instead=_STOP),
    "stopping_strings": refused([], instead=_STOP),
    "stop_token_ids": refused([], instead=_STOP),
    "bad_words": refused([], instead="here it is logit_bias, with token ids"),
    "allowed_token_ids": refused([], instead="here it is logit_bias"),
    "include_stop_str_in_output": refused(False),
    # Ways to draw tokens.
    "temp": refused(instead="here it is temperature"),
    "random_seed": refused(instead="here it is seed"),
    "do_sample": refused(True, instead="here it is temperature 0"),
    "repeat_penalty": refused(1, instead="here it is repetition_penalty"),
    "rep_pen": refused(1, instead="here it is repetition_penalty"),
    "encoder_repetition_penalty": refused(1),
    "no_repeat_ngram_size": refused(0),
    "typical_p": refused(1),
    "typical": refused(1),
    "tfs_z": refused(1),
    "tfs": refused(1),
    "top_a": refused(0),
    "top_n_sigma": refused(0, -1),
    "mirostat": refused(0),
    "mirostat_mode": refused(0),
    "dry_multiplier": refused(0),
    "xtc_probability": refused(0),
    "dynatemp_range": refused(0),
    "dynamic_temperature": refused(False),
    "smoothing_factor": refused(0),
    "epsilon_cutoff": refused(0),
    "eta_cutoff": refused(0),
    "penalty_alpha": refused(0),
    "guidance_scale": refused(1),
    "negative_prompt": refused(""),
    "min_keep": refused(0, 1),
    "samplers": refused(),
    "sampler_order": refused(),
    "sampler_priority": refused(),
    "logits_processors": refused([]),
    "watermark": refused(False),
    # Search over several answers.
    "use_beam_search": refused(False),
    "num_beams": refused(1),
    "length_penalty": refused(1),
    "early_stopping": refused(False),
    # What is returned.
    "prompt_logprobs": refused(instead="here it is echo with logprobs, in /v1/completions"),
    "decoder_input_details": refused(False),
    "n_probs": refused(0, instead="here it is logprobs"),
    "top_n_tokens": refused(0, instead="here it is logprobs"),
    "post_sampling_probs": refused(False),
    "details": refused(False),
    "return_full_text": refused(False, instead="here it is echo, in /v1/completions"),
    "return_token_ids": refused(False),
    "return_tokens_as_token_ids": refused(False),
    "skip_special_tokens": refused(True),
    # How the prompt is made.
    "chat_template": refused("", instead="the template is the one that the model was trained with"),
    "chat_template_kwargs": refused({}),
    "add_generation_prompt": refused(True),
    "continue_final_message": refused(False),
    "raw": refused(False),
    "truncate": refused(),
    "truncate_prompt_tokens": refused(),
    "num_ctx": refused(instead=_CONTEXT),
    "n_ctx": refused(instead=_CONTEXT),
    "n_keep": refused(0),
    "context": refused([]),
    "system": refused("", instead=_SYSTEM),
    "system_prompt": refused("", instead=_SYSTEM),
    "instructions": refused("", instead=_SYSTEM),
    "safe_prompt": refused(False),
    "input": refused(instead="the Responses API is not here"),
    "inputs": refused(instead="here it is prompt, in /v1/completions"),
    "options": refused({}, instead=_BESIDE),
    "parameters": refused({}, instead=_BESIDE),
    "extra_body": refused({}, instead=_BESIDE),
    # Reasoning.
    "reasoning_effort": refused("none"),
    "reasoning": refused({}, {"enabled": False}, {"effort": "none"}),
    "thinking": refused({"type": "disabled"}),
    "think": refused(False),
    "enable_thinking": refused(False),
    "verbosity": refused("medium"),
    # Other weights.
    "lora": refused([]),
    "adapter_id": refused(""),
}

# Names that clients send and that change no answer, or only together with a field of REFUSED.
IGNORED = frozenset(
    {
        "user",
        "store",
        "metadata",
        "service_tier",
        "parallel_tool_calls",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "priority",
        "request_id",
        "cache_salt",
        "spaces_between_special_tokens",
        "include_reasoning",
        "guided_decoding_backend",
        "cache_prompt",
        "id_slot",
        "timings_per_token",
        "return_progress",
        "reasoning_format",
        "parse_tool_calls",
        "response_fields",
        "mirostat_tau",
        "mirostat_eta",
        "dry_base",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "xtc_threshold",
        "dynatemp_exponent",
        "penalize_nl",
        "repeat_last_n",
        "keep_alive",
        "num_gpu",
        "num_thread",
        "num_batch",
        "use_mmap",
        "use_mlock",
        "models",
        "provider",
        "route",
        "usage",
        "chat_id",
        "session_id",
        "message_id",
        "tool_ids",
        "model_item",
        "features",
        "files",
        "variables",
        "background_tasks",
    }
)


def check_unknown(names: Iterable[str], known: Collection[str]) -> None:
    """Raises ApiError (400) for a name that is neither known nor ignored, but like a known one.

    All other names are ignored: programs send fields of their own, which change no answer.
    """
    by_letters = {_letters(name): name for name in known}
    for name in names:
        # An "id" names something; "model_id" is no typo of "model".
        if name in known or name in IGNORED or _letters(name).endswith(("id", "ids")):
            continue
        similar = difflib.get_close_matches(_letters(name)[:64], by_letters, n=1, cutoff=_TYPO)
        if similar:
            raise ApiError(
                400,
                f"{name}: unknown field, did you mean {by_letters[similar[0]]}?",
                param=name,
            )


def _letters(name: str) -> str:
    """`name` in lower case without separators: "topP" and "top-p" mean "top_p"."""
    return name.lower().replace("_", "").replace("-", "")
