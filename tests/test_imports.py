"""Which room may import which, and how little `import kdjax.losses` and the doors bring in."""

import ast
import pathlib
import subprocess
import sys

import pytest

# A room imports only from rows above its own (and from itself).
ROWS = [
    {"errors", "types", "signals"},
    {"randomness", "arguments", "own_code", "bounded"},
    {"losses", "config"},
    {"models", "data", "analysis", "run_names"},
    {"config_files"},
    {"store", "given"},
    {"interop", "distillation"},
    {"training"},
    {"inspection"},
    {"reporting"},
    {"studies"},
    {"cli", "bench", "api"},
]
DOORS = {"train_teacher", "train_student", "evaluate", "run_study", "import_torch", "export", "predict", "import_flax"}
DOORS |= {"publish", "runs", "show_model", "show_views", "prepare_data", "train_generations", "analyze", "report"}


def room_of(path: pathlib.Path, package: pathlib.Path) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def imported_rooms(path: pathlib.Path, rooms: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        parts = [name.split(".") for name in names if name.split(".")[0] == "kdjax"]
        found |= {part[1] for part in parts if len(part) > 1 and part[1] in rooms}
    return found


def test_each_room_imports_only_from_rows_above(root):
    package = root / "kdjax"
    rank = {room: number for number, row in enumerate(ROWS) for room in row} | {door: len(ROWS) for door in DOORS}
    files = [path for path in package.rglob("*.py") if path != package / "__init__.py"]
    assert len(files) > 20
    for path in files:
        room = room_of(path, package)
        assert room in rank, f"{path} is in no row"
        for other in imported_rooms(path, set(rank)) - {room}:
            allowed = rank[other] < rank[room] or (room == "bench" and other == "cli")
            assert allowed, f"{path.relative_to(root)} imports kdjax.{other}"


def test_pmap_is_said_in_one_file(root):
    said = [path.name for path in (root / "kdjax").rglob("*.py") if "pmap(" in path.read_text()]
    assert said == ["parallel.py"]


def test_configs_import_nothing_but_the_schema_and_common(root):
    allowed = {"ml_collections", "kdjax.config", "kdjax.errors", "configs", "configs.studies", "typing"}
    for path in (root / "configs").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module in allowed, f"{path} imports {node.module}"
            assert not isinstance(node, ast.Import), f"{path}: use from ... import ..."


@pytest.mark.parametrize(
    "line, heavy",
    [
        (
            "from kdjax import losses",
            "flax orbax tensorflow_datasets tensorflow sklearn matplotlib grain ml_collections chex".split(),
        ),
        ("from kdjax import analysis", ("flax", "orbax", "scipy.optimize", "sklearn", "matplotlib")),
        ("import kdjax.cli", ("jax", "flax", "orbax", "tensorflow_datasets")),
        (
            "import kdjax.train_student, kdjax.train_teacher, kdjax.evaluate, kdjax.run_study, kdjax.analyze",
            ("jax", "flax", "orbax"),
        ),
        ("import kdjax; dir(kdjax)", ("jax", "flax", "ml_collections")),
        ("import kdjax.config", ("jax",)),
        ("import kdjax.training.loop", ("tensorflow_datasets", "sklearn", "matplotlib", "PIL")),
    ],
)
def test_imports_stay_light(line, heavy, root):
    code = f"{line}; import sys; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout
