"""Runs that tests train on several layouts of processes and devices, and the program that trains them there.

launch/local_processes.sh 2 -- python tests/training/layouts.py --store=DIR --data_dir=FILE --what=teacher,student
"""

import json
import pathlib
import sys

if __name__ == "__main__":
    sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parents[2])]

from absl import flags

from kdjax import cli
from kdjax.config import defaults


def _config(data: str, **changed):
    config = defaults()
    config.model.name, config.model.args = "mlp", {"hidden": (8,)}
    config.losses = {"cross_entropy": {"weight": 1.0}}
    config.data.name, config.data.args, config.data.validation = "arrays", {"path": data}, 0.25
    config.data.view = "crop_flip"
    config.batch_size = config.eval_batch_size = 8
    config.epochs, config.schedule.milestones = 9, (5,)  # 54 steps
    config.update(changed)
    return config


def _student(data: str, **changed):
    config = _config(data, **changed)
    config.teachers = {"a": {"run": "teacher"}}
    config.losses = {"cross_entropy": {"weight": 1.0}, "wttm": {"weight": 1.0, "gamma": 0.5}}
    return config


def _train(store, name: str, config):
    from kdjax.training.loop import train

    return train(config, store, name=name, show=False)


def teacher(store, data: str):
    return _train(store, "teacher", _config(data))


def student(store, data: str):
    return _train(store, "student", _student(data))


def streamed(store, data: str):
    """A convolutional student with BatchNorm, which reads its images while it trains."""
    from kdjax.training import evaluation

    config = _student(data)
    config.model.name, config.model.args = "four_layers:FourLayers", {}
    room, evaluation.PART_OF_MEMORY = evaluation.PART_OF_MEMORY, 1e-12  # so that the images do not fit
    try:
        return _train(store, "streamed", config)
    finally:
        evaluation.PART_OF_MEMORY = room


def remembering(store, data: str):
    """CRD's memory of embeddings, which all devices must write alike."""
    config = _student(data)
    config.losses.crd = {"weight": 0.5, "dim": 4, "negatives": 16}
    return _train(store, "remembering", config)


def population(store, data: str):
    """Three students in one step."""
    from kdjax.training.loop import train_together

    configs = [_student(data, seed=seed) for seed in range(3)]
    return train_together(configs, store, names=[f"member{seed}" for seed in range(3)], show=False)


def evaluated(store, data: str):
    """What `evaluate` and `analyze` find out about stored runs."""
    from kdjax.inspection.analyze import analyze
    from kdjax.inspection.predict import score_run
    from kdjax.training.processes import by_writer

    found = analyze(store, ["teacher", "student"], ["fidelity", "calibration"])
    found["scores"] = score_run(store, "student")
    by_writer(lambda: store.write_text("evaluated.json", json.dumps(found, default=str)))


STAGES = {stage.__name__: stage for stage in (teacher, student, streamed, remembering, population, evaluated)}


def main() -> None:
    from kdjax.store import Store

    for name in cli.FLAGS.what:
        STAGES[name](Store(cli.FLAGS.store), cli.FLAGS.data_dir)


if __name__ == "__main__":
    cli.define_common_flags()
    cli.define_process_flags()
    cli.define(flags.DEFINE_list, "what", [], "Names of stages.")
    cli.define(flags.DEFINE_string, "config", "", "None; it makes the processes stoppable.")
    cli.run(main)
