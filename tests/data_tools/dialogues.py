"""Rows of conversations, and their mask computed in another way than by the template."""

import random

from minigpt_jax.tokenizer import ASSISTANT, END

CONTEXT = 64


def turns(*texts: str, weights: tuple[object, ...] = (), weight: str = "weight") -> list[dict]:
    """Messages of a user and an assistant in turn; the answers have `weights`, if any."""
    roles = ("user", "assistant")
    found: list[dict] = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    for answer, value in zip(found[1::2], weights, strict=False):
        answer[weight] = value
    return found


def random_rows(count: int) -> list[dict]:
    """Pairs of many lengths, every fourth row a dialogue; a text begins with the row's number."""
    draw = random.Random(0)
    rows = []
    for number in range(count):
        texts = [f"{number} " + "word " * draw.randrange(1, 12) for _ in range(4)]
        if number % 4:
            rows.append({"prompt": texts[0], "completion": texts[1]})
        else:
            rows.append({"messages": turns(*texts)})
    return rows


def expected_mask(tokens: list[int]) -> list[int]:
    """1 for every token behind <|assistant|>, up to and with the <|end|> that follows."""
    mask = []
    is_answer = False
    for token in tokens:
        mask.append(int(is_answer))
        is_answer = token == ASSISTANT or (is_answer and token != END)
    return mask
