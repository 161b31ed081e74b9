"""A small world for the training room: a convolutional student with BatchNorm, a teacher, and their data in memory."""

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax import models
from kdjax.config import defaults
from kdjax.data import Dataset, load_dataset
from kdjax.training.member import initial_carry
from kdjax.training.plan import Plan, plan_with, resolve
from kdjax.training.spec import Fixed
from kdjax.training.teachers import Teacher


def student_config(**changed) -> ConfigDict:
    config = defaults()
    config.model.name = "four_layers:FourLayers"
    config.teachers = {"a": {"run": "images/resnet8-ce-s0"}}
    config.losses = {
        "cross_entropy": {"weight": 1.0},
        "wttm": {"weight": {"schedule": "warmup", "value": 2.0, "epochs": 3}, "gamma": 0.5, "normalize": "batch_mean"},
    }
    config.data.name = "arrays"
    config.data.validation = 0.25
    config.batch_size = 8
    config.eval_batch_size = 8
    config.epochs = 3
    config.schedule.milestones = (2,)
    config.update(changed)
    return config


def fresh_teacher(dataset: Dataset, seed: int = 5) -> Teacher:
    model = models.create_model("four_layers:FourLayers", dataset.num_classes)
    variables = models.init_variables(model, (1, *dataset.images.shape[1:]), seed)
    return Teacher(model, variables, dataset.num_classes, "softmax", {}, None)


def make_plan(config: ConfigDict, devices) -> Plan:
    config = resolve(config)
    dataset = load_dataset(config.data, "")
    teachers = {name: fresh_teacher(dataset) for name in config.teachers}
    return plan_with(config, dataset, teachers, devices)


def start(plan: Plan):
    """Returns (state, sums) before the first step and what is fixed, all on the host."""
    teachers = {name: teacher.variables for name, teacher in plan.teachers.items()}
    arrays = {"images": plan.dataset.images, "labels": plan.dataset.labels, "soft": plan.dataset.soft}
    return jax.tree.map(np.array, initial_carry(plan)), Fixed(teachers, arrays, plan.numbers)
