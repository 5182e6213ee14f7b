"""The tokenizer and the chat template in other programs' formats: merges, tokenizer.json, Jinja.

All of it is derived from the ranks of tokenizer.py and from the template of chat.py, so the formats
cannot differ from them.
"""

from functools import cache
from itertools import pairwise

from minigpt_jax.tokenizer import (
    CHAT_VOCAB,
    END,
    END_OF_TEXT,
    SPECIAL_TOKENS,
    load_tokenizer,
)

# What chat.render does, in Jinja: <|endoftext|>, then <|role|>text<|end|> for each message, and
# <|assistant|> where an answer is to be generated. A backslash continues a line.
CHAT_TEMPLATE = """\
{%- if not messages -%}{{ raise_exception('a conversation needs a message') }}{%- endif -%}
{{- '<|endoftext|>' -}}
{%- set first = 1 if messages[0]['role'] == 'system' else 0 -%}
{%- for message in messages -%}
{%- set expected = 'system' if loop.index0 < first else \
'user' if (loop.index0 - first) % 2 == 0 else 'assistant' -%}
{%- if message['role'] != expected -%}
{{- raise_exception('roles: an optional system, then user and assistant in turn; found ' ~ \
message['role'] ~ ', expected ' ~ expected) -}}
{%- endif -%}
{%- if message['content'] is not string -%}\
{{ raise_exception('the content of a message must be text') }}{%- endif -%}
{{- '<|' ~ expected ~ '|>' ~ message['content'] ~ '<|end|>' -}}
{%- endfor -%}
{%- if messages | length == first -%}\
{{ raise_exception('a conversation needs a message of the user') }}{%- endif -%}
{%- if add_generation_prompt -%}
{%- if messages[-1]['role'] != 'user' -%}\
{{ raise_exception('an answer follows a message of the user') }}{%- endif -%}
{{- '<|assistant|>' -}}
{%- endif -%}"""


def special_tokens(vocab_size: int) -> dict[str, int]:
    """{name: id} of the special tokens that a model with this vocabulary has."""
    return {name: id for name, id in SPECIAL_TOKENS.items() if id < vocab_size}


def stop_tokens(vocab_size: int) -> list[int]:
    """Ids that end a text; the first is the end of a turn if the model has one."""
    return [END, END_OF_TEXT] if vocab_size >= CHAT_VOCAB else [END_OF_TEXT]


@cache
def vocabulary() -> dict[str, int]:
    """{token: id} of GPT-2's 50,256 byte sequences, with a printable character for each byte."""
    characters = _byte_characters()
    return {
        "".join(characters[byte] for byte in token): id
        for id, token in enumerate(load_tokenizer().byte_sequences())
    }


@cache
def merges() -> list[tuple[str, str]]:
    """The pairs that byte-pair encoding merges, in order: the two parts of every longer token.

    The ranks name only the merged token. Encoding it with all lower ranks gives its two parts.
    """
    characters = _byte_characters()
    tokens = load_tokenizer().byte_sequences()
    ranks = {token: rank for rank, token in enumerate(tokens)}
    pairs = []
    for token in tokens:
        if len(token) > 1:
            left, right = _split_token(token, ranks)
            pairs.append(
                ("".join(characters[b] for b in left), "".join(characters[b] for b in right))
            )
    return pairs


def tokenizer_json(vocab_size: int) -> dict:
    """The content of Hugging Face's tokenizer.json."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    added = [
        {
            "id": id,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for name, id in special_tokens(vocab_size).items()
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary() | {"<|endoftext|>": END_OF_TEXT},
        "merges": [list(pair) for pair in merges()],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }


def tokenizer_config(vocab_size: int, context: int, stop_token: int) -> dict:
    """The content of Hugging Face's tokenizer_config.json."""
    names = {id: name for name, id in special_tokens(vocab_size).items()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[END_OF_TEXT],
        "eos_token": names[stop_token],
        "pad_token": names[END_OF_TEXT],
        "model_max_length": context,
        # Text is generated to the right, so shorter texts of a batch are padded on the left.
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    chat_tokens = [name for id, name in names.items() if id != END_OF_TEXT]
    if chat_tokens:
        config["additional_special_tokens"] = chat_tokens
        config["chat_template"] = CHAT_TEMPLATE
    return config


@cache
def _byte_characters() -> dict[int, str]:
    """A printable character for every byte, as GPT-2's files have it.

    That is the byte's own character if Latin-1 prints it, else the next one from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    return characters | {byte: chr(0x100 + n) for n, byte in enumerate(others)}


def _split_token(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts that are merged into `token`: byte-pair encoding with every lower rank."""
    parts = [token[i : i + 1] for i in range(len(token))]
    own_rank = ranks[token]
    while len(parts) > 2:
        candidates = [ranks.get(left + right, own_rank) for left, right in pairwise(parts)]
        best = candidates.index(min(candidates))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    left, right = parts
    return left, right
