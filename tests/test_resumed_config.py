"""What a resumed run may change in its config, and what the configs of earlier versions mean."""

import json

import pytest

from minigpt_jax import config as configs
from tests.test_config import parse

# ml_collections loads config files in a way that Python 3.15 will remove.
pytestmark = pytest.mark.filterwarnings(
    "ignore:the load_module.* method is deprecated:DeprecationWarning"
)

FIXED = {
    "": ("seed", "init_from", "deterministic"),
    "model": ("vocab_size", "context", "layers", "heads", "embed", "dropout", "architecture"),
    "compute": ("dtype", "remat", "attention"),
    "loss": ("chunk",),
    "data": ("batch", "isolate_documents"),
    "optimizer": (
        "kind",
        "b1",
        "b2",
        "eps",
        "weight_decay",
        "clip",
        "momentum",
        "embedding_lr_scale",
        "head_lr_scale",
        "vector_lr_scale",
    ),
    "schedule": ("kind", "peak", "warmup", "floor", "decay"),
}


def another_value(field: str, value):
    first, *rest = configs.FIELDS[field]
    if first is bool:
        return not value
    if first is str:
        return value + "x"
    if first is tuple:
        return (*value, "One more")
    if isinstance(first, str):
        return next(choice for choice in (first, *rest) if choice != value)
    return first if value != first else rest[0]


def set_field(config, field: str, value) -> None:
    section, _, name = field.rpartition(".")
    (config[section] if section else config)[name] = value


def test_a_resumed_run_may_change_only_what_leaves_its_mathematics_alone():
    before = parse()
    recorded = configs.to_json(before)
    assert configs.config_diff(recorded, recorded) == []
    fixed = {f"{section}.{name}".lstrip(".") for section, names in FIXED.items() for name in names}
    assert fixed < configs.FIELDS.keys()
    for field, old in configs.flatten(recorded).items():
        changed = parse()
        new = another_value(field, old)
        set_field(changed, field, new)
        expected = [f"{field}: {old!r} -> {new!r}"] if field in fixed else []
        assert configs.config_diff(recorded, configs.to_json(changed)) == expected, field


def test_a_config_survives_the_json_of_a_checkpoint():
    recorded = configs.to_json(parse())
    again = json.loads(json.dumps(recorded))
    assert again == recorded
    assert configs.config_diff(again, recorded) == []
    assert configs.ConfigDict(again).eval.prompts == list(parse().eval.prompts)


# ---- runs of earlier versions


def test_the_command_line_names_fields():
    argv = ["train.py", "--config=x.py", "--config.data.batch=4", "-config.seed", "3"]
    found = configs.named_fields([*argv, "--noconfig.fresh"])
    assert found == {"data.batch", "seed", "fresh"}


def without(recorded: dict, field: str) -> dict:
    """The config that a version without `field` recorded."""
    section, _, name = field.rpartition(".")
    kept = json.loads(json.dumps(recorded))
    del (kept[section] if section else kept)[name]
    return kept


def test_a_field_that_a_checkpoint_lacks_is_no_difference():
    config = parse()
    for field in configs.FIELDS:
        old = without(configs.to_json(config), field)
        resumed = configs.settings_for_resume(config, frozenset(), old)
        assert configs.config_diff(old, configs.to_json(resumed)) == []


@pytest.mark.parametrize("field", ["seed", "optimizer.clip"])
def test_a_new_field_has_its_earlier_value_in_an_old_run(field: str, monkeypatch):
    monkeypatch.setitem(configs.EARLIER, field, 3)
    monkeypatch.setattr(configs, "KEPT_UNLESS_NAMED", (field,))
    config = parse()
    old = without(configs.to_json(config), field)

    resumed = configs.settings_for_resume(config, frozenset(), old)
    assert configs.flatten(configs.to_json(resumed))[field] == 3
    assert configs.config_diff(old, configs.to_json(resumed)) == []
    # A new run has the default, and the config that was given is not changed.
    assert configs.settings_for_resume(config, frozenset(), None) == config
    assert configs.flatten(configs.to_json(config))[field] != 3


