"""Behind a real nginx with the configuration of docs/serving.md: requests, streams, a path."""

import json

import pytest

from tests.server.serving import QUESTION


@pytest.mark.parametrize("path", ["", "/chat"])
def test_the_page_of_an_allowed_name_asks_through_nginx(nginx, path):
    headers = {"host": "chat.example", "origin": "https://chat.example"}
    browser = headers | {"sec_fetch_site": "same-origin"}
    assert b"miniGPT" in nginx.request(f"{path}/", host="chat.example").body
    body = QUESTION | {"max_tokens": 1}
    reply = nginx.request(f"{path}/v1/chat/completions", body, **browser)
    assert reply.status == 200 and json.loads(reply.body)["choices"]


def test_a_page_of_another_name_is_told_what_to_do(nginx):
    browser = {"origin": "https://other.example", "sec_fetch_site": "same-origin"}
    status, error = nginx.error("/v1/chat/completions", QUESTION, **browser)
    assert (status, error["param"]) == (403, "Origin")
    for word in ("https://other.example", "127.0.0.1", "--allowed-host"):
        assert word in error["message"]


def test_a_stream_comes_through_nginx_in_parts(nginx, server):
    """`stream` returns when the first text is here, long before the end of 240 tokens."""
    with nginx.stream(host="chat.example"):
        assert server.health()["active"] > 0


def test_a_folder_without_its_slash_leads_to_the_page(nginx):
    reply = nginx.request("/chat")
    assert reply.status == 301 and reply.headers["location"].endswith("/chat/")
