"""The structure of the project: one map of modules, who imports whom, how large a file may be."""

import ast
import re
from pathlib import Path

import pytest

from tests.harness import ROOT, fresh_python, tracked_files

PRODUCT = ("minigpt_jax", "data_tools", "configs", "train", "sample")
# Files of one of these folders may import each other.
FOLDERS = (
    *("configs", "data_tools", "evals", "interop"),
    *("runtime", "server", "sources", "tracking"),
)
MAX_LINES = 350
MAX_SHARE = 0.13
MAP_LINE = re.compile(r"^(\d+) +(\S+?)(?:\.py|/)? +\S.*$", re.MULTILINE)


def product_files() -> dict[str, Path]:
    """Every Python file of the product by its short name, such as `runtime.files` or `train`."""
    found = {"train": ROOT / "train.py", "sample": ROOT / "sample.py"}
    for folder in ("minigpt_jax", "data_tools", "configs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[0] == "minigpt_jax":
                parts = parts[1:]
            if parts[-1] == "__init__" and len(parts) > 1:
                parts = parts[:-1]
            found[".".join(parts)] = path
    return found


FILES = product_files()


def module_map() -> dict[str, int]:
    """Levels by name, as docs/design.md lists them; the name of a folder ends with a dot."""
    text = (ROOT / "docs" / "design.md").read_text()
    block = text.split("## The map of modules")[1].split("```")[1]
    levels: dict[str, int] = {}
    for match in MAP_LINE.finditer(block):
        name = match[2].replace("/", ".")
        assert name not in levels, f"docs/design.md lists {name} twice"
        levels[name] = int(match[1])
    return levels


LEVELS = module_map()


def level_of(name: str) -> int:
    """The level of a file, or that of its folder where the map lists the folder as one."""
    return LEVELS[name] if name in LEVELS else LEVELS[name.split(".")[0]]


def imports_of(path: Path) -> set[str]:
    """Full names of all that a file imports, also inside functions and for type checking."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports relatively; write the whole name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def product_imports(path: Path) -> set[str]:
    """Short names of the product's files that a file imports."""
    found = set()
    for name in imports_of(path):
        if name.split(".")[0] not in PRODUCT:
            continue
        inner = name.removeprefix("minigpt_jax.")
        # `errors.InputError` is a name in a file, `errors` is a file, `load_run` is in __init__.
        candidates = (inner, inner.rpartition(".")[0])
        found.add(next((c for c in candidates if c in FILES), "__init__"))
    return found


def top_level(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_the_map_lists_every_module_and_nothing_else():
    listed = set(LEVELS)
    for name in FILES:
        folder = name.split(".")[0]
        assert name in listed or (folder in listed and folder in FOLDERS), (
            f"docs/design.md does not list {name}"
        )
    for name in listed:
        assert name in FILES or any(file.startswith(name + ".") for file in FILES), (
            f"docs/design.md lists {name}, which does not exist"
        )


def test_files_import_from_lower_levels_only():
    edges = 0
    for name, path in FILES.items():
        for other in product_imports(path):
            edges += 1
            same_folder = name.split(".")[0] == other.split(".")[0] in FOLDERS
            assert same_folder or level_of(other) < level_of(name), (
                f"{name} (level {level_of(name)}) imports {other} (level {level_of(other)})"
            )
    assert edges > 100


def test_no_cycle_of_imports():
    graph = {name: product_imports(path) for name, path in FILES.items()}
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {name for name, others in graph.items() if name not in done and others <= done}
        assert ready, f"a cycle among {sorted(graph.keys() - done)}"
        done |= ready


@pytest.mark.parametrize(
    ("file", "never"),
    [
        ("model", {"sharding"}),
        ("attention", {"model", "sharding"}),
        ("errors", set(FILES)),
        ("runtime.failpoint", set(FILES) - {"errors"}),
        ("runtime.ctrl_c", set(FILES)),
        ("runtime.interrupt", set(FILES) - {"runtime.ctrl_c"}),
        ("generate", {"chat", "checkpoint", "sharding"}),
        ("data", {"sharding", "config", "step"}),
        ("talk", {"config", "step", "sharding"} | {n for n in FILES if n.startswith("server")}),
    ],
)
def test_what_a_file_never_imports(file: str, never: set[str]):
    assert not product_imports(FILES[file]) & never


def test_no_file_imports_the_programs():
    for path in FILES.values():
        assert not top_level(imports_of(path)) & {"train", "sample", "tests", "benchmarks"}, path


def test_only_config_imports_absl_and_ml_collections():
    for name, path in FILES.items():
        imported = top_level(imports_of(path))
        if name.startswith("configs"):
            assert not imported & {"absl", "minigpt_jax", "jax"}, path
        elif name != "config":
            assert not imported & {"absl", "ml_collections"}, path


def test_only_sharding_names_the_mesh_axes():
    for name in ("model", "attention", "loss", "step", "optim", "data", "checkpoint", "generate"):
        tree = ast.parse(FILES[name].read_text())
        strings = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not strings & {"data", "fsdp", "tensor"}, name


def test_no_product_file_imports_torch_or_tensorflow():
    """An adapter to another program (in evals/) may import torch in the function that needs it."""
    for name, path in FILES.items():
        foreign = top_level(imports_of(path)) & {"torch", "tensorflow", "keras", "tf_keras"}
        assert not foreign or name.startswith("evals."), f"{name} imports {foreign}"


def test_the_product_loads_neither_torch_nor_tensorflow():
    """Import everything where neither can be found, and record which package looks for them.

    tensorboardX looks for torch to accept its tensors and works without; any other package that
    looked for it would be a dependency on torch.
    """
    loaded, asked, present = fresh_python("""
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
            path = importlib.import_module(package).__path__
            for module in pkgutil.walk_packages(path, package + "."):
                if not module.name.endswith("__main__"):
                    loaded.append(module.name)
        for name in loaded:
            importlib.import_module(name)
        present = sorted({"torch", "tensorflow"} & set(sys.modules))
        print(json.dumps([loaded, sorted(Absent.asked), present]))
    """)
    expected = {"train", "minigpt_jax.checkpoint", "configs.pretrain", "data_tools.instruct"}
    assert expected <= set(loaded)
    assert present == []
    assert set(asked) <= {"tensorboardX"}


def test_data_tools_import_no_jax():
    for name, path in FILES.items():
        if name.startswith("data_tools"):
            assert not top_level(imports_of(path)) & {"jax", "flax", "optax", "orbax"}, path
    found = fresh_python("""
        import importlib, json, pkgutil, sys, data_tools
        for module in pkgutil.iter_modules(data_tools.__path__):
            importlib.import_module("data_tools." + module.name)
        print(json.dumps(sorted({"jax", "jaxlib", "flax", "data_tools"} & set(sys.modules))))
    """)
    assert found == ["data_tools"]


def test_importing_the_package_imports_no_jax():
    found = fresh_python("""
        import json, sys
        import minigpt_jax, minigpt_jax.chat, minigpt_jax.sources, minigpt_jax.token_stream
        print(json.dumps(sorted({"jax", "torch", "datasets"} & set(sys.modules))))
    """)
    assert found == []


def test_train_starts_without_tensorboard():
    found = fresh_python("""
        import json, sys, train
        print(json.dumps("tensorboardX" in sys.modules))
    """)
    assert found is False


def test_every_file_begins_with_its_purpose():
    for path in FILES.values():
        text = ast.get_docstring(ast.parse(path.read_text()))
        assert text and len(text.splitlines()[0]) > 30, f"{path}: begin with what the file is for"


def test_no_file_is_a_collection_of_leftovers():
    for path in FILES.values():
        assert not re.fullmatch(r"(.*_)?(utils?|common|helpers?|misc)", path.stem), path


def tracked_python_files() -> list[Path]:
    return [ROOT / name for name in tracked_files() if name.endswith(".py")]


def test_no_python_file_is_too_long():
    for path in tracked_python_files():
        lines = len(path.read_text().splitlines())
        assert lines <= MAX_LINES, f"{path}: {lines} lines: which noun is missing?"


def test_no_line_is_too_wide_and_the_formatter_is_never_switched_off():
    switch = re.compile("# *fmt: *(skip|off)")
    for path in tracked_python_files():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert len(line) <= 100, f"{path}:{number} has {len(line)} columns"
            assert not switch.search(line), f"{path}:{number} switches the formatter off"


def test_no_module_dominates():
    sizes = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    total = sum(sizes.values())
    for name, size in sizes.items():
        assert size <= MAX_SHARE * total, f"{name}: {size / total:.1%} of the product's lines"
