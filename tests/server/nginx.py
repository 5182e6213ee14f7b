"""A real nginx, configured as docs/serving.md says, for the tests of what stands behind it."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minigpt_jax.server.command import open_listener
from tests.server.serving import ROOT, Client, wait_until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
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


@contextmanager
def nginx_process(server: Client, folder: Path) -> Iterator[Client]:
    """nginx in front of `server`, with its files in `folder`."""
    assert NGINX
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
