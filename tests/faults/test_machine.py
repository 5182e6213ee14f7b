"""What is wrong with the machine is not called damage, and changes nothing on disk."""

import os
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tensorstore

from minigpt_jax import orbax_io
from minigpt_jax.checkpoint import abstract_params, load_params
from minigpt_jax.checkpoint_meta import read_meta
from minigpt_jax.errors import DamageError, InputError, RunError
from minigpt_jax.fingerprints import array_fingerprints
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.runtime.backend import start_jax
from tests.faults.conftest import Restore
from tests.faults.workspace import Workspace, fingerprint, write_numbers
from tests.harness import command, run_command, train

# Reading address 0 of a process fails with EIO, as reading a bad block of a disk does.
BAD_BLOCK = Path("/proc/self/mem")
CHUNK = "params/wte/0.0"
META = "meta/metadata"
MOMENT = "rest/opt_state.1.mu.wte/0.0"

needs_proc = pytest.mark.skipif(not BAD_BLOCK.exists(), reason="needs Linux's /proc")


@pytest.fixture
def run(workspace: Workspace, request) -> Iterator[Path]:
    """A copy of a run with the checkpoints 15 and 18, which the test must leave as it is."""
    run = workspace.copy(workspace.two_checkpoints, f"machine_{abs(hash(request.node.name))}")
    yield run
    shutil.rmtree(run)


def load_or_restore(restore: Restore) -> list[Callable[[Path], object]]:
    """What sample.py, the server, evaluations and exports do, and what train.py does."""
    return [load_params, restore]


def make_unreadable(path: Path) -> None:
    """From now on the file's permissions are right, and reading it fails with EIO."""
    path.unlink()
    path.symlink_to(BAD_BLOCK)


