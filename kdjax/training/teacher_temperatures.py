"""Temperatures of teachers that are fitted on validation images when a run is planned."""

from collections.abc import Mapping, Sequence

import numpy as np

from kdjax import analysis
from kdjax.config import FITTED
from kdjax.data import Dataset
from kdjax.errors import UserError
from kdjax.training.teacher_logits import logits_of_rows
from kdjax.training.teachers import Teacher
from kdjax.types import Config, Device

DIGITS = 4  # of a temperature after the point, so that another machine finds the same


def fitted_temperatures(
    config: Config, dataset: Dataset, teachers: Mapping[str, Teacher], devices: Sequence[Device]
) -> dict[str, float]:
    """Returns name -> temperature of the teachers for which the config says 'fitted'.

    It minimises the teacher's NLL on the labels of the validation images, which are shown without augmentation (Guo et
    al., 2017, "On Calibration of Modern Neural Networks"). Losses that have a temperature divide by it as well.

    Args:
      config: Resolved config.
      dataset: Data of the run.
      teachers: Its teachers.
      devices: Devices of this process.

    Raises:
      UserError: The data has no labelled validation images, the teacher's output is no softmax, or no temperature gives
        a finite NLL.
    """
    found = {}
    for name, fields in config.teachers.items():
        if fields.temperature == FITTED:
            where = f"config.teachers.{name}.temperature = '{FITTED}'"
            found[name] = _fit(name, where, config, dataset, teachers[name], tuple(devices))
    return found


def _fit(
    name: str, where: str, config: Config, dataset: Dataset, teacher: Teacher, devices: tuple[Device, ...]
) -> float:
    if teacher.output != "softmax":
        raise UserError(f"{where}: the output '{teacher.output}' has no temperature; write a number.")
    rows = dataset.splits.get("validation", np.zeros(0, np.int32))
    rows = rows[dataset.labelled[rows]]
    if not len(rows):
        raise UserError(f"{where} needs validation images; set config.data.validation, or write a number.")
    logits = logits_of_rows(name, teacher, dataset, rows, config.eval_batch_size, devices)
    columns = tuple(config.teachers[name].classes)
    temperature = analysis.fit_temperature(logits[:, columns] if columns else logits, dataset.labels[rows])
    if not np.isfinite(temperature):
        raise UserError(f"{where}: no temperature gives teacher '{name}' a finite NLL on the validation images.")
    return round(temperature, DIGITS)
