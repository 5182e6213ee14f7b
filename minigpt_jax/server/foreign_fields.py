"""Fields that this API lacks: what would change the answer is refused by name, the rest is ignored.

Clients are written for OpenAI, vLLM, llama.cpp, Ollama, TGI or OpenRouter and send fields of these.
Each is accepted where its value asks for nothing.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from itertools import islice

from minigpt_jax.server.api_error import ApiError

# How alike (0 to 1) an unknown name and a known one are if the first is a typo of the second.
_TYPO = 0.8
# Comparing takes time: no known name is this long, and no client sends as many unknown ones.
_MAX_COMPARED_LENGTH = 64
_MAX_COMPARED = 50
_IDS_OF_TOKENS = re.compile("token|stop|word")


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
_NO_END = "a logit_bias of -100 on the end tokens does the same"
_STOP = "here it is stop, with texts"
_BIAS = "here it is logit_bias, with token ids"
_BESIDE = "here its fields stand beside the prompt or the messages"
_CONTEXT = "the context is that of the model, which /v1/models lists"
_SYSTEM = "here it is a message with the role system"

REFUSED = {
    # Constraints on the form of the answer.
    "response_format": refused({}, {"type": "text"}),
    "format": refused("", {}),
    "grammar": refused(""),
    "grammar_string": refused(""),
    "grammar_lazy": refused(False),
    "grammar_triggers": refused([]),
    "json_schema": refused({}),
    "guided_json": refused(),
    "guided_regex": refused(""),
    "guided_choice": refused([]),
    "guided_grammar": refused(""),
    "guided_whitespace_pattern": refused(""),
    "guided_decoding": refused({}),
    "response_schema": refused({}),
    "json_object": refused(False),
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
    "num_predict": refused(-1, instead=_LENGTH),
    "n_predict": refused(-1, instead=_LENGTH),
    "max_new_tokens": refused(instead=_LENGTH),
    "max_output_tokens": refused(instead=_LENGTH),
    "max_length": refused(instead=_LENGTH),
    "max_tokens_to_sample": refused(instead=_LENGTH),
    "max_gen_toks": refused(instead=_LENGTH),
    "max_gen_len": refused(instead=_LENGTH),
    "min_tokens": refused(0),
    "min_new_tokens": refused(0),
    "min_completion_tokens": refused(0),
    "min_length": refused(0),
    "ignore_eos": refused(False, instead=_NO_END),
    "ban_eos_token": refused(False, instead=_NO_END),
    "t_max_predict_ms": refused(0, -1),
    "stop_sequences": refused([], instead=_STOP),
    "stopping_strings": refused([], instead=_STOP),
    "stop_token_ids": refused([], instead=_STOP),
    "stop_token_id": refused(instead=_STOP),
    "stop_ids": refused([], instead=_STOP),
    "stop_words": refused([], instead=_STOP),
    "stopwords": refused([], instead=_STOP),
    "stop_regex": refused("", [], instead=_STOP),
    "until": refused([], "", instead=_STOP),
    "eos_token_id": refused(instead=_STOP),
    "eos_token_ids": refused([], instead=_STOP),
    "forced_bos_token_id": refused(),
    "forced_eos_token_id": refused(),
    "bad_words": refused([], instead=_BIAS),
    "bad_words_ids": refused([], instead=_BIAS),
    "suppress_tokens": refused([], instead=_BIAS),
    "banned_tokens": refused([], "", instead=_BIAS),
    "banned_strings": refused([], ""),
    "custom_token_bans": refused("", instead=_BIAS),
    "allowed_token_ids": refused([], instead="here it is logit_bias"),
    "include_stop_str_in_output": refused(False),
    # Ways to draw tokens.
    "temp": refused(instead="here it is temperature"),
    "random_seed": refused(instead="here it is seed"),
    "sampler_seed": refused(-1, instead="here it is seed"),
    "do_sample": refused(True, instead="here it is temperature 0"),
    "repeat_penalty": refused(1, instead="here it is repetition_penalty"),
    "rep_pen": refused(1, instead="here it is repetition_penalty"),
    "repetition_penalty_range": refused(0),
    "encoder_repetition_penalty": refused(1),
    "no_repeat_ngram_size": refused(0),
    "typical_p": refused(1),
    "typical": refused(1),
    "tfs_z": refused(1),
    "tfs": refused(1),
    "top_a": refused(0),
    "top_n_sigma": refused(0, -1),
    "nsigma": refused(0, -1),
    "mirostat": refused(0),
    "mirostat_mode": refused(0),
    "mirostat_type": refused(0),
    "dry_multiplier": refused(0),
    "xtc_probability": refused(0),
    "dynatemp_range": refused(0),
    "dynamic_temperature": refused(False),
    "smoothing_factor": refused(0),
    "epsilon_cutoff": refused(0),
    "eta_cutoff": refused(0),
    "penalty_alpha": refused(0),
    "guidance_scale": refused(1),
    "cfg_scale": refused(1),
    "negative_prompt": refused(""),
    "min_keep": refused(0, 1),
    "samplers": refused(),
    "sampler_order": refused(),
    "sampler_priority": refused(),
    "temperature_last": refused(False),
    "temp_last": refused(False),
    "logits_processors": refused([]),
    "watermark": refused(False),
    # Search over several answers.
    "use_beam_search": refused(False),
    "num_beams": refused(1),
    "num_beam_groups": refused(1),
    "beam_width": refused(1),
    "diversity_penalty": refused(0),
    "num_return_sequences": refused(1, instead="here it is n"),
    "n_best": refused(1, instead="here it is n"),
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
    "prompt_truncate_len": refused(),
    "prompt_embeds": refused("", []),
    "add_bos_token": refused(True),
    "num_ctx": refused(instead=_CONTEXT),
    "n_ctx": refused(instead=_CONTEXT),
    "n_keep": refused(0),
    "context": refused([]),
    "system": refused("", instead=_SYSTEM),
    "system_prompt": refused("", instead=_SYSTEM),
    "instructions": refused("", instead=_SYSTEM),
    "safe_prompt": refused(False),
    "suffix": refused(""),
    "content": refused("", instead="here it is prompt, or messages"),
    "input": refused(instead="the Responses API is not here"),
    "inputs": refused(instead="here it is prompt, in /v1/completions"),
    "options": refused({}, instead=_BESIDE),
    "parameters": refused({}, instead=_BESIDE),
    "sampling_params": refused({}, instead=_BESIDE),
    "extra_body": refused({}, instead=_BESIDE),
    # Reasoning.
    "reasoning_effort": refused("none"),
    "reasoning": refused({}, {"enabled": False}, {"effort": "none"}),
    "thinking": refused({"type": "disabled"}),
    "think": refused(False),
    "enable_thinking": refused(False),
    "thinking_budget": refused(0),
    "verbosity": refused("medium"),
    # Other weights.
    "lora": refused([]),
    "lora_path": refused(""),
    "lora_request": refused({}),
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
        "dynatemp_low",
        "dynatemp_high",
        "smoothing_curve",
        "penalize_nl",
        "repeat_last_n",
        "rep_pen_range",
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


def check_unknown(body: Mapping[str, object], known: Collection[str]) -> None:
    """Raises ApiError (400) for a name that is neither known nor ignored, but like a known one.

    All other names are ignored: programs send fields of their own, which change no answer.
    """
    by_letters = {_letters(name): name for name in known}
    unknown = (
        name
        for name, value in body.items()
        if name not in known and name not in IGNORED and _may_be_typo(name, value)
    )
    for name in islice(unknown, _MAX_COMPARED):
        similar = difflib.get_close_matches(_letters(name), by_letters, n=1, cutoff=_TYPO)
        if similar:
            raise ApiError(
                400,
                f"{name}: unknown field, did you mean {by_letters[similar[0]]}?",
                param=name,
            )


def _may_be_typo(name: str, value: object) -> bool:
    """Not what asks for nothing. An "id" names something: "model_id" is no typo of "model"."""
    if value is False or value in ("", [], {}) or len(name) > _MAX_COMPARED_LENGTH:
        return False
    is_id = name.lower().endswith(("id", "ids")) and not _IDS_OF_TOKENS.search(name.lower())
    return not is_id


def _letters(name: str) -> str:
    """`name` in lower case without separators: "topP" and "top-p" mean "top_p"."""
    return name.lower().replace("_", "").replace("-", "")
