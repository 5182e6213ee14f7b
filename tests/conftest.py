"""Four simulated devices, strict modes, and the runs and texts that many tests share."""

import atexit
import importlib
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# All test processes, and the commands that they start, compile each program once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Small programs too: by default JAX keeps only what took a second to compile.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.4"

import signal
from pathlib import Path

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

# Modules whose signatures (types and shapes) are checked at every call, in the tests only.
CHECKED = [
    "minigpt_jax.attention",
    "minigpt_jax.data",
    "minigpt_jax.decoding",
    "minigpt_jax.functional",
    "minigpt_jax.generate",
    "minigpt_jax.layers",
    "minigpt_jax.loss",
    "minigpt_jax.model",
    "minigpt_jax.muon",
    "minigpt_jax.nanochat",
    "minigpt_jax.sampling",
    "minigpt_jax.step",
    "minigpt_jax.triton_kernels",
]
install_import_hook(CHECKED, "beartype.beartype")
# The hook parses a module, which Python 3.11 cannot do in two threads at a time (cpython#106905).
for module in CHECKED:
    importlib.import_module(module)

from tests.harness import made_once, train, write_chat, write_corpus, write_questions  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# One program at a time: on few cores, two that exchange data between the simulated devices can wait
# for each other's threads, and XLA aborts the process after 40 s.
jax.config.update("jax_cpu_enable_async_dispatch", False)
# A shell makes its background jobs ignore Ctrl-C, and nohup SIGHUP; the commands that the tests
# start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples in every run of the suite. The campaign tries others (--hypothesis-profile).
hypothesis.settings.register_profile("steady", derandomize=True)
hypothesis.settings.load_profile("steady")

QUESTIONS_FILE = "validation.jsonl"
# The files that take longest. They come first, so that no test process works alone at the end.
LONGEST_FILES = (
    "test_parity.py",
    "test_end_to_end.py",
    "test_step.py",
    "test_model.py",
    "compatibility/test_c5b4eae.py",
    "evals/test_scoring.py",
    "faults/test_kills.py",
    "faults/test_storage.py",
    "faults/test_modern.py",
    "test_modern_recipe.py",
    "test_readme.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of LONGEST_FILES first."""
    folder = Path(__file__).parent
    rank = {folder / name: number for number, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder of all test processes of this session; its content is read-only for the tests."""
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives every process a folder of its own inside the session's.
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"


@pytest.fixture(scope="session")
def corpus(shared) -> Path:
    """A folder of token shards."""
    return made_once(shared / "corpus", lambda folder: write_corpus(folder / "tokens")) / "tokens"


@pytest.fixture(scope="session")
def conversations(shared) -> Path:
    """A folder of packed conversations."""
    return made_once(shared / "conversations", write_chat) / "chat"


@pytest.fixture(scope="session")
def questions(shared) -> Path:
    """A file in HellaSwag's form with short random texts, which fit the tiny model's context."""
    folder = made_once(
        shared / "hellaswag", lambda folder: write_questions(folder / QUESTIONS_FILE)
    )
    return folder / QUESTIONS_FILE


@pytest.fixture(scope="session")
def trained_run(shared, corpus, questions) -> Path:
    """The run of TINY, trained by the real command; `trained.txt` beside it holds its output.

    Evaluations after 0, 4, 8 and 12 steps, HellaSwag after 0, 8 and 12, checkpoints 9 and 12.
    """

    def make(folder: Path) -> None:
        output = train(
            folder,
            name="trained",
            data__folder=corpus,
            eval__every=4,
            eval__samples=1,
            eval__hellaswag=questions,
            eval__hellaswag_every=8,
            eval__hellaswag_rows=20,
        )
        (folder / "trained.txt").write_text(output)

    return made_once(shared / "trained", make) / "trained"


@pytest.fixture(scope="session")
def finetuned_run(shared, trained_run, conversations) -> Path:
    """`trained_run` finetuned on conversations; `finetuned.txt` beside it holds the output."""

    def make(folder: Path) -> None:
        output = train(
            folder,
            config="configs/quickstart_finetune.py",
            name="finetuned",
            init_from=trained_run,
            data__folder=conversations,
            schedule__peak=1e-2,
            save__every=12,
        )
        (folder / "finetuned.txt").write_text(output)

    return made_once(shared / "finetuned", make) / "finetuned"
