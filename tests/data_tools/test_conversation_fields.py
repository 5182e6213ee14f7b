"""A field with a meaning for training is used, or its row is refused; any other is named."""

import pytest

from data_tools.conversation_fields import FIELDS, UNSUPPORTED, UNSUPPORTED_IN_TURN
from data_tools.conversations import Conversation, conversation_of, read_row
from data_tools.instruct import marked_text
from minigpt_jax.chat import BadConversation
from minigpt_jax.tokenizer import load_tokenizer
from tests.data_tools.dialogues import turns

TOKENIZER = load_tokenizer()
ASKED = "<|user|>q<|end|><|assistant|>"
PAIR = {"prompt": "q", "completion": "a"}
SYSTEM = {"role": "system", "content": "s"}
NAN = float("nan")


def nested() -> list:
    """Lists in lists, deeper than a recursive function may go."""
    value: list = []
    for _ in range(5_000):
        value = [value]
    return value


def conversation(row: dict) -> Conversation:
    """The row's conversation, of any length."""
    return conversation_of(row, 10_000, TOKENIZER)


def shown(row: dict) -> str:
    """The row's text behind <|endoftext|>, with its learned parts in brackets."""
    text = "".join(marked_text(conversation(row), TOKENIZER, "[[", "]]"))
    return text.removeprefix("<|endoftext|>")


def reason(row: dict) -> str:
    """Why the row is refused."""
    with pytest.raises(BadConversation) as bad:
        conversation(row)
    assert len(str(bad.value)) < 400 and "\n" not in str(bad.value)
    return bad.value.reason


@pytest.mark.parametrize(
    "row",
    [
        {"system": "s", "messages": turns("q", "a")},
        {"system_prompt": " s\n", "conversations": turns("q", "a")},
        {"system": "s", "messages": [SYSTEM, *turns("q", "a")]},
        {"system": "s", "system_prompt": "s", **PAIR},
        {"system_message": "s", "instruction": "q", "output": "a", "history": []},
        {"system": "s", "prompt": turns("q"), "completion": turns("", "a")[1:]},
        {"prompt": [SYSTEM, *turns("q")], "completion": "a"},
        {"messages": [{"role": "developer", "content": "s"}, *turns("q", "a")]},
        {"system_prompt": "s", "question": "q", "response": "a"},
        {"messages": [{"from": "System", "value": "s"}, *turns("q", "a")]},
    ],
)
def test_a_system_prompt_begins_the_conversation(row: dict):
    assert shown(row) == f"<|system|>s<|end|>{ASKED}[[a<|end|>]]"


def test_a_blank_system_prompt_is_none():
    for blank in ({"role": "system", "content": ""}, {"from": "system", "value": None}):
        assert shown({"messages": [blank, *turns("q", "a")]}) == f"{ASKED}[[a<|end|>]]"


def test_a_content_in_parts_of_text_is_joined():
    parts = [{"type": "text", "text": "q"}, {"type": "text", "text": "r", "image_url": None}]
    row = {"messages": [{"role": "user", "content": parts}, *turns("", "a")[1:]]}
    assert shown(row) == f"{ASKED}[[a<|end|>]]".replace("q", "qr")
    parts[1]["type"] = "image_url"
    assert reason(row) == "not a text"


def test_two_different_system_prompts_are_refused():
    assert reason({"system": "t", "messages": [SYSTEM, *turns("q", "a")]}) == "two system messages"
    assert reason({"system": "t", "system_prompt": "s", **PAIR}) == "two system messages"


@pytest.mark.parametrize(
    "weight, zero, one",
    [
        *(("weight", 0, 1), ("weight", 0.0, 1.0), ("weight", False, None), ("weight", 0, NAN)),
        *(("train", False, True), ("trainable", "false", "true"), ("masked", True, False)),
        *(("training", False, True), ("train_on_turn", False, True)),
        *(("loss", False, True), ("loss_mask", 0, 1), ("loss_weight", 0, 1), ("loss_scale", 0, 1)),
    ],
)
def test_an_answer_of_weight_zero_is_context(weight: str, zero: object, one: object):
    for field in ("messages", "conversations"):
        row = {field: turns("q", "b", "q", "a", weights=(zero, one), weight=weight)}
        assert shown(row) == f"{ASKED}b<|end|>{ASKED}[[a<|end|>]]"
        assert conversation(row).unused == ()
        nothing = {field: turns("q", "b", weights=(zero,), weight=weight)}
        assert reason(nothing) == "nothing to learn"


