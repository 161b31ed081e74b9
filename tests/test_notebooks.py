"""The notebooks are executed from top to bottom, by the interpreter that runs the tests."""

import ast
import json
import sys

import pytest

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[test]'")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install '.[test]'")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install '.[test]'")

NOTEBOOKS = {"losses": 5, "teach": 3}  # name -> figures at least
ALLOWED = {"losses": {"jax", "jax.numpy", "matplotlib.pyplot", "numpy", "kdjax"}}
ALLOWED["teach"] = ALLOWED["losses"] | {"flax", "flax.linen", "kdjax.data", "optax", "pathlib"}


def read(root, name):
    return nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)


def kernel(root, folder):
    """A kernel manager that knows one kernel only: this interpreter, which finds the project without installation."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "tests",
        "language": "python",
        "env": {"PYTHONPATH": str(root), "IPYTHONDIR": str(folder / "ipython")},
    }
    (folder / "kernels" / "tests").mkdir(parents=True)
    (folder / "kernels" / "tests" / "kernel.json").write_text(json.dumps(spec))
    specs = KernelSpecManager(kernel_dirs=[str(folder / "kernels")], ensure_native_kernel=False)
    return AsyncKernelManager(kernel_name="tests", kernel_spec_manager=specs)


def test_every_notebook_is_listed(root):
    assert sorted(path.stem for path in (root / "notebooks").glob("*.ipynb")) == sorted(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_stored_valid_and_without_outputs(root, name):
    notebook = read(root, name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_imports_what_it_shows_and_little_else(root, name):
    source = "\n".join(cell.source for cell in read(root, name).cells if cell.cell_type == "code")
    nodes = list(ast.walk(ast.parse(source)))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert found <= ALLOWED[name]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs(root, name, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = read(root, name)
    client = nbclient.NotebookClient(
        notebook, km=kernel(root, tmp_path), timeout=120, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= NOTEBOOKS[name]
    assert not [output for output in shown if output.output_type == "stream" and output.name == "stderr"]
