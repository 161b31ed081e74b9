"""What kdjax is measured beside, and the measurement of a GPU in its smallest form."""

import numpy as np
import pytest

from kdjax import models
from kdjax.bench import gpu, pairs, rival, torch_networks
from kdjax.bench.pairs import Pair
from kdjax.bench.results import load
from kdjax.errors import UserError
from kdjax.interop.torch_weights import to_state_dict


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4", "wrn_16_2"])
def test_pytorchs_networks_compute_what_kdjaxs_do(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    module = models.create_model(name, 10)
    variables = models.init_variables(module, (1, 32, 32, 3), 3)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    network = torch_networks.network(name, 10).eval()
    state = {key: torch.from_numpy(np.array(leaf)) for key, leaf in to_state_dict(module, variables).items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    own = models.call(module, variables, images, train=False)[0].logits
    other = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(own, other, atol=1e-4)


def test_only_names_pairs_of_networks_that_exist():
    assert pairs.parse(["resnet20-resnet8"], ()) == [Pair("resnet20", "resnet8")]
    assert pairs.parse([], gpu.PAIRS) == list(gpu.PAIRS)
    with pytest.raises(UserError, match="TEACHER-STUDENT"):
        pairs.parse(["resnet20"], ())
    with pytest.raises(UserError, match="resnet8"):
        pairs.parse(["resnet20-resnt8"], ())


def test_a_network_that_is_not_written_in_pytorch_and_a_missing_pytorch_are_told_in_one_line(monkeypatch):
    with pytest.raises(UserError, match="vgg8"):
        torch_networks.shape_of("vgg8")
    monkeypatch.setattr(rival.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        rival.check_torch()


def test_the_cells_of_bench_gpu_come_in_order_of_importance_and_are_all_there():
    cells = gpu.cells_of(gpu.PAIRS)
    assert cells[:2] == [gpu.Cell(pair, 64, "bfloat16", 1) for pair in gpu.PAIRS]
    assert cells[-1] == gpu.Cell(gpu.PAIRS[1], 512, "float32", 8) and len(set(cells)) == len(cells) == 16


def test_no_cell_begins_that_would_not_fit_into_the_time(monkeypatch):
    clock = iter(range(0, 1000, 10))  # every look at the clock is 10 s after the one before
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(gpu, "measured_peak", lambda dtype: 1.0)
    monkeypatch.setattr(gpu, "measure", lambda cell, rounds, steps, peak: ((cell,), []))
    cells = gpu.cells_of(gpu.PAIRS)
    assert [row[0] for row, _ in gpu.measured(cells, 0, 1, 1)] == cells[:1]
    clock = iter(range(0, 1000, 10))
    assert [row[0] for row, _ in gpu.measured(cells, 60, 1, 1)] == cells[:3]


@pytest.mark.slow
def test_bench_gpu_runs_on_a_cpu_and_leaves_the_table_of_the_cells_so_far(door, tmp_path):
    file = str(tmp_path / "gpu.json")
    flags = ("--only=mlp-mlp", "--seconds=0", "--rounds=1", "--steps=2", f"--json={file}")
    done = door("kdjax.bench", "gpu", *flags)
    assert done.returncode == 0, done.stderr
    found, kernels = load(file)
    assert [row[:4] for row in found.rows] == [["mlp → mlp", "64", "bfloat16", "1"]]
    step, images = float(found.rows[0][4]), float(found.rows[0][5])
    assert images == pytest.approx(64_000 / step, rel=0.05) and 0 < float(found.rows[0][6]) < 1
    assert kernels.rows and 0 < sum(float(row[6]) for row in kernels.rows) <= 1.01
