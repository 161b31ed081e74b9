"""Generations from a tolerant patriarch: each student teaches the next; beside them born-again and other chains.

Paper:    Yang, Xie, Qiao & Yuille, Training Deep Neural Networks in Generations: A More Tolerant Teacher Educates
          Better Students, 2018 (arXiv 1805.05551). Its eta, lambda and number of generations were not recovered: 0.6,
          0.6 and 5 (3 on digits) are starting points, not the paper's. Furlanello et al., Born Again Neural Networks,
          2018.
Command:  python -m kdjax.train_generations --config=configs/tolerant_generations.py --store=runs/generations
Expect:   the paper sees accuracy rise over the first generations and then level off; the README tells what was seen.
Hardware: digits: 2 CPU cores, minutes. `:cifar100,resnet110` wants a GPU or TPU.

Students: label_weights[m - 1] times cross-entropy, the rest KL to the last generation without temperature; in 'CE then
KD' the rest is KD at temperature 4. Beside generation m stand one network trained m times as long and m independent
networks.
"""

from ml_collections import ConfigDict

from configs import common
from kdjax.errors import UserError

KL = {"kd": {"weight": 1.0, "temperature": 1.0}}  # without temperature
PATRIARCHS = {  # names without spaces, so that flags reach them: --config.chains.born_again.student.epochs=20
    "tolerant": {"tolerant": {"weight": 1.0, "num_top": 5, "eta": 0.6}},
    "born_again": {"cross_entropy": {"weight": 1.0}},
    "label_smoothing": {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}},
    "confidence_penalty": {"cross_entropy": {"weight": 1.0}, "confidence_penalty": {"weight": 0.1}},
}
CHARACTERS = {"capitals": "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "printed digits": "0123456789"}  # for features of digits


def get_config(argument: str | None = None):
    """Argument: digits | smoke | cifar100[,NETWORK] | cifar10[,NETWORK]."""
    dataset, *network = (argument or "digits").split(",")
    if len(network) > 1:
        raise UserError(f"config argument '{argument}' should be a data set, or DATASET,NETWORK.")
    pair = f"{dataset},{network[0]},{network[0]}" if network else dataset
    study = ConfigDict()
    study.kind, study.title = "generations", "Generations of teachers"
    smoke, small = dataset == "smoke", dataset in ("digits", "smoke")
    study.seeds = 1 if smoke else 5
    study.generations = 1 if smoke else 3 if small else 5
    study.label_weights = (0.6,) * study.generations  # rising weights go back toward one-hot labels
    study.longest = study.members = study.generations
    study.report = "validation" if small else str(study.generations)
    study.chains = {
        name: {"patriarch": _run(pair, losses), "student": _run(pair, {"cross_entropy": {"weight": 0.6}, **KL})}
        for name, losses in PATRIARCHS.items()
        if not smoke or name == "tolerant"
    }
    if not smoke:
        hot = {"kd": {"weight": 1.0, "temperature": 4.0}}
        study.chains["CE_then_KD"] = {
            "patriarch": _run(pair, PATRIARCHS["born_again"]),
            "student": _run(pair, {"cross_entropy": {"weight": 0.6}, **hot}),
        }
    study.alone = _run(pair, {"cross_entropy": {"weight": 1.0}})
    study.transfer = _transfer(dataset, study.alone)
    return study


def _run(pair: str, losses: dict) -> ConfigDict:
    config = common.teacher(pair)
    if config.model.name == "mlp" and config.data.name == "digits":
        config.model.args = {"hidden": (32,)}  # small enough to leave something to learn
    config.losses = losses
    return config


def _transfer(dataset: str, alone: ConfigDict) -> dict:
    """Two other sets for the features: of digits printed characters, of CIFAR's images house numbers and STL-10."""
    if dataset == "smoke":
        return {}
    tasks = {}
    if dataset == "digits":
        for name, characters in CHARACTERS.items():
            tasks[name] = _other(alone, "letters", 0, 20)
            tasks[name].args = {"characters": characters}
    else:
        for name in ("svhn", "stl10"):
            tasks[name] = _other(alone, name, 32, 500)
    return tasks


def _other(alone: ConfigDict, name: str, size: int, per_class: int) -> ConfigDict:
    data = ConfigDict(alone.data.to_dict())
    data.name, data.size, data.validation, data.protocols = name, size, 0.1, {"subset": {"per_class": per_class}}
    return data
