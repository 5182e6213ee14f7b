"""Texts in uneven files, and the parts that are made of them."""

import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from data_tools.fast_tokenizer import FastTokenizer
from data_tools.fineweb import prepare
from data_tools.join_parts import join_parts
from data_tools.make_parts import make_part
from data_tools.recipe import Recipe
from minigpt_jax.errors import InputError
from tests.data_tools.preparations import contents, random_texts, write_jsonl

# Threads of this process encode; without it, tiktoken would start processes for every part.
FAST = FastTokenizer()
# Documents in each file: none, one, many.
UNEVEN = (3, 0, 40, 1, 0, 90, 12, 7)
SHARD_TOKENS = 1_000


def write_texts(folder: Path, documents: Iterable[int] = UNEVEN) -> Path:
    """Files with so many documents each, and a row without text."""
    folder.mkdir(parents=True)
    for number, count in enumerate(documents):
        texts = random_texts(number, documents=count, words=60)
        write_jsonl(folder / f"{number}.jsonl", [{"text": text} for text in [*texts, None]])
    return folder


def recipe_of(*sources: object, **changes) -> Recipe:
    return Recipe(
        [*map(str, sources)], **({"val_every": 7, "shard_tokens": SHARD_TOKENS} | changes)
    )


def make(recipe: Recipe, parts: Path, index: int, of: int) -> None:
    make_part(recipe, parts, index, of, workers=1, fast_tokenizer=FAST)


def make_all(recipe: Recipe, parts: Path, of: int) -> Path:
    """The folder of the parts, made in some order."""
    for index in random.Random(of).sample(range(of), of):
        make(recipe, parts, index, of)
    return parts


def by_one_process(recipe: Recipe, out: Path) -> dict[str, bytes]:
    prepare(recipe, out, workers=1, fast_tokenizer=FAST)
    return contents(out)


def joined(parts: Path, out: Path) -> dict[str, bytes]:
    join_parts(parts, out)
    return contents(out)


def refuse(message: str, work, *arguments) -> None:
    with pytest.raises(InputError, match=message) as error:
        work(*arguments)
    assert "\n" not in str(error.value)
