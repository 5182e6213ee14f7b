"""What a run is told is checked before anything is compiled: every wrong value ends in one line with its field and range."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt_jax import config as configs
from minigpt_jax.errors import InputError

# ml_collections loads config files in a way that Python 3.15 will take away.
pytestmark = pytest.mark.filterwarnings(
    "ignore:the load_module.* method is deprecated:DeprecationWarning"
)

ROOT = Path(__file__).parents[1]
QUICK = str(ROOT / "configs" / "quickstart.py")


def parse(*overrides: str, file: str = QUICK):
    sys.modules.pop(
        "config_config", None
    )  # where ml_collections loads a file, on top of the one before
    return configs.parse(["train.py", f"--config={file}", *overrides])


def refusal(*overrides: str, file: str = QUICK) -> str:
    """The one line that these arguments end in."""
    with pytest.raises(InputError) as refused:
        parse(*overrides, file=file)
    message = str(refused.value)
    assert message.strip() and "\n" not in message
    return message


@pytest.mark.parametrize("name", ["pretrain", "finetune", "quickstart", "quickstart_finetune"])
def test_every_config_file_of_ours_is_sound_and_complete(name: str):
    config = parse(file=str(ROOT / "configs" / f"{name}.py"))
    assert configs.flatten(config).keys() == configs.FIELDS.keys()
    assert config.name == name


def test_the_command_line_overrides_the_file():
    config = parse(
        "--config.data.batch=64",
        "--config.schedule.peak=2e-3",
        "--config.name=mine",
        "--config.fresh=True",
        "--config.eval.prompts=('One','Two')",
    )
    assert (config.data.batch, config.schedule.peak, config.name, config.fresh) == (
        64,
        2e-3,
        "mine",
        True,
    )
    assert config.eval.prompts == ("One", "Two")
    assert parse("--config.log.every=7").log.every == 7 and parse().log.every != 7


def values_out_of_range() -> list[tuple[str, str]]:
    """For each field with a range: what lies just below and above it; for each choice, something else."""
    cases = []
    for field, (first, *rest) in configs.FIELDS.items():
        if isinstance(first, str):
            cases += [(field, "quadratic"), (field, "3")]
        elif isinstance(first, int) and not isinstance(first, type):
            cases += [
                (field, str(first - 1)),
                (field, str(rest[0] + 1)),
                (field, "1.5"),
                (field, "many"),
            ]
        elif isinstance(first, float):
            cases += [(field, repr(first - 1e-3)), (field, "nan"), (field, "-inf"), (field, "many")]
            cases += [(field, repr(rest[0] * 1.01))] if rest[0] != float("inf") else []
    return cases


def test_every_value_out_of_range_is_refused_with_field_and_range():
    cases = values_out_of_range()
    assert len(cases) > 120
    for field, value in cases:
        message = refusal(f"--config.{field}={value}")
        assert field in message, (field, value, message)
        first, *rest = configs.FIELDS[field]
        if value in ("1.5", "many"):  # refused as another type, before the range is looked at
            assert value in message
        elif isinstance(first, str):
            assert "expected one of " in message and all(
                choice in message for choice in (first, *rest)
            )
        else:
            low, high = (str(n) if isinstance(n, int) else f"{n:g}" for n in (first, rest[0]))
            assert (
                f"expected a {'whole number' if isinstance(first, int) else 'number'} from {low} to {high}"
                in message
            )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        # What a person mistypes.
        (["--config.data.batchsize=4"], ["data", "batchsize"]),
        (["--config.dat.batch=4"], ["dat"]),
        (["--config.nothing=4"], ["nothing"]),
        (["--config.data.batch=four"], ["data.batch", "four"]),
        (["--config.data.batch=4.5"], ["data.batch", "4.5"]),
        (["--config.data.batch=0"], ["data.batch", "found 0", "from 1 to"]),
        (["--config.data.batch=-8"], ["data.batch", "found -8", "from 1 to"]),
        (["--config.schedule.peak=nan"], ["schedule.peak", "found nan", "from 0 to 10"]),
        (["--config.schedule.peak=inf"], ["schedule.peak", "found inf", "from 0 to 10"]),
        (
            ["--config.schedule.kind=cosin"],
            ["schedule.kind", "cosin", "cosine, wsd, linear, constant"],
        ),
        (["--config.log.tensorboard=maybe"], ["log.tensorboard", "maybe"]),
        (["--config.optimizer.clip=0"], ["optimizer.clip", "found 0"]),
        # Fields that contradict each other.
        (["--config.horizon.tokens=1000"], ["horizon", "exactly one", "steps and tokens"]),
        (["--config.horizon.steps=0"], ["horizon", "exactly one", "found none"]),
        (
            ["--config.horizon.epochs=1.0", "--config.horizon.tokens=5"],
            ["horizon", "steps and tokens and epochs"],
        ),
        (["--config.model.embed=130"], ["model.embed 130", "multiple", "model.heads 4"]),
        (["--config.schedule.floor=1.0"], ["schedule.floor 1.0", "above", "schedule.peak"]),
        # What is no override at all.
        (["data.batch=4"], ["data.batch=4", "--config."]),
        (["--data.batch=4"], ["data.batch"]),
    ],
)
def test_mistyped_arguments_are_named(overrides: list[str], words: list[str]):
    message = refusal(*overrides)
    assert all(word in message for word in words), message


BEGINNING = "from configs.quickstart import get_config as quickstart\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["get_config"]),
        ("get_config = 3\n", ["not callable"]),
        ("def get_config(:\n", ["syntax"]),
        ("import no_such_module_anywhere\n", ["no_such_module_anywhere"]),
        ("def get_config():\n    return None\n", ["say what to train|get_config"]),
        ("def get_config():\n    return 3\n", ["get_config|ConfigDict"]),
        ("def get_config():\n    return {'name': 'x'}\n", ["get_config|ConfigDict|missing"]),
        (
            BEGINNING
            + "def get_config():\n    c = quickstart()\n    del c.data.batch\n    return c\n",
            ["data.batch: missing"],
        ),
        (
            BEGINNING
            + "def get_config():\n    c = quickstart()\n    c.data.batchsize = 3\n    return c\n",
            ["data.batchsize: unknown"],
        ),
        (
            BEGINNING
            + "def get_config():\n    c = quickstart()\n    c.model.layers = True\n    return c\n",
            ["model.layers", "found True", "whole number"],
        ),
        (
            BEGINNING
            + "def get_config():\n    c = quickstart()\n    del c.model\n    c.model = 3\n    return c\n",
            ["model"],
        ),
        (
            BEGINNING
            + "def get_config():\n    c = quickstart()\n    del c.eval.prompts\n    c.eval.prompts = 'One'\n    return c\n",
            ["eval.prompts", "tuple"],
        ),
    ],
)
def test_a_config_file_that_is_none_is_refused_in_one_line(
    tmp_path: Path, text: str, words: list[str]
):
    path = tmp_path / "mine.py"
    path.write_text(text)
    message = refusal(file=str(path))
    assert all(re.search(word, message) for word in words), message


def test_a_missing_file_is_named(tmp_path: Path):
    for path in (tmp_path / "nowhere.py", tmp_path):
        assert str(path) in refusal(file=str(path))
    with pytest.raises(
        InputError, match=r"say what to train: python train\.py --config configs/pretrain\.py"
    ):
        configs.parse(["train.py"])


def test_the_program_itself_ends_in_one_line_and_exit_code_2(tmp_path: Path):
    """Two of them as a user meets them, the last one found late; started together, for JAX takes its time to import."""
    cases = [
        ["--config", str(tmp_path / "nowhere.py")],
        [f"--config={QUICK}", f"--config.data.folder={tmp_path}/none"],
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    programs = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments in cases
    ]
    for program, word in zip(programs, ["nowhere.py", "no manifest.json"], strict=True):
        out, err = program.communicate(timeout=120)
        assert program.returncode == 2, err
        assert out == "" and err.startswith("error: ") and word in err and err.count("\n") == 1
    assert not (tmp_path / "runs" / "quickstart").exists()  # nothing was begun


# ---- what a resumed run may change

FIXED = {
    "": ("seed", "init_from", "deterministic"),
    "model": ("vocab_size", "context", "layers", "heads", "embed", "dropout"),
    "compute": ("dtype", "remat", "unroll", "attention"),
    "loss": ("chunk",),
    "data": ("batch", "isolate_documents"),
    "optimizer": ("b1", "b2", "eps", "weight_decay", "clip"),
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


def test_a_resumed_run_may_change_horizon_mesh_logging_and_saving_and_nothing_that_shapes_its_mathematics():
    before = parse()
    kept = configs.ConfigDict(before.to_dict()).to_dict()
    assert configs.config_diff(kept, before) == []
    for field, old in configs.flatten(before).items():
        now = parse()
        section, _, name = field.rpartition(".")
        new = another_value(field, old)
        (now[section] if section else now)[name] = new
        expected = [f"{field}: {old!r} -> {new!r}"] if name in FIXED.get(section, ()) else []
        assert configs.config_diff(kept, now) == expected, field
    assert {
        f"{section}.{name}".lstrip(".") for section, names in FIXED.items() for name in names
    } < configs.FIELDS.keys()


def test_a_config_survives_the_json_that_a_checkpoint_keeps():
    config = parse()
    again = json.loads(configs.to_json(config))
    assert configs.config_diff(again, config) == []
    assert configs.flatten(configs.ConfigDict(again)) == configs.flatten(config)


def test_the_horizon_is_counted_in_steps_tokens_or_epochs():
    def steps(**given):
        return configs.horizon_steps(
            4, 10, 23, **({"steps": 0, "tokens": 0, "epochs": 0.0} | given)
        )

    assert steps(steps=7) == 7
    assert (steps(tokens=400), steps(tokens=439), steps(tokens=440)) == (10, 10, 11)
    assert (steps(epochs=1.0), steps(epochs=2.0), steps(epochs=0.5)) == (5, 11, 2)
    assert steps(tokens=1) == steps(epochs=0.01) == 1  # never a run of no step
