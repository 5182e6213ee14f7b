"""How many hosts a Cloud TPU slice has: one needs no other process, several find each other."""

import re
from collections.abc import Mapping
from urllib.request import ProxyHandler, Request, build_opener

# Seconds. The server belongs to the machine itself.
_TIMEOUT = 5


def tpu_hosts(environment: Mapping[str, str], *, ask_machine: bool) -> int:
    """Hosts of all slices of this run; 0 where this is no Cloud TPU.

    Google Kubernetes Engine says it in variables. Compute Engine has a metadata server, which is
    asked where `ask_machine` is true.
    """
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    slices = environment.get("MEGASCALE_NUM_SLICES", "")
    if hosts is None and ask_machine:
        hosts = _metadata(environment, "worker-network-endpoints")
        in_metadata = re.search(
            r"^MEGASCALE_NUM_SLICES: *'?(\d+)", _metadata(environment, "tpu-env"), re.MULTILINE
        )
        slices = slices or (in_metadata[1] if in_metadata else "")
    if not hosts:
        return 0
    return len(hosts.split(",")) * (int(slices) if slices.isdecimal() else 1)


def _metadata(environment: Mapping[str, str], key: str) -> str:
    """One value of the metadata server; empty where there is none."""
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    request = Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        # The server is part of the machine: no proxy may stand between.
        with build_opener(ProxyHandler({})).open(request, timeout=_TIMEOUT) as answer:
            return answer.read().decode()
    except OSError:
        return ""
