"""The hosts of a Cloud TPU slice find each other, on Kubernetes and on Compute Engine."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from jax._src.clusters import cloud_tpu_cluster, cluster

from tests.runtime.conftest import Join
from tests.runtime.launchers import tpu_on_kubernetes

Metadata = Callable[[dict[str, str]], None]


@pytest.fixture
def on_tpu(monkeypatch, tmp_path: Path) -> None:
    """As on a machine with TPUs and their library."""
    for module in (cloud_tpu_cluster, cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    (tmp_path / "libtpu.py").touch()
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def metadata(monkeypatch) -> Iterator[Metadata]:
    """`metadata(values)` starts the metadata server that a machine of Compute Engine has."""
    values: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            value = values.get(self.path.rpartition("/")[2])
            known = value is not None and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "*")
    yield values.update
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (tpu_on_kubernetes(3, 4), (3, 4)),
        (tpu_on_kubernetes(5, 4, slices=2), (5, 8)),
        (tpu_on_kubernetes(1, 1, slices=2), (1, 2)),
        (tpu_on_kubernetes(0, 1), None),
        # Notebook services with one host name it like this.
        ({"TPU_PROCESS_ADDRESSES": "local", "TPU_WORKER_ID": "0"}, None),
    ],
)
def test_hosts_find_each_other_by_their_variables(
    join: Join, on_tpu, metadata: Metadata, environment: dict, expected: tuple | None
):
    # JAX asks for the number of slices, even on Kubernetes.
    metadata({"tpu-env": ""})
    joined = join(environment, gpus=0)
    assert joined == (expected and (*expected, "all", "localhost:8482"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"worker-network-endpoints": "localhost,host1,host2,host3"}, (1, 4)),
        ({"worker-network-endpoints": "a:1:localhost,b:2:host1"}, (1, 2)),
        (
            {
                "worker-network-endpoints": "localhost",
                "agent-worker-number": "0",
                "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n",
            },
            (1, 2),
        ),
        ({"worker-network-endpoints": "localhost"}, None),
        ({"worker-network-endpoints": "localhost", "tpu-env": "ZONE: 'z'\n"}, None),
    ],
)
def test_hosts_find_each_other_by_the_metadata_of_their_machine(
    join: Join, on_tpu, metadata: Metadata, values: dict, expected: tuple | None
):
    metadata({"agent-worker-number": "1", "tpu-env": ""} | values)
    joined = join({}, gpus=0)
    assert joined == (expected and (*expected, "all", "localhost:8482"))


def test_without_a_metadata_server_a_host_works_alone(join: Join, on_tpu, monkeypatch):
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:9")
    assert join({}, gpus=0) is None