@contextmanager
def no_more_files() -> Iterator[None]:
    """Opening any file fails with EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@needs_proc
@pytest.mark.parametrize("file", [CHUNK, "params/wte/.zarray", META, MOMENT])
def test_a_disk_that_fails_is_not_called_damage(run: Path, restore: Restore, file: str, capfd):
    make_unreadable(run / "checkpoints" / "18" / file)
    before = fingerprint(run)
    for read in load_or_restore(restore)[file == MOMENT :]:
        with pytest.raises(RunError, match=r"checkpoint 18 cannot be read \(\[Errno 5\].*" + file):
            read(run)
    assert fingerprint(run) == before
    assert not capfd.readouterr().err


@pytest.mark.parametrize("name", ["ESTALE", "ENOMEM", "ENOSPC", "EACCES"])
def test_no_error_of_the_operating_system_is_called_damage(
    run: Path, restore: Restore, name: str, monkeypatch, capfd
):
    before = fingerprint(run)
    monkeypatch.setenv("MINIGPT_FAILPOINT", f"during_restore@18:{name.lower()}")
    with pytest.raises(RunError, match=r"checkpoint 18 cannot be read .* is no damage"):
        restore(run)
    assert fingerprint(run) == before
    assert not capfd.readouterr().err


def test_too_many_open_files_are_not_called_damage(run: Path):
    folder = run / "checkpoints" / "18" / "params"
    config = GPTConfig(**read_meta(run, 18)["model"])
    target = abstract_params(config, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    with no_more_files(), pytest.raises(OSError, match=r"Too many open files.*\.zarray"):
        orbax_io.read_arrays(folder, target)
    with no_more_files(), pytest.raises(OSError, match="Too many open files"):
        load_params(run)


def test_the_cause_is_named_where_tensorstore_writes_it_behind_long_paths(tmp_path: Path):
    store = {"driver": "file", "path": f"{tmp_path}/{'long/' * 100}"}
    with no_more_files(), pytest.raises(ValueError, match="long") as error:
        tensorstore.open({"driver": "zarr", "kvstore": store}).result()
    cause = "[Errno 24] Too many open files: raise the limit of open files (ulimit -n)"
    assert orbax_io.error_text(error.value) == cause


def test_full_memory_of_a_device_is_not_called_damage(
    run: Path, restore: Restore, monkeypatch, capfd
):
    before = fingerprint(run)
    # More than any machine has, in the place of a GPU that another program fills.
    monkeypatch.setattr(jax, "make_array_from_callback", lambda *_: jnp.zeros(2**45))
    for read in load_or_restore(restore):
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
            read(run)
    assert fingerprint(run) == before
    assert not capfd.readouterr().err


def test_what_tensorstore_cannot_read_is_read_once_more(run: Path, monkeypatch):
    """An error that passes, such as one of a network disk, costs nothing."""
    expected = read_meta(run, 18)["arrays"]
    open_store = tensorstore.open

    def fail_on_disk(spec, **kwargs):
        if spec["kvstore"]["driver"] == "file":
            raise ValueError("UNKNOWN: Input/output error [os_error_code='5']")
        return open_store(spec, **kwargs)

    monkeypatch.setattr(tensorstore, "open", fail_on_disk)
    params, _, meta = load_params(run)
    assert meta["step"] == 18
    found = array_fingerprints({"params": params})
    assert found == {path: expected[path] for path in found}


@pytest.mark.parametrize("damage", ["gone", "a folder", "in a file"])
def test_a_lost_file_is_damage(run: Path, damage: str, capfd):
    file = run / "checkpoints" / "18" / CHUNK
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage == "in a file":
        shutil.rmtree(file.parent)
        file.parent.write_text("")
    assert load_params(run)[2]["step"] == 15
    assert "checkpoint 18 is damaged" in capfd.readouterr().err


def test_x64_is_refused_where_it_would_change_the_weights(run: Path):
    with jax.enable_x64(True), pytest.raises(InputError, match="JAX_ENABLE_X64"):
        load_params(run)
    start_jax()


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("program", "environment", "code", "cause"),
    [
        ("train.py", {"JAX_PLATFORMS": "cuda"}, 1, "JAX_PLATFORMS=cuda: JAX cannot start"),
        ("sample.py", {"JAX_PLATFORMS": "cuda"}, 1, "JAX_PLATFORMS=cuda: JAX cannot start"),
        ("sample.py", {"JAX_PLATFORMS": "cdua"}, 2, "JAX_PLATFORMS=cdua: "),
        ("train.py", {"JAX_ENABLE_X64": "1"}, 2, "JAX_ENABLE_X64 is set"),
    ],
)
def test_an_environment_that_cannot_work_is_named(
    workspace: Workspace, run: Path, program: str, environment: dict, code: int, cause: str
):
    """Also by train.py with x64, which saved float64."""
    before = fingerprint(workspace.runs)
    arguments = command(**workspace.settings(run.name))
    if program == "sample.py":
        arguments = [arguments[0], program, "--run", str(run), "--prompt", "Hi"]
    done = run_command(arguments, environment)
    assert done.returncode == code, done.stdout
    assert done.stdout.count("\n") == 1 and cause in done.stdout, done.stdout
    assert fingerprint(workspace.runs) == before


def without_superuser(arguments: Sequence[str]) -> list[str]:
    """The command with no right to read files against their permissions."""
    if os.geteuid():
        return list(arguments)
    if not shutil.which("setpriv"):
        pytest.skip("root reads every file, and there is no setpriv to take that right away")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *arguments]


@pytest.mark.campaign
def test_a_file_without_permission_is_no_damage(workspace: Workspace, run: Path):
    """The run can continue from its newest checkpoint once the permission is back."""
    file = run / "checkpoints" / "18" / CHUNK
    before = fingerprint(run / "checkpoints")
    mode = file.stat().st_mode
    file.chmod(0)
    done = run_command(without_superuser(command(**workspace.settings(run.name))))
    assert done.returncode == 1, done.stdout
    assert done.stdout.count("\n") == 1 and "Permission denied" in done.stdout
    assert str(file) in done.stdout and "damaged" not in done.stdout
    file.chmod(mode)
    assert fingerprint(run / "checkpoints") == before
    assert "resumes from step 18" in train(**workspace.settings(run.name))


def test_more_shards_than_files_may_be_open_are_not_called_unreadable(
    workspace: Workspace, tmp_path: Path
):
    numbers = write_numbers(tmp_path / "tokens", shard_tokens=100)
    settings = workspace.settings("many_shards") | {"data__folder": numbers}
    limited = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *command(**settings)]
    done = run_command(limited)
    assert done.returncode == 1, done.stdout
    assert done.stdout.count("\n") == 1 and "Too many open files" in done.stdout
    assert "ulimit -n" in done.stdout and "train_0000" in done.stdout
    assert not (workspace.runs / "many_shards").exists()


def test_damage_beside_a_fault_of_the_machine_sets_nothing_aside(
    run: Path, restore: Restore, monkeypatch, capfd
):
    """18 is damaged, 15 cannot be read: nothing is known to be good, so nothing is moved."""
    (run / "checkpoints" / "18" / META).write_text("{")
    before = fingerprint(run)
    monkeypatch.setenv("MINIGPT_FAILPOINT", "during_restore@15:eio")
    with pytest.raises(RunError, match="checkpoint 15 cannot be read"):
        restore(run)
    assert fingerprint(run) == before
    assert "checkpoint 18 is damaged" in capfd.readouterr().err


def test_an_array_that_parses_wrongly_is_damage(run: Path):
    folder = run / "checkpoints" / "18" / "params"
    config = GPTConfig(**read_meta(run, 18)["model"])
    target = abstract_params(config, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    header = folder / "wte" / ".zarray"
    # Chunks of terabytes would be allocated before they turn out to be too short.
    for old, new in (("[512,16]", f"[{2**40},16]"), ("<f4", "<f8"), ("zstd", "gzip"), (":", "")):
        text = header.read_text()
        header.write_text(text.replace(old, new, 1))
        with pytest.raises(DamageError, match="wte"):
            orbax_io.read_arrays(folder, target)
        header.write_text(text)
    orbax_io.read_arrays(folder, target)