@pytest.mark.parametrize(
    "weights",
    [{"weight": 0}, {"train": False}, {"masked": True}, {"label": False}, {"kto_tag": False}],
)
def test_a_row_of_weight_zero_teaches_nothing(weights: dict):
    assert reason({**PAIR, **weights}) == "nothing to learn"
    learned = {name: not value for name, value in weights.items()}
    assert shown({**PAIR, **learned}) == f"{ASKED}[[a<|end|>]]"


def test_true_and_false_in_a_label_of_a_csv_file_are_texts():
    assert reason({**PAIR, "label": "False"}) == "nothing to learn"
    assert shown({**PAIR, "label": "True"}) == f"{ASKED}[[a<|end|>]]"


@pytest.mark.parametrize("weight", [0.5, 2, -1, "half", [1], {"a": 1}, nested()])
def test_a_weight_that_the_mask_does_not_have_is_refused(weight: object):
    assert reason({"messages": turns("q", "a", weights=(weight,))}) == "weight neither 0 nor 1"
    assert reason({**PAIR, "weight": weight}) == "weight neither 0 nor 1"


@pytest.mark.parametrize("weight", [0, 1, 0.5])
def test_the_weight_of_a_question_changes_nothing(weight: float):
    question, answer = turns("q", "a")
    for role in ("user", "Human", "PROMPTER"):
        row = {"messages": [{**question, "role": role, "weight": weight}, answer]}
        assert shown(row) == f"{ASKED}[[a<|end|>]]"


@pytest.mark.parametrize(
    "history, text",
    [
        ([["q", "b"], ["q", "c"]], f"{ASKED}[[b<|end|>]]{ASKED}[[c<|end|>]]"),
        (turns("q", "b", weights=(0,)), f"{ASKED}b<|end|>"),
        ([{"from": "human", "value": "q"}, {"from": "gpt", "value": "b"}], f"{ASKED}[[b<|end|>]]"),
    ],
)
def test_earlier_turns_in_a_field_of_their_own_come_first(history: list, text: str):
    for row in (PAIR, {"messages": turns("q", "a")}):
        row = {"history": history, "system": "s", **row}
        assert shown(row) == f"<|system|>s<|end|>{text}{ASKED}[[a<|end|>]]"


@pytest.mark.parametrize(
    "history, why",
    [
        ("q: b", "not a list"),
        (["q", "b"], "not a dictionary"),
        ([["q", "b", "c"]], "not a dictionary"),
        ([["q", None]], "not a text"),
        ([["q", " "]], "empty answer"),
        (turns("p"), "role order"),
    ],
)
def test_earlier_turns_that_cannot_be_read_are_refused(history: object, why: str):
    assert reason({"history": history, **PAIR}) == why


@pytest.mark.parametrize("history", [turns("p", "b"), [["p", "b"]], [SYSTEM, *turns("p", "b")]])
def test_a_dialogue_that_begins_with_its_history_has_it_once(history: list):
    asked = f"<|system|>s<|end|><|user|>p<|end|><|assistant|>[[b<|end|>]]{ASKED}[[a<|end|>]]"
    for dialogue in (turns("q", "a"), turns("p", "b", "q", "a")):
        assert shown({"history": history, "messages": [SYSTEM, *dialogue]}) == asked
    context = asked.replace("[[b<|end|>]]", "b<|end|>")
    prompt = [SYSTEM, *turns("p", "b", "q")]
    assert shown({"history": history, "prompt": prompt, "completion": "a"}) == context
    system = [SYSTEM] if history[0] != SYSTEM else []
    assert shown({"history": [*system, *history], **PAIR}) == asked
    excluded = turns("p", "b", weights=(0,))
    assert shown({"history": excluded, "messages": [SYSTEM, *turns("p", "b", "q", "a")]}) == context


@pytest.mark.parametrize("field", ["input", "context", "passage", "article"])
def test_a_context_stands_below_its_question(field: str):
    asked = "<|user|>q\n\nc<|end|><|assistant|>[[a<|end|>]]"
    assert shown({"instruction": "q", field: " c ", "response": "a"}) == asked
    assert shown({"question": "q", field: "c", "answer": "a"}) == asked
    assert shown({"prompt": turns("q"), field: "c", "completion": "a"}) == asked
    assert reason({**PAIR, field: ["c"]}) == "not a text"


