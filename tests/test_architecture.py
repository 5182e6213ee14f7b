"""The house keeps its shape: who imports whom, what stays outside, and that every file says what it is for."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A file imports from lower levels only; design.md has the drawing. A name stands for a file or for all of a folder.
LEVELS = {
    0: "errors failpoint interrupt loss optim compiled board cpu",
    1: "tokenizer mesh model config metrics runs",
    2: "chat shards step plan quantize report",
    3: "data checkpoint generate",
    4: "__init__ engine evals interop",
    5: "minigpt_jax.sources data_tools.fast_tokenizer server",
    6: "data_tools.fineweb data_tools.instruct data_tools.index",
    7: "data_tools.python_docs train sample demo configs",
}
LEVEL_OF = {name: level for level, names in LEVELS.items() for name in names.split()}
# Inside these folders files may import each other, as long as no circle comes of it.
FOLDERS = ("configs", "server", "evals", "interop")


def files() -> dict[str, Path]:
    """Every file of the product by its short name: the package's without `minigpt_jax.`, the others as they are imported."""
    found = {}
    for folder in ("minigpt_jax", "data_tools", "configs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[1:] if parts[0] == "minigpt_jax" else parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
            found[name] = path
    return found | {"train": ROOT / "train.py", "sample": ROOT / "sample.py"}


FILES = files()


def imported(path: Path) -> set[str]:
    """Full names of all that a file imports, anywhere in it: also within functions and for type checking."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports relatively; say the whole name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def of_the_product(path: Path) -> set[str]:
    """Short names of the product's files that a file imports."""
    found = set()
    for name in imported(path):
        inner = name.removeprefix("minigpt_jax.")
        if name.split(".")[0] in ("minigpt_jax", "data_tools", "configs", "train", "sample"):
            # `minigpt_jax.errors.InputError` is a name in a file, `minigpt_jax.errors` is a file, `minigpt_jax.load_run` is of __init__.
            candidates = (inner, inner.rpartition(".")[0])
            found.add(next((c for c in candidates if c in FILES), "__init__"))
    return found


def folder_or_file(name: str) -> str:
    return next((folder for folder in FOLDERS if name.split(".")[0] == folder), name)


def program(code: str) -> str:
    """What a fresh interpreter prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_files_import_from_lower_levels_only():
    edges = 0
    for name, path in FILES.items():
        if name == "data_tools":
            continue
        here = folder_or_file(name)
        assert here in LEVEL_OF, (
            f"{path.name} has no level yet: find its place in LEVELS and in docs/design.md"
        )
        for other in of_the_product(path):
            there = folder_or_file(other)
            edges += 1
            assert here == there in FOLDERS or LEVEL_OF[there] < LEVEL_OF[here], (
                f"{name} (level {LEVEL_OF[here]}) imports {other} ({LEVEL_OF[there]})"
            )
    assert edges > 60  # the reading of imports works at all


def test_no_circle_of_imports():
    graph = {name: of_the_product(path) for name, path in FILES.items()}
    done: set[str] = set()
    while len(done) < len(graph):
        free = {name for name, others in graph.items() if name not in done and others <= done}
        assert free, f"a circle among {sorted(graph.keys() - done)}"
        done |= free


@pytest.mark.parametrize(
    ("file", "never"),
    [
        ("model", {"mesh"}),
        ("errors", set(FILES)),
        ("failpoint", set(FILES)),
        ("interrupt", set(FILES)),
        ("loss", set(FILES)),
        ("optim", set(FILES)),
        ("sample", {n for n in FILES if n.startswith("server")} | {"config", "step", "mesh"}),
        ("generate", {"chat", "checkpoint", "mesh"}),
        ("data", {"mesh", "config", "step"}),
    ],
)
def test_what_must_not_know_of_each_other(file: str, never: set[str]):
    assert not of_the_product(FILES[file]) & never


def test_nothing_imports_the_programs():
    for path in FILES.values():
        assert not {name.split(".")[0] for name in imported(path)} & {
            "train",
            "sample",
            "tests",
            "benchmarks",
        }, path


def test_only_config_knows_absl_and_ml_collections():
    users = {
        name
        for name, path in FILES.items()
        if {n.split(".")[0] for n in imported(path)} & {"absl", "ml_collections"}
    }
    assert "config" in users
    assert {name for name in users if not name.startswith("configs")} == {"config"}
    for name, path in FILES.items():
        if name.startswith("configs"):
            assert not {
                n for n in imported(path) if n.startswith(("absl", "minigpt_jax", "jax"))
            }, path


def test_only_the_mesh_knows_its_axes():
    """Names in the model, axes in the mesh: no other file of the package spells an axis as a string."""
    for name in ("model", "loss", "step", "optim", "data", "checkpoint", "generate"):
        strings = {
            n.value
            for n in ast.walk(ast.parse(FILES[name].read_text()))
            if isinstance(n, ast.Constant) and isinstance(n.value, str)
        }
        assert not strings & {"data", "fsdp", "tensor"}, name


def test_no_product_file_names_torch_or_tensorflow_at_its_top():
    """An adapter to somebody else's program (evals/) may import torch inside the function that needs it, nothing else may at all."""
    for name, path in FILES.items():
        for foreign in {n.split(".")[0] for n in imported(path)} & {
            "torch",
            "tensorflow",
            "keras",
            "tf_keras",
        }:
            assert name.startswith("evals."), f"{name} imports {foreign}"


def test_the_product_loads_neither_torch_nor_tensorflow():
    """Imports everything where neither can be found, and asks who looked for them.

    tensorboardX looks for torch to accept its tensors, and does without; anybody else's wish would be a dependency.
    """
    code = """
import importlib, json, pkgutil, sys
class Absent:
    asked = set()
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "tensorflow"):
            frame = sys._getframe(1)
            while "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            self.asked.add(frame.f_globals["__name__"].partition(".")[0])
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
loaded = ["train", "sample"]
for package in ("minigpt_jax", "data_tools", "configs"):
    loaded += [m.name for m in pkgutil.walk_packages(importlib.import_module(package).__path__, package + ".") if not m.name.endswith("__main__")]
for name in loaded:
    importlib.import_module(name)
print(json.dumps([loaded, sorted(Absent.asked), sorted({"torch", "tensorflow"} & set(sys.modules))]))
"""
    loaded, asked, present = json.loads(program(code).splitlines()[-1])
    assert (
        "train" in loaded
        and "minigpt_jax.checkpoint" in loaded
        and "configs.pretrain" in loaded
        and "data_tools.instruct" in loaded
    )
    assert present == []
    assert set(asked) <= {"tensorboardX"}


def test_a_start_does_not_wait_for_tensorboard():
    assert program("import sys, train; print('tensorboardX' in sys.modules)").split() == ["False"]


def test_data_tools_need_no_jax():
    for name, path in FILES.items():
        if name.startswith("data_tools"):
            assert not {n.split(".")[0] for n in imported(path)} & {
                "jax",
                "flax",
                "optax",
                "orbax",
            }, path
    code = """
import importlib, pkgutil, sys, data_tools
for module in pkgutil.iter_modules(data_tools.__path__): importlib.import_module("data_tools." + module.name)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"jax", "jaxlib", "flax", "data_tools"}))
"""
    assert program(code).strip() == "['data_tools']"


def test_importing_the_package_costs_nothing():
    """`import minigpt_jax` and its data side start at once; JAX comes with load_run."""
    code = "import sys, minigpt_jax, minigpt_jax.token_stream, minigpt_jax.chat; print(sorted({'jax', 'torch', 'datasets'} & set(sys.modules)))"
    assert program(code).strip() == "[]"


def test_every_file_says_what_it_is_for():
    for path in FILES.values():
        text = ast.get_docstring(ast.parse(path.read_text()))
        assert text and len(text.splitlines()[0]) > 30, (
            f"{path}: begin with a docstring that says what the file is for"
        )


def test_no_drawer_for_odds_and_ends():
    for path in FILES.values():
        assert not re.fullmatch(r"(.*_)?(utils?|common|helpers?|misc)", path.stem), path
        assert len(path.read_text().splitlines()) < 1000, (
            f"{path} has grown past a thousand lines: which noun is missing?"
        )


FORBIDDEN = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "subprocess.getoutput",
    "os.system",
    "os.popen",
}


def dangers(source: str) -> list[str]:
    """What in a source text could run somebody's data as a program."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + (
                [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            )
            found += [name for name in names if name.split(".")[0] in FORBIDDEN]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            found += [called] * (
                called
                in {
                    "eval",
                    "exec",
                    "torch.load",
                    "yaml.load",
                    "yaml.unsafe_load",
                    "yaml.full_load",
                    *FORBIDDEN,
                }
            )
            arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            found += [
                name
                for name in ("allow_pickle", "shell")
                if arguments.get(name, "False") != "False"
            ]
    return found


def test_nothing_in_the_product_can_run_somebodys_data():
    """No pickle, eval, exec, allow_pickle, torch.load, unsafe yaml or shell, in the product or in what measures it."""
    for path in [*FILES.values(), *(ROOT / "benchmarks").glob("*.py")]:
        assert not dangers(path.read_text()), f"{path}: {dangers(path.read_text())}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "exec(text)",
        "np.load(p, allow_pickle=True)",
        "torch.load(p)",
        "yaml.load(f)",
        "subprocess.run('ls', shell=True)",
        "os.system('ls')",
        "subprocess.run(x, shell=flag)",
    ],
)
def test_the_danger_finder_finds(source: str):
    assert dangers(source)
