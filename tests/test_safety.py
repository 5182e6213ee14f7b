"""Nothing in the product or its benchmarks can run the data of others as a program."""

import ast

import pytest

from tests.harness import ROOT
from tests.test_architecture import FILES

FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("subprocess.getoutput", "os.system", "os.popen"),
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "torch.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *FORBIDDEN_MODULES,
}
FORBIDDEN_ARGUMENTS = ("allow_pickle", "shell")


def dangers(source: str) -> list[str]:
    """What in a source text could run data as a program."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom) and node.module:
                names.append(node.module)
            found += [name for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS:
                found.append(called)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            found += [name for name in FORBIDDEN_ARGUMENTS if given.get(name, "False") != "False"]
    return found


def test_no_file_can_run_data_as_a_program():
    """No pickle, eval, exec, allow_pickle, torch.load, unsafe yaml or shell."""
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
def test_a_danger_is_found(source: str):
    assert dangers(source)
