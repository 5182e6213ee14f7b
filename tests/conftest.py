"""Four simulated devices (compiled fast rather than well) and strict modes for the whole suite, and a tiny corpus that most tests share."""

import atexit
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"
if (
    "JAX_COMPILATION_CACHE_DIR" not in os.environ
):  # all workers, and the commands that they start, compile each program once
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import signal
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

# Modules whose signatures (types and shapes) are checked at every call, in the tests only.
CHECKED = [
    "minigpt_jax.attention",
    "minigpt_jax.data",
    "minigpt_jax.decoding",
    "minigpt_jax.generate",
    "minigpt_jax.loss",
    "minigpt_jax.model",
    "minigpt_jax.sampling",
    "minigpt_jax.step",
]
install_import_hook(CHECKED, "beartype.beartype")

from tests.harness import write_corpus

jax.config.update("jax_numpy_rank_promotion", "raise")
# A shell makes what it starts in the background ignore Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A folder of token shards, read-only for the tests."""
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus")
