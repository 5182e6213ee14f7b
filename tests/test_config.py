"""Every wrong value of a config is refused in one line that names its field and range."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import pretrain
from minigpt_jax import config as configs
from minigpt_jax.config_fields import expected
from minigpt_jax.config_help import reasons
from minigpt_jax.errors import InputError
from minigpt_jax.model_config import GPTConfig

# ml_collections loads config files in a way that Python 3.15 will remove.
pytestmark = pytest.mark.filterwarnings(
    "ignore:the load_module.* method is deprecated:DeprecationWarning"
)

ROOT = Path(__file__).parents[1]
DEADLINE = 300
QUICK = str(ROOT / "configs" / "quickstart.py")


def parse(*overrides: str, file: str = QUICK):
    # ml_collections loads a file into one module name, on top of the file before.
    sys.modules.pop("config_config", None)
    return configs.parse(["train.py", f"--config={file}", *overrides])


def refusal(*overrides: str, file: str = QUICK) -> str:
    """The one line with which these arguments are refused."""
    with pytest.raises(InputError) as refused:
        parse(*overrides, file=file)
    message = str(refused.value)
    assert message.strip() and "\n" not in message
    return message


CONFIG_FILES = sorted(path.name for path in (ROOT / "configs").glob("[!_]*.py"))


@pytest.mark.parametrize(
    "name", [*CONFIG_FILES, "pretrain.py:gpt2-xl", "modern.py:d20", "modern_finetune.py:d20"]
)
def test_every_config_file_is_valid_and_complete(name: str):
    config = parse(file=str(ROOT / "configs" / name))
    assert configs.flatten(configs.to_json(config)).keys() == configs.FIELDS.keys()
    assert config.name == name.partition(".")[0]
    model = GPTConfig(**config.model)
    assert model.embed == model.heads * model.head_dim


def test_the_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as end:
        configs.parse(["train.py", "--help"])
    assert not end.value.code
    help_text = capsys.readouterr().out
    defaults = configs.flatten(pretrain.get_config().to_dict())
    explained = reasons(inspect.getsource(pretrain))
    assert defaults.keys() == configs.FIELDS.keys()
    for name, allowed in configs.FIELDS.items():
        assert len(explained[name].split()) > 2, f"configs/pretrain.py: explain {name} above it"
        line = f"  --config.{name}  {expected(allowed)} (default: {defaults[name]!r})\n"
        _, found, reason = help_text.partition(line)
        assert found, name
        words = " ".join(reason.split("\n  --")[0].split())
        assert words.startswith(explained[name]), name
    for section in {name.split(".")[0] for name in configs.FIELDS if "." in name}:
        assert f"\n\n{section}: {explained[section]}"[:90] in help_text
    assert max(map(len, help_text.splitlines())) <= 100


def test_a_reason_is_the_comment_right_above_a_field():
    source = """
    # No reason: a line stands between.
    x = 1
    c.a = 1
    # One reason,
    # in two lines.
    c.b.c = "# no comment"
    c.d = 2
    """
    assert reasons(source) == {"a": "", "b.c": "One reason, in two lines.", "d": ""}


@pytest.mark.parametrize("size", ["", ":d20"])
def test_a_finetuning_config_trains_the_model_of_its_pretraining(size: str):
    before = parse(file=str(ROOT / "configs" / f"modern.py{size}"))
    after = parse(file=str(ROOT / "configs" / f"modern_finetune.py{size}"))
    assert after.init_from == f"runs/{before.name}"
    assert {**after.model} == {**before.model, "vocab_size": 50261}


def test_the_command_line_overrides_the_file():
    config = parse(
        "--config.data.batch=64",
        "--config.schedule.peak=2e-3",
        "--config.name=mine",
        "--config.fresh=True",
        "--config.eval.prompts=('One','Two')",
    )
    assert config.data.batch == 64 and config.schedule.peak == 2e-3
    assert config.name == "mine" and config.fresh
    assert config.eval.prompts == ("One", "Two")
    assert parse("--config.log.every=7").log.every == 7 and parse().log.every != 7


def values_out_of_range() -> list[tuple[str, str]]:
    """Values just below and just above each range, values of another type, unknown choices."""
    cases = []
    for field, (first, *rest) in configs.FIELDS.items():
        if isinstance(first, str):
            values = ["quadratic", "3"]
        elif isinstance(first, int) and not isinstance(first, type):
            values = [str(first - 1), str(rest[0] + 1), "1.5", "many"]
        elif isinstance(first, float):
            values = [repr(first - 1e-3), "nan", "-inf", "many"]
            if rest[0] != float("inf"):
                values.append(repr(rest[0] * 1.01))
        else:
            values = []
        cases += [(field, value) for value in values]
    return cases


def expected_words(field: str, value: str) -> list[str]:
    """What the refusal of `value` must say."""
    first, *rest = configs.FIELDS[field]
    if isinstance(first, str):
        return [field, "expected one of ", first, *rest]
    low, high = (str(n) if isinstance(n, int) else f"{n:g}" for n in (first, rest[0]))
    noun = "whole number" if isinstance(first, int) else "number"
    return [field, f"expected a {noun} from {low} to {high}"]


def test_every_value_out_of_range_is_refused_with_field_and_range():
    cases = values_out_of_range()
    assert len(cases) > 120
    for field, value in cases:
        message = refusal(f"--config.{field}={value}")
        assert all(word in message for word in expected_words(field, value)), (field, message)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        # Typing mistakes.
        (["--config.data.batchsize=4"], ["data.batchsize", "did you mean data.batch?"]),
        (["--config.steps=4"], ["steps", "did you mean horizon.steps?"]),
        (["--config.log.tensorbord=4"], ["log.tensorbord", "did you mean log.tensorboard?"]),
        (["--config.dat.batch=4"], ["dat.batch", "did you mean data.batch?"]),
        (["--config.bacth=4"], ["bacth", "did you mean data.batch?"]),
        (["--config.optimizer.peak=4"], ["optimizer.peak", "did you mean schedule.peak?"]),
        (["--config.save.evry=4"], ["save.evry", "did you mean save.every?"]),
        (["--config.every=4"], ["did you mean log.every, eval.every or save.every?"]),
        (["--config.mesh=4"], ["did you mean mesh.data, mesh.fsdp or mesh.tensor?"]),
        (["--config.data-batch=4"], ["data-batch", "did you mean data.batch?"]),
        (["--config.nothing=4"], ["nothing", "python train.py --help lists every field"]),
        (["--data.batch=4"], ["--data.batch: unknown", "did you mean --config.data.batch?"]),
        (["--cofnig.batch=4"], ["--cofnig.batch", "did you mean --config.data.batch?"]),
        (["--nolog.tensorbord"], ["did you mean --config.log.tensorboard?"]),
        (["--config.data.batch=four"], ["data.batch", "four"]),
        (["--config.data.batch=4.5"], ["data.batch", "4.5"]),
        (["--config.data.batch=0"], ["data.batch", "found 0", "from 1 to"]),
        (["--config.data.batch=-8"], ["data.batch", "found -8", "from 1 to"]),
        (["--config.schedule.peak=nan"], ["schedule.peak", "found nan", "from 0 to 10"]),
        (["--config.schedule.peak=inf"], ["schedule.peak", "found inf", "from 0 to 10"]),
        (["--config.schedule.kind=cosin"], ["schedule.kind", "cosine, wsd, linear, constant"]),
        (["--config.log.tensorboard=maybe"], ["log.tensorboard", "maybe", "True or False"]),
        (["--config.log.tracker=mlflow"], ["log.tracker", "'mlflow'", "'', trackio, wandb"]),
        (["--config.horizon.steps=1e4"], ["horizon.steps", "'1e4'", "a whole number from 0 to"]),
        (["--config.optimizer.clip=0"], ["optimizer.clip", "found 0"]),
        # Fields that contradict each other.
        (["--config.horizon.tokens=1000"], ["horizon", "exactly one", "steps and tokens"]),
        (["--config.horizon.steps=0"], ["horizon", "exactly one", "found none"]),
        (
            ["--config.horizon.epochs=1.0", "--config.horizon.tokens=5"],
            ["horizon", "steps and tokens and epochs"],
        ),
        # Boolean flags as absl writes them.
        (["--noconfig.log.tensorbord"], ["log.tensorbord"]),
        (["--config.schedule.floor=1.0"], ["schedule.floor 1.0", "above", "schedule.peak"]),
        # No overrides.
        (["data.batch=4"], ["data.batch=4", "--config."]),
    ],
)
def test_mistyped_arguments_are_named(overrides: list[str], words: list[str]):
    message = refusal(*overrides)
    assert all(word in message for word in words), message


def changed_config(*lines: str) -> str:
    """A config file that changes the quickstart by `lines`."""
    body = "".join(f"    {line}\n" for line in lines)
    start = "from configs.quickstart import get_config as quickstart\n"
    return f"{start}def get_config():\n    c = quickstart()\n{body}    return c\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["get_config"]),
        ("get_config = 3\n", ["not callable"]),
        ("def get_config(:\n", ["syntax"]),
        ("import no_such_module_anywhere\n", ["no_such_module_anywhere"]),
        ("def get_config():\n    return None\n", ["no config|get_config"]),
        ("def get_config():\n    return 3\n", ["get_config|ConfigDict"]),
        ("def get_config():\n    return {'name': 'x'}\n", ["get_config|ConfigDict|missing"]),
        (changed_config("del c.data.batch"), ["data.batch: missing"]),
        (
            changed_config("c.data.batchsize = 3"),
            [r"data\.batchsize: unknown \(did you mean data\.batch\?\)"],
        ),
        # The field that was meant is missing too.
        (
            changed_config("del c.eval.rows", "c.eval.row = 3"),
            [r"eval\.row: unknown \(did you mean eval\.rows\?\)"],
        ),
        (changed_config("c.model.layers = True"), ["model.layers", "found True", "whole number"]),
        (changed_config("del c.model", "c.model = 3"), ["model"]),
        (changed_config("del c.eval.prompts", "c.eval.prompts = 'One'"), ["eval.prompts", "tuple"]),
    ],
)
def test_an_invalid_config_file_is_refused_in_one_line(tmp_path: Path, text: str, words: list[str]):
    path = tmp_path / "mine.py"
    path.write_text(text)
    message = refusal(file=str(path))
    assert all(re.search(word, message) for word in words), message


def test_a_missing_file_is_named(tmp_path: Path):
    for path in (tmp_path / "nowhere.py", tmp_path):
        assert str(path) in refusal(file=str(path))
    with pytest.raises(
        InputError, match=r"expected python train\.py --config configs/pretrain\.py"
    ):
        configs.parse(["train.py"])


def test_the_program_ends_with_one_line_and_exit_code_2(tmp_path: Path):
    """A wrong flag and missing data. Both programs run at the same time: imports take long."""
    cases = {
        "nowhere.py": ["--config", str(tmp_path / "nowhere.py")],
        "no manifest.json": [f"--config={QUICK}", f"--config.data.folder={tmp_path}/none"],
    }
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
        for arguments in cases.values()
    ]
    for program, word in zip(programs, cases, strict=True):
        out, err = program.communicate(timeout=DEADLINE)
        assert program.returncode == 2, err
        assert out == "" and err.startswith("error: ") and word in err and err.count("\n") == 1
    # Nothing was started.
    assert not (tmp_path / "runs" / "quickstart").exists()


@pytest.mark.parametrize("size", ["gpt2-smal", "GPT2", ""])
def test_an_unknown_size_is_refused_with_the_sizes(size: str):
    with pytest.raises(InputError, match="expected one of gpt2, gpt2-medium, gpt2-large, gpt2-xl"):
        configs.parse(["train.py", f"--config={ROOT}/configs/pretrain.py:{size}"])


def test_an_argument_that_a_config_file_does_not_take_is_refused():
    with pytest.raises(InputError, match=r"quickstart.py: takes no argument after its name"):
        configs.parse(["train.py", f"--config={QUICK}:gpt2"])


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("runs", "init_from", "data.folder", "eval.hellaswag")
    arguments = [f"--config.{name}=~/{name}" for name in names]
    config = configs.parse(["train.py", f"--config={QUICK}", *arguments])
    flat = configs.flatten(config.to_dict())
    assert {name: flat[name] for name in names} == {name: f"{tmp_path}/{name}" for name in names}
    home = tmp_path / "configs"
    home.symlink_to(ROOT / "configs")
    assert configs.parse(["train.py", "--config=~/configs/quickstart.py"]).name == config.name
    # Elsewhere it is a character like others.
    assert configs.parse(["train.py", f"--config={QUICK}", "--config.name=a~b"]).name == "a~b"


def test_the_horizon_is_counted_in_steps_tokens_or_epochs():
    def steps(**given):
        unset = {"steps": 0, "tokens": 0, "epochs": 0.0}
        return configs.horizon_steps(4, 10, 23, **(unset | given))

    assert steps(steps=7) == 7
    assert (steps(tokens=400), steps(tokens=439), steps(tokens=440)) == (10, 10, 11)
    assert (steps(epochs=1.0), steps(epochs=2.0), steps(epochs=0.5)) == (5, 11, 2)
    # A run has at least one step.
    assert steps(tokens=1) == steps(epochs=0.01) == 1
