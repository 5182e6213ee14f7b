"""The config of a run: command line, allowed values, and what a resumed run may change.

The only file that uses absl and ml_collections. It imports no JAX, because train.py checks the
config before JAX is loaded.
"""

import difflib
import json
import re
import sys
from collections.abc import Mapping, Sequence, Set
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from minigpt_jax.config_fields import (
    EARLIER,
    FIELDS,
    KEPT_UNLESS_NAMED,
    MAY_CHANGE_ON_RESUME,
    PATH_FIELDS,
    expected,
)
from minigpt_jax.config_help import config_help
from minigpt_jax.errors import InputError
from minigpt_jax.runtime.files import expand_home

# A ConfigDict, whose fields no type checker can know.
Config = Any

_CONFIG_FILE = re.compile(r"^(--?config=)(.+)", re.DOTALL)
# A model of the hub, its revision, and the revision as a commit.
_HUB_MODEL = re.compile(r"([\w.-]+/[\w.-]+)(?:@(([0-9a-f]{40})|.+))?")
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=\s]*)")


def parse(argv: Sequence[str]) -> Config:
    """The config of `train.py --config FILE --config.data.batch=64 ...`. Raises InputError."""
    argv = [_CONFIG_FILE.sub(lambda m: m[1] + expand_home(m[2]), argument) for argument in argv]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        flag_values=values,
        sys_argv=argv,
        help_string="a file of configs/, with `get_config()`",
    )
    if any(argument in ("-h", "--help") for argument in argv[1:]):
        print(config_help())
        sys.exit(0)
    for name in sorted(named_fields(argv) - FIELDS.keys()):
        raise InputError(f"config field {name or repr(name)}: unknown ({_meant(name)})")
    try:
        rest = values(argv)[1:]
        config = values["config"].value
        if not isinstance(config, ConfigDict | None):
            # Where a file could not be loaded, ml_collections raises the error at the first use.
            getattr(config, "name", None)
    except (Exception, SystemExit) as error:  # a config file is a program: it may raise anything
        raise InputError(_first_line(error, _config_file(argv))) from None
    if rest:
        raise InputError(
            f"unexpected argument {rest[0]!r}: overrides look like --config.data.batch=64"
        )
    if config is None:
        raise InputError(
            "no config: expected python train.py --config configs/pretrain.py "
            "(or configs/quickstart.py, on a CPU)"
        )
    if not isinstance(config, ConfigDict):
        raise InputError(
            "get_config() of the config file must return a ConfigDict, "
            f"found {type(config).__name__}"
        )
    try:
        _add_fields_of_later_versions(config)
        config.to_dict()
    except TypeError:  # ml_collections sorts the names
        raise InputError(f"{_config_file(argv)}: the name of a field must be a text") from None
    check(config)
    _refuse_folder_beside_mixture(config, named_fields(argv))
    _expand_home_in_paths(config)
    return config


def _add_fields_of_later_versions(config: Config) -> None:
    """Fields that a config file for an earlier version lacks, with what they meant then."""
    for name in EARLIER.keys() - flatten(config.to_dict()).keys():
        section, _, field = name.rpartition(".")
        # A section that is missing, or no section, is reported by `check`.
        if isinstance(values := _section(config, section), ConfigDict):
            with config.unlocked():
                values[field] = EARLIER[name]


def _refuse_folder_beside_mixture(config: Config, named: Set[str]) -> None:
    """The config files all have a folder; only one on the command line can be meant."""
    if config.data.mixture and "data.folder" in named:
        raise InputError(
            f"data.folder {config.data.folder} beside data.mixture {config.data.mixture!r}: "
            "name the folder in the mixture, or give one of the two "
            "(with --config.data.mixture= the folder alone)"
        )


def _expand_home_in_paths(config: Config) -> None:
    for name in PATH_FIELDS:
        section, _, field = name.rpartition(".")
        values = _section(config, section)
        values[field] = expand_home(values[field])


def _section(config: Config, name: str) -> Config:
    """A section of the config (None where there is none); all of it where the name is empty."""
    return config.get(name) if name else config


def named_fields(argv: Sequence[str]) -> frozenset[str]:
    """The fields that the command line names, such as "data.batch"."""
    matches = map(_OVERRIDE.match, argv[1:])
    return frozenset(match[1] for match in matches if match)


def check(config: Config) -> None:
    """Raise InputError for a missing or unknown field, a value out of range, or contradictions."""
    found = flatten(config.to_dict())
    # Unknown ones first: the field that was meant may be missing.
    for name in found:
        if name not in FIELDS:
            raise InputError(f"config field {name}: unknown ({_meant(name)})")
    for name, allowed in FIELDS.items():
        if name not in found:
            raise InputError(f"config field {name}: missing (start from configs/pretrain.py)")
        _check_field(name, found[name], allowed)
    given = [name for name in ("steps", "tokens", "epochs") if config.horizon[name]]
    if len(given) != 1:
        raise InputError(
            "config.horizon: give exactly one of steps, tokens and epochs, "
            f"found {' and '.join(given) or 'none'}"
        )
    if config.schedule.floor > config.schedule.peak:
        raise InputError(
            f"schedule.floor {config.schedule.floor} is above schedule.peak {config.schedule.peak}"
        )


