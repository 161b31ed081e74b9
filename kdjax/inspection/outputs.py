"""Writes a run's outputs for the rows of its data set to a file, from which students learn as from the run itself."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from scipy.special import logsumexp

from kdjax.data import resolve_view, split_hash
from kdjax.data.views import names as view_names
from kdjax.errors import UserError
from kdjax.inspection.predict import LoadedRun, check_split, load_run, predict_rows
from kdjax.interop.output_files import write_logits, write_top
from kdjax.store import Store
from kdjax.types import TopK

BATCHES = 32  # that are computed before they are written


def write_outputs(
    store: Store,
    name: str,
    path: str,
    *,
    split: str = "train",
    checkpoint: str = "last",
    top_k: int = 0,
    dtype: str = "float32",
    view: str = "none",
    visits: int = 0,
    seed: int = 0,
    data_dir: str = "data",
    devices: Sequence[jax.Device] | None = None,
) -> tuple[int, ...]:
    """Writes a run's outputs, and beside them what they are outputs of (see `kdjax.interop.output_files`).

    Args:
      store: Store that holds the run.
      name: Name of the run.
      path: File to write: '.npy' of logits [rows, classes], or '.npz' of the top classes [rows, k].
      split: 'train', 'validation', 'test', or 'all' for every row of the data set. Rows without a label count.
      checkpoint: 'last', 'best' or a step.
      top_k: Number of classes that are kept, 0 for all.
      dtype: 'float32' or 'float16'.
      view: View of the images.
      visits: Draws of a random view, an axis after the rows: draw e is what a student of `seed` sees in epoch e. 0 for
        a view that is not random.
      seed: Seed of the view.
      data_dir: Directory of the data sets that do not come with kdjax.
      devices: Devices of this process; all of them by default.

    Returns:
      Shape of what was written.

    Raises:
      UserError: The run, the checkpoint, the data set or the split does not exist, an option does not fit the others,
        or the file cannot be written.
    """
    _check_name(path, top_k)
    run = load_run(store, name, checkpoint, data_dir, devices)
    if split != "all":
        check_split(name, run, split)
    rows = np.arange(len(run.dataset.labels), dtype=np.int32) if split == "all" else run.dataset.splits[split]
    view = resolve_view(run.dataset, view, "--view")
    _check_view(view, visits)
    manifest = run.network.manifest
    classes = manifest["model"]["num_classes"]
    about: dict[str, Any] = {
        "run": name,
        "checkpoint": checkpoint,
        "step": run.network.step,
        "split": split,
        "rows": {"size": len(rows), "sha256": split_hash(rows)},
        "data": run.dataset.source_hashes,
        "view": view,
        "seed": seed,
        "trained_on": manifest["config"]["data"],
        "labelled": manifest.get("labelled", {}).get("sha256"),
        "loss_space": manifest.get("loss_space", "probs"),
        "class_names": manifest.get("class_names"),
    }
    parts = _parts(run, rows, view, visits, seed)
    if not top_k:
        shape = (len(rows), *([visits] if visits else []), classes)
        write_logits(path, parts, shape, dtype, about)
        return shape
    if about["loss_space"] == "logits":
        raise UserError(f"run '{name}' was fitted in logit space, where top classes say almost nothing; leave --top_k.")
    if top_k > classes:
        raise UserError(f"--top_k={top_k} is more than the {classes} classes of run '{name}'.")
    kept = [_top(part, top_k, dtype) for part in parts]
    top = TopK(*(np.concatenate(leaves) for leaves in zip(*kept, strict=True)))
    write_top(path, top, about)
    return top.indices.shape


def _check_name(path: str, top_k: int) -> None:
    ending = ".npz" if top_k else ".npy"
    if not path.endswith(ending):
        kind = "top classes (--top_k) are" if top_k else "logits are"
        raise UserError(f"--out={path} must end in {ending}, since {kind} written as such a file.")


def _check_view(view: str, visits: int) -> None:
    parsed = view_names.parse(view)
    if parsed.mix:
        raise UserError(f"--view={view} mixes examples, whose outputs cannot be stored; choose another view.")
    if (parsed != view_names.View()) != bool(visits):
        if visits:
            raise UserError(
                f"--visits={visits} needs a random --view such as crop_flip: all draws of '{view}' are equal."
            )
        raise UserError(f"--view={view} is random: say by --visits how many draws to write, one for each epoch.")


def _parts(run: LoadedRun, rows: np.ndarray, view: str, visits: int, seed: int) -> Iterator[np.ndarray]:
    """Yields the logits of consecutive rows, [rows, classes] or [rows, visits, classes]."""
    size = BATCHES * run.batch_size
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        drawn = [
            predict_rows(run.network, run.dataset, some, run.batch_size, run.devices, view=view, seed=seed, visit=v)
            for v in range(visits or 1)
        ]
        yield np.stack([one["logits"] for one in drawn], axis=1) if visits else drawn[0]["logits"]


def _top(logits: np.ndarray, k: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k most probable classes [..., k], the most probable first, and their log-probabilities."""
    wide = np.asarray(logits, np.float64)
    indices = np.argsort(-wide, axis=-1, kind="stable")[..., :k]
    log_probs = np.take_along_axis(wide, indices, axis=-1) - logsumexp(wide, axis=-1, keepdims=True)
    return indices.astype(np.int32), log_probs.astype(dtype)