@pytest.mark.parametrize("field", ["context", "passage", "article"])
def test_a_context_without_a_question_is_refused(field: str):
    assert reason({"messages": turns("q", "a"), field: "c"}) == f"{field} not supported"


@pytest.mark.parametrize("field", ["input", "context", "passage", "article"])
def test_a_context_below_no_question_is_refused(field: str):
    for prompt in ([SYSTEM], turns("q", "b")):
        row = {"prompt": prompt, "completion": turns("q", "a")}
        assert reason(row | {field: "c"}) == f"{field} not supported"
        assert shown(row).endswith(f"{ASKED}[[a<|end|>]]")


def test_a_text_in_two_fields_of_a_question_stands_once():
    asked = "<|user|>q\n\nc<|end|><|assistant|>[[a<|end|>]]"
    assert shown({"instruction": "q", "input": "c", "context": "c ", "output": "a"}) == asked
    assert shown({"question": "q", "input": "q", "context": "c", "answer": "a"}) == asked


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_what_the_template_has_no_place_for_is_refused_by_name(field: str):
    for row in (PAIR, {"messages": turns("q", "a")}, {"prompt": "q"}):
        assert reason({**row, field: ["x"]}) == f"{field} not supported"
        assert reason({**row, field: False}) == f"{field} not supported"


@pytest.mark.parametrize("field", UNSUPPORTED_IN_TURN)
def test_what_the_template_has_no_place_for_is_refused_in_a_turn(field: str):
    assert reason({"messages": turns("q", "a", weights=("x",), weight=field)}) == (
        f"{field} not supported"
    )


def test_a_field_without_a_value_costs_nothing():
    for nothing in (None, NAN, "", " \n", [], {}, [None, ""], {"a": None}, {"a": [{"b": ""}]}):
        fields = dict.fromkeys(
            [*UNSUPPORTED, "system", "history", "context", "weight", "x"], nothing
        )
        assert read_row({**fields, **PAIR}) == (turns("q", "a"), ())
        assert read_row({**fields, "messages": turns("q", "a")}) == (turns("q", "a"), ())
        in_turn = dict.fromkeys([*UNSUPPORTED_IN_TURN, "from", "value", "train", "x"], nothing)
        dialogue = [{**in_turn, **turn} for turn in turns("q", "a")]
        assert read_row({"messages": dialogue}) == (turns("q", "a"), ())
        assert shown({**PAIR, "messages": nothing}) == f"{ASKED}[[a<|end|>]]"


def test_only_the_completion_of_a_prompt_is_learned():
    answer = {"role": "assistant", "content": "a"}
    text = f"{ASKED}b<|end|>{ASKED}[[a<|end|>]]"
    assert shown({"prompt": turns("q", "b", "q"), "completion": [answer]}) == text
    assert shown({"prompt": turns("q", "b", "q"), "completion": "a"}) == text
    assert shown({"messages": turns("q", "b", "q"), "response": "a"}) == text
    assert reason({"prompt": turns("q")}) == "field missing"
    assert reason({"prompt": turns("q"), "completion": turns("q")}) == "role order"


@pytest.mark.parametrize(
    "row, unused",
    [
        ({"instruction": "q", "input": "", "output": "a", "prompt": "q: a"}, "prompt"),
        (
            {"messages": turns("q", "a"), "prompt": "p", "text": "x", "input": "i"},
            "input prompt text",
        ),
        ({"messages": turns("q", "a"), "answer": "gold", "id": 7}, "answer id"),
        ({"messages": turns("q", "a"), "conversations": turns("q", "a")}, ""),
        ({**PAIR, "messages": ["no", "turns", "at all"], "dialog": "no list"}, "dialog messages"),
        ({**PAIR, "question": "q", "answer": "a", "label": "a class"}, "label"),
        ({**PAIR, "": "a CSV file without this name"}, "''"),
        ({"messages": [{**turn, "name": "x"} for turn in turns("q", "a")]}, "messages[].name"),
    ],
)
def test_the_schema_with_question_and_answer_is_read_and_the_rest_is_named(row: dict, unused: str):
    assert shown(row) == f"{ASKED}[[a<|end|>]]"
    assert conversation(row).unused == tuple(unused.split())


