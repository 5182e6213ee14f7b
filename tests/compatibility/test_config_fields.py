"""A new config field or a changed default does not change a run that began before it."""

import json
import sys
from pathlib import Path

import pytest

from minigpt_jax import config
from minigpt_jax.errors import InputError
from tests.compatibility import OLD_SETTINGS
from tests.harness import ROOT, copy_run, history, train_here

# The old run has 6 steps. Step 7 shows what the update of step 6 did.
HORIZON = 8


def resume(old: Path, runs: Path, **changes) -> Path:
    """The old run, resumed in a copy."""
    run = copy_run(old / "runs" / "old", runs)
    settings = {"name": "old", "data__folder": old / "text", "horizon__steps": HORIZON}
    output = train_here(runs, **OLD_SETTINGS | settings | {"eval__samples": 0} | changes)
    assert "resumes from step 6" in output
    return run


@pytest.fixture(scope="module")
def unchanged(old, tmp_path_factory) -> Path:
    """The old run, resumed by this version as it is."""
    return resume(old, tmp_path_factory.mktemp("unchanged"))


def config_file(folder: Path, line: str) -> Path:
    """The config of a later version, in which `line` is new."""
    path = folder / "later.py"
    path.write_text(
        "from configs.quickstart import get_config as quickstart\n"
        f"def get_config():\n    c = quickstart()\n    {line}\n    return c\n"
    )
    return path


# What a later version changes, and the recorded value that the old run must continue with.
LATER = [
    pytest.param("c.added = True", "added", False, id="new field"),
    pytest.param("c.optimizer.clip = 0.01", "optimizer.clip", 1.0, id="changed default"),
]


@pytest.mark.parametrize(("line", "field", "earlier"), LATER)
def test_an_old_run_resumes_as_before(
    old, unchanged, tmp_path, monkeypatch, line: str, field: str, earlier: object
):
    if field not in config.FIELDS:
        monkeypatch.setitem(config.FIELDS, field, (bool,))
    monkeypatch.setattr(config, "KEPT_UNLESS_NAMED", (field,))
    monkeypatch.setitem(config.EARLIER, field, earlier)
    run = resume(old, tmp_path / "runs", config=config_file(tmp_path, line))
    assert history(run) == history(unchanged)
    recorded = config.flatten(json.loads((run / "config.json").read_text()))
    assert recorded[field] == earlier


@pytest.mark.parametrize(("line", "field", "earlier"), LATER[1:])
def test_a_changed_default_needs_an_entry_in_the_table(old, tmp_path, line, field, earlier):
    """Without it the old run is refused: the test above tests something."""
    with pytest.raises(InputError, match=f"{field}: {earlier} -> "):
        resume(old, tmp_path / "runs", config=config_file(tmp_path, line))


def test_the_command_line_overrides_the_table_and_is_compared(old, tmp_path, monkeypatch):
    monkeypatch.setitem(config.EARLIER, "optimizer.clip", 1.0)
    with pytest.raises(InputError, match=r"optimizer.clip: 1.0 -> 0.5"):
        resume(old, tmp_path / "runs", optimizer__clip=0.5)


@pytest.mark.filterwarnings("ignore:the load_module.* method is deprecated:DeprecationWarning")
def test_a_config_file_from_before_a_field_works_as_before(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    argv = ["train.py", f"--config={config_file(tmp_path, 'del c.interrupted_exit_code')}"]
    assert config.parse(argv).interrupted_exit_code == 0
    # The command line can only change a field that the file has.
    with pytest.raises(InputError, match=r"interrupted_exit_code: missing in .*later\.py"):
        config.parse([*argv, "--config.interrupted_exit_code=75"])


def test_every_field_that_an_old_run_lacks_has_an_earlier_value(old):
    recorded = config.flatten(json.loads((old / "runs" / "old" / "config.json").read_text()))
    assert recorded
    assert config.FIELDS.keys() - recorded.keys() <= config.EARLIER.keys() <= config.FIELDS.keys()