COMMIT, OTHER = "0" * 39 + "a", "0" * 39 + "b"


@pytest.mark.parametrize(
    ("now", "recorded", "expected"),
    [
        ("a/b", f"a/b@{COMMIT}", f"a/b@{COMMIT}"),
        ("a/b@main", f"a/b@{COMMIT}", f"a/b@{COMMIT}"),
        (f"a/b@{OTHER}", f"a/b@{COMMIT}", f"a/b@{OTHER}"),
        ("a/c", f"a/b@{COMMIT}", "a/c"),
        ("x/a/b", f"a/b@{COMMIT}", "x/a/b"),
        ("a/b", "", "a/b"),
        ("a/b", "a/b", "a/b"),
        ("", f"a/b@{COMMIT}", ""),
    ],
)
def test_a_hub_id_means_the_commit_that_the_run_began_with(now: str, recorded: str, expected: str):
    config = parse(f"--config.init_from={now}")
    old = configs.to_json(config) | {"init_from": recorded}
    assert configs.settings_for_resume(config, frozenset(), old).init_from == expected


@pytest.mark.parametrize("recorded", [{}, {"interrupted_exit_code": 3}])
def test_a_field_that_may_change_is_taken_from_the_config_in_an_old_run_too(recorded: dict):
    config = parse("--config.interrupted_exit_code=75")
    old = without(configs.to_json(config), "interrupted_exit_code") | recorded
    resumed = configs.settings_for_resume(config, frozenset(), old)
    assert resumed.interrupted_exit_code == 75
    assert configs.config_diff(old, configs.to_json(resumed)) == []


def test_a_named_field_keeps_its_value_and_is_refused_where_it_differs(monkeypatch):
    monkeypatch.setitem(configs.EARLIER, "seed", 3)
    config = parse("--config.seed=4")
    old = without(configs.to_json(config), "seed")
    resumed = configs.settings_for_resume(config, frozenset({"seed"}), old)
    assert resumed.seed == 4
    assert configs.config_diff(old, configs.to_json(resumed)) == ["seed: 3 -> 4"]


def test_a_changed_default_leaves_old_runs_with_their_recorded_value(monkeypatch):
    monkeypatch.setitem(configs.EARLIER, "optimizer.clip", 1.0)
    monkeypatch.setattr(configs, "KEPT_UNLESS_NAMED", ("optimizer.clip",))
    config = parse()
    recorded = configs.to_json(config)
    recorded["optimizer"]["clip"] = 0.5
    resumed = configs.settings_for_resume(config, frozenset(), recorded)
    assert resumed.optimizer.clip == 0.5
    assert configs.config_diff(recorded, configs.to_json(resumed)) == []


@pytest.mark.parametrize("field", sorted(configs.EARLIER.keys() - configs.KEPT_UNLESS_NAMED))
def test_a_recorded_field_of_the_table_is_compared_like_any_other(field: str):
    config = parse()
    recorded = configs.to_json(config)
    set_field(config, field, another_value(field, configs.EARLIER[field]))
    resumed = configs.settings_for_resume(config, frozenset(), recorded)
    assert resumed == config
    may_change = field.startswith(configs.MAY_CHANGE_ON_RESUME)
    assert len(configs.config_diff(recorded, configs.to_json(resumed))) == (not may_change)
    # A run from before the field did what EARLIER says.
    old = without(recorded, field)
    assert configs.settings_for_resume(config, frozenset(), old) == config
    assert len(configs.config_diff(old, configs.to_json(config))) == (not may_change)


def test_a_resumed_run_keeps_its_unrolling_unless_the_command_line_names_another():
    config = parse()
    recorded = configs.to_json(config)
    recorded["compute"] = {**recorded["compute"], "unroll": 3}
    resumed = configs.settings_for_resume(config, frozenset(), recorded)
    assert resumed.compute.unroll == 3
    named = configs.settings_for_resume(config, frozenset({"compute.unroll"}), recorded)
    assert named.compute.unroll == config.compute.unroll
    assert configs.config_diff(recorded, configs.to_json(named)) == []