def test_of_several_schemas_the_one_with_the_most_texts_is_read():
    alpaca = {"instruction": "q", "input": "i", "output": "a"}
    row = {**alpaca, "messages": turns("x", "y"), "question": "z", "answer": ""}
    assert shown(row) == "<|user|>q\n\ni<|end|><|assistant|>[[a<|end|>]]"
    assert conversation(row).unused == ("messages", "question")
    row = {**alpaca, "messages": turns("q", "b", "q", "a")}
    assert shown(row) == f"{ASKED}[[b<|end|>]]{ASKED}[[a<|end|>]]"
    assert conversation(row).unused == ("input", "instruction", "output")


@pytest.mark.parametrize(
    "row, names",
    [
        ({**PAIR, "question": "q", "answer": "b"}, "prompt/completion or question/answer"),
        ({"query": "q", "response": "a", "prompt": "p"}, "prompt/response or query/response"),
        (
            {"instruction": "q", "output": "a", "response": "b", "input": "i"},
            "instruction/output or instruction/response",
        ),
        ({**PAIR, "messages": turns("q", "b")}, "messages or prompt/completion"),
        ({**PAIR, "messages": turns("q", "a", weights=(0,))}, "messages or prompt/completion"),
        ({"dialog": turns("q", "a"), "conversation": turns("q", "b")}, "conversation or dialog"),
        (
            {"messages": turns("q"), "answer": "a", "response": "b"},
            "messages/response or messages/answer",
        ),
    ],
)
def test_a_row_that_two_schemas_read_differently_is_refused_by_name(row: dict, names: str):
    assert reason(row) == f"ambiguous: {names}"


def test_two_values_of_one_turn_are_refused():
    twice = [{"role": "user", "from": "human", "content": "q", "value": "q"}, *turns("", "a")[1:]]
    assert shown({"messages": twice}) == f"{ASKED}[[a<|end|>]]"
    assert reason({"messages": [{**twice[0], "value": "p"}, twice[1]]}) == "two values in one turn"
    assert reason({"messages": [{**twice[0], "from": "gpt"}, twice[1]]}) == "two values in one turn"


@pytest.mark.parametrize(
    "turn", [{"input": "q", "output": "a"}, {"content": "q"}, {"role": "user"}, {"from": "human"}]
)
def test_a_turn_without_role_or_content_is_shown_with_its_field(turn: dict):
    with pytest.raises(
        BadConversation, match="found .*" + next(iter(turn)) + ".* in dialog,"
    ) as bad:
        conversation({"dialog": [turn, *turns("q", "a")]})
    assert bad.value.reason == "turn without role or content"


@pytest.mark.parametrize(
    "row, found",
    [
        ({"question": "q", "answer": 42}, "found 42 in answer"),
        ({**PAIR, "context": ["c"]}, r"found \['c'\] in context"),
        ({**PAIR, "system": {"text": "s"}}, "found .* in system"),
        ({"messages": turns("q", "")}, "assistant in messages is blank"),
    ],
)
def test_a_text_that_cannot_be_used_is_named_by_its_field(row: dict, found: str):
    with pytest.raises(BadConversation, match=found):
        conversation(row)


@pytest.mark.parametrize("field", ["prompt", "completion", "system", "history", "context"])
def test_lists_in_lists_in_lists_are_refused(field: str):
    assert reason({**PAIR, field: nested()}) in ("not a text", "not a dictionary")


def test_a_field_that_nobody_asked_for_may_be_of_any_type():
    row = {**PAIR, "when": object(), "prompt_id": b"\xff"}
    assert conversation(row).unused == ("prompt_id", "when")


def test_a_field_of_each_table_is_asked_for():
    of_each = {"dialog", "query", "output", "article", "history", "system", "kto_tag", "tools"}
    assert of_each <= set(FIELDS) and len(FIELDS) == len(set(FIELDS))


def test_the_name_of_a_field_is_shown_in_one_short_line():
    row = {**PAIR, "a\nb": 1, "\ud800": 1, "x" * 10_000: 1, "größe": 1}
    assert conversation(row).unused == (
        r"'\ud800'",
        r"'a\nb'",
        "'xxxxxxxxxxxx...xxxxxxxxxxxxx'",
        "größe",
    )
    assert reason({"a\nb": 1, "x" * 10_000: 1}) == "field missing"
