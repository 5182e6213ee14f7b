"""The tokenizer and the chat template in the forms that other programs read: vocab and merges, tokenizer.json, Jinja.

All of it is derived from tokenizer.py's ranks and chat.py's template, so that it cannot drift from them.
"""

from functools import cache
from itertools import pairwise

from minigpt_jax.tokenizer import END_OF_TEXT, SPECIAL_TOKENS, load_tokenizer

# What chat.render does, in Jinja: <|endoftext|>, then <|role|>text<|end|> for each message, and <|assistant|> to ask for an answer.
CHAT_TEMPLATE = """\
{%- if not messages -%}{{ raise_exception('a conversation needs a message') }}{%- endif -%}
{{- '<|endoftext|>' -}}
{%- set first = 1 if messages[0]['role'] == 'system' else 0 -%}
{%- for message in messages -%}
{%- set expected = 'system' if loop.index0 < first else 'user' if (loop.index0 - first) % 2 == 0 else 'assistant' -%}
{%- if message['role'] != expected -%}
{{- raise_exception('roles: an optional system, then user and assistant in turn; found ' ~ message['role'] ~ ', expected ' ~ expected) -}}
{%- endif -%}
{%- if message['content'] is not string -%}{{ raise_exception('the content of a message must be text') }}{%- endif -%}
{{- '<|' ~ expected ~ '|>' ~ message['content'] ~ '<|end|>' -}}
{%- endfor -%}
{%- if messages | length == first -%}{{ raise_exception('a conversation needs a message of the user') }}{%- endif -%}
{%- if add_generation_prompt -%}
{%- if messages[-1]['role'] != 'user' -%}{{ raise_exception('an answer follows a message of the user') }}{%- endif -%}
{{- '<|assistant|>' -}}
{%- endif -%}"""


def special_tokens(vocab_size: int) -> dict[str, int]:
    """Names and ids of the structure tokens that a model of this vocabulary has."""
    return {name: id for name, id in SPECIAL_TOKENS.items() if id < vocab_size}


@cache
def vocabulary() -> dict[str, int]:
    """{token: id} of GPT-2's 50,256 byte sequences, each byte as GPT-2's files write it (a letter that can be seen)."""
    letters = _letters()
    return {
        "".join(letters[byte] for byte in piece): id
        for id, piece in enumerate(load_tokenizer().byte_sequences())
    }


@cache
def merges() -> list[tuple[str, str]]:
    """The pairs that byte-pair encoding joins, first ones first: for each token, the two that it was made of.

    The ranks name only the result; cutting it with all lower ranks gives the two parts back.
    """
    letters, pieces = _letters(), load_tokenizer().byte_sequences()
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    pairs = (_cut(piece, ranks) for piece in pieces if len(piece) > 1)
    return [
        ("".join(letters[b] for b in left), "".join(letters[b] for b in right))
        for left, right in pairs
    ]


def tokenizer_json(vocab_size: int) -> dict:
    """The content of Hugging Face's tokenizer.json."""
    levels = {
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
        "pre_tokenizer": levels,
        "post_processor": None,
        "decoder": levels,
        "model": model,
    }


def tokenizer_config(vocab_size: int, context: int, stop: int) -> dict:
    """The content of Hugging Face's tokenizer_config.json; `stop` is the id that ends a text."""
    names = {id: name for name, id in special_tokens(vocab_size).items()}
    base = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[END_OF_TEXT],
        "eos_token": names[stop],
        "pad_token": names[END_OF_TEXT],
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    more = [name for id, name in names.items() if id != END_OF_TEXT]
    return base | (
        {"additional_special_tokens": more, "chat_template": CHAT_TEMPLATE} if more else {}
    )


@cache
def _letters() -> dict[int, str]:
    """A visible letter for every byte: itself where Latin-1 prints it, else the next one from U+0100 on (GPT-2's rule)."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {
        byte: chr(256 + n) for n, byte in enumerate(rest)
    }


def _cut(piece: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts of `piece`: byte-pair encoding with every rank below its own."""
    parts, below = [piece[i : i + 1] for i in range(len(piece))], ranks[piece]
    while len(parts) > 2:
        candidates = [ranks.get(a + b, below) for a, b in pairwise(parts)]
        at = candidates.index(min(candidates))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    left, right = parts
    return left, right