def _check_field(name: str, value, allowed: tuple) -> None:
    first = allowed[0]
    if isinstance(first, type):
        valid = isinstance(value, first)
    elif isinstance(first, str):
        valid = value in allowed
    else:
        kind = (int,) if isinstance(first, int) else (int, float)
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        valid = is_number and first <= value <= allowed[1]
    if not valid:
        raise InputError(f"config field {name}: found {value!r}, expected {expected(allowed)}")


def _meant(name: str, prefix: str = "") -> str:
    """Which fields, with `prefix` before each, may be meant by `name`, which is none."""
    fields = [prefix + field for field in _similar_fields(name)]
    if not fields:
        return "python train.py --help lists every field"
    *before, last = fields
    return f"did you mean {', '.join(before)} or {last}?" if before else f"did you mean {last}?"


def _similar_fields(name: str) -> list[str]:
    """The fields of the section `name`, or those whose last part is nearest to that of `name`."""
    if of_section := [field for field in FIELDS if field.startswith(f"{name}.")]:
        return of_section
    section, _, last = name.rpartition(".")
    last_parts = {field: field.rpartition(".")[2] for field in FIELDS}
    nearest = difflib.get_close_matches(last, last_parts.values(), n=1)
    # In whatever section: "steps" is meant as horizon.steps.
    found = [field for field in FIELDS if last_parts[field] in nearest]
    return [field for field in found if field.startswith(f"{section}.")] or found


def horizon_steps(
    batch: int, context: int, rows: int, *, steps: int, tokens: int, epochs: float
) -> int:
    """Steps of the whole run, given in steps, tokens or epochs of `rows` rows; at least one."""
    if tokens:
        steps = tokens // (batch * context)
    if epochs:
        steps = int(epochs * rows) // batch
    return max(steps, 1)


def flatten(settings: Mapping) -> dict[str, object]:
    """{"section.field": value} of a config as nested dicts; lists become tuples."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{field}": inner for field, inner in value.items()}
        else:
            flat[name] = value
    return {name: tuple(v) if isinstance(v, list) else v for name, v in flat.items()}


def to_json(config: Config) -> dict:
    """The config as plain dicts and lists: what a checkpoint and a report record."""
    return json.loads(json.dumps(config.to_dict()))


def settings_for_resume(config: Config, named: Set[str], recorded: Mapping | None) -> Config:
    """A copy of `config` in which the fields of KEPT_UNLESS_NAMED have what the old run used.

    So have compute.dtype, where it is "auto", and init_from, where it is a hub id without a commit.
    All others keep what `config` says.

    `recorded` is the config of the run's checkpoint, None where the run is new. A field in `named`
    keeps its value: the command line sets it.
    """
    config = config.copy_and_resolve_references()
    if recorded is not None:
        before = EARLIER | flatten(recorded)
        for name in set(KEPT_UNLESS_NAMED) - named:
            section, _, field = name.rpartition(".")
            _section(config, section)[field] = before[name]
        if config.compute.dtype == "auto":
            # What it meant on the machine where the run began.
            config.compute.dtype = before.get("compute.dtype", "auto")
        config.init_from = _with_commit(config.init_from, str(before.get("init_from", "")))
    return config


def _with_commit(init_from: str, recorded: str) -> str:
    """`recorded` if it is the commit that the hub id `init_from` meant when the run began."""
    now, then = _HUB_MODEL.fullmatch(init_from), _HUB_MODEL.fullmatch(recorded)
    same = now and then and now[1] == then[1] and then[3] and not now[3]
    return recorded if same else init_from


def config_diff(recorded: Mapping, settings: Mapping) -> list[str]:
    """Lines "field: old -> new" for what a resumed run must not change.

    Both are nested dicts. A field that the `recorded` config lacks is compared with EARLIER, or
    not at all.
    """
    old = EARLIER | flatten(recorded)
    new = flatten(settings)
    names = [
        name
        for name in FIELDS
        if name in old and old[name] != new[name] and not name.startswith(MAY_CHANGE_ON_RESUME)
    ]
    return [f"{name}: {old[name]!r} -> {new[name]!r}" for name in names]


def _config_file(argv: Sequence[str]) -> str:
    """What follows --config on the command line, without the argument of its get_config."""
    match = re.search(r"--?config[= ](\S+)", " ".join(argv))
    return match[1].partition(":")[0] if match else "the config file"


def _first_line(error: BaseException, file: str) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    # The words of absl, such as "invalid literal for int() with base 10".
    wrong = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    if wrong and wrong[1] in FIELDS:
        name, value = wrong.groups()
        return f"config field {name}: found {value!r}, expected {expected(FIELDS[name])}"
    unset = text.strip("'\"")
    if unset in FIELDS:
        # The command line names it.
        return f"config field {unset}: missing in {file} (configs/pretrain.py shows it)"
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"--{error.flagname}: unknown ({_meant(error.flagname, '--config.')})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "get_config() takes 0 positional arguments" in text:
        return f"{file}: takes no argument after its name"
    if "Traceback" in text:
        # The file raised an error when it was executed: the last line names it.
        return f"{file}: failed when it was read: {lines[-1]}"
    if isinstance(error, flags.Error | KeyError):  # of the command line
        return " ".join(lines[:2])
    if isinstance(error, OSError):
        return f"{file}: {error.strerror or lines[-1]}"
    if isinstance(error, AttributeError) and "get_config" in text:
        return f"{file}: has no get_config() (configs/pretrain.py shows one)"
    return f"{file}: failed when it was read: {type(error).__name__}: {lines[-1] if lines else ''}"
