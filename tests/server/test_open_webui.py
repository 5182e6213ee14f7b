"""The requests of Open WebUI, as its backend sends them, get answers and no refusal."""

import json

import pytest

SYSTEM = {"role": "system", "content": "You answer questions about Python."}
HISTORY = [
    {"role": "user", "content": "What does len do?"},
    {"role": "assistant", "content": "It returns the length."},
    {"role": "user", "content": "And sorted?"},
]
STREAM = {"stream": True}
USER = {"id": "7", "name": "Ada", "email": "ada@example.org", "role": "admin"}
# With a title, tags, follow-up questions and search words Open WebUI asks the model itself.
TASK = {"stream": False, "metadata": {"task": "title_generation", "task_body": {}, "chat_id": "c"}}

BODIES = {
    "a first question": STREAM | {"messages": HISTORY[:1]},
    "a conversation with a system prompt": STREAM | {"messages": [SYSTEM, *HISTORY]},
    "token counts": STREAM
    | {"messages": HISTORY, "stream_options": {"include_usage": True}, "user": USER},
    "every setting of a model": STREAM
    | {
        "messages": HISTORY,
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.0,
        "max_tokens": 128,
        "frequency_penalty": 1.1,
        "presence_penalty": 0.0,
        "seed": 0,
        "stop": ["\n\nUser:"],
        "logit_bias": {"50256": -100},
    },
    "text in parts": STREAM
    | {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is len?"}]}]},
    "an answer that was stopped before its first word": STREAM
    | {"messages": [HISTORY[0], {"role": "assistant", "content": ""}, HISTORY[2]]},
    "two answers, as after a comparison of models": STREAM
    | {"messages": [*HISTORY[:2], HISTORY[1], HISTORY[2]]},
    "what the page sends to the backend": STREAM
    | {
        "messages": HISTORY,
        "params": {},
        "files": [],
        "tool_ids": [],
        "tool_servers": [],
        "features": {"image_generation": False, "web_search": False, "memory": False},
        "variables": {"{{USER_NAME}}": "Ada"},
        "model_item": {"id": "small-chat", "object": "model", "owned_by": "openai"},
        "session_id": "s",
        "chat_id": "c",
        "id": "m",
        "parent_id": None,
        "background_tasks": {"title_generation": True, "tags_generation": True},
    },
    "a title": TASK | {"messages": HISTORY[:1], "max_completion_tokens": 1000},
    "tags": TASK | {"messages": HISTORY[:1]},
}


@pytest.mark.parametrize("name", BODIES)
def test_a_request_is_answered(server, name):
    body = {"model": "small-chat", "max_completion_tokens": 8} | BODIES[name]
    reply = server.request("/v1/chat/completions", body, authorization="Bearer none")
    assert reply.status == 200, reply
    if body["stream"]:
        assert reply.body.endswith(b"data: [DONE]\n\n") and b"error" not in reply.body
    else:
        assert json.loads(reply.body)["choices"][0]["finish_reason"] in ("stop", "length")


def test_the_list_of_models_has_what_the_connection_needs(server):
    body = json.loads(server.request("/v1/models", authorization="Bearer none").body)
    assert body["object"] == "list"
    assert {"id", "object", "owned_by"} <= body["data"][0].keys()
