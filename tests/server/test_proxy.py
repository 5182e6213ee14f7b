"""Behind a real nginx with the configuration of docs/serving.md: requests, streams, a path."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from minigpt_jax.server.command import open_listener
from tests.server.serving import QUESTION, ROOT, Client, wait_until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx on this machine")
# As root, nginx starts its workers as another user, who cannot write into the folder of a test.
MAIN = """
daemon off;
user root;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    {locations}
  }}
}}
"""


def documented_locations(port: int) -> str:
    """The locations of docs/serving.md, for a server at `port`."""
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^location .*?^}$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    return "\n".join(blocks).replace("127.0.0.1:8000", f"127.0.0.1:{port}")


@pytest.fixture(scope="module")
def nginx(server, tmp_path_factory) -> Iterator[Client]:
    """nginx in front of a chat model's server, which has the name chat.example."""
    assert NGINX
    folder = tmp_path_factory.mktemp("nginx")
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    config = folder / "nginx.conf"
    locations = documented_locations(server.port)
    config.write_text(MAIN.format(folder=folder, port=port, locations=locations))
    process = subprocess.Popen([NGINX, "-p", folder, "-c", config, "-e", folder / "error.log"])
    client = Client(port)
    try:
        wait_until(lambda: is_ready(client) or process.poll() is not None)
        assert process.poll() is None, (folder / "error.log").read_text()
        yield client
    finally:
        process.terminate()
        process.wait()


def is_ready(client: Client) -> bool:
    try:
        return client.request("/health").status == 200
    except ConnectionRefusedError:
        return False


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
