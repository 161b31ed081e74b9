"""Generations from a tolerant patriarch: each student teaches the next; born-again and other chains to compare with.

Paper:    Yang, Xie, Qiao & Yuille, Training Deep Neural Networks in Generations: A More Tolerant Teacher Educates
          Better Students, 2018 (arXiv 1805.05551). Its eta, lambda and number of generations are not known: 0.6,
          0.6 and 5 (3 on digits) are starting points, not the paper's. Furlanello et al., Born Again Neural Networks,
          2018.
Command:  python -m kdjax.train_generations --config=configs/tolerant_generations.py --store=runs/generations
Expect:   the paper sees accuracy rise over the first generations and then level off; the README has the result.
Hardware: digits: 2 CPU cores, minutes. `:cifar100,resnet110` needs a GPU or TPU.

The loss of a student is label_weights[m - 1] times cross-entropy, and the rest KL to the previous generation without
temperature; in 'CE_then_KD' the rest is KD at temperature 4. Generation m is compared with one network that is trained
m times as long, and with the ensemble of m independent networks.
"""

from ml_collections import ConfigDict

from configs import common

KL = {"kd": {"weight": 1.0, "temperature": 1.0}}  # without temperature
HOT_KD = {"kd": {"weight": 1.0, "temperature": 4.0}}
LABELS = {"cross_entropy": {"weight": 0.6}}  # the study sets the weight from label_weights
PATRIARCHS = {  # names without spaces, so that flags reach them: --config.chains.born_again.student.epochs=20
    "tolerant": {"tolerant": {"weight": 1.0, "num_top": 5, "eta": 0.6}},
    "born_again": {"cross_entropy": {"weight": 1.0}},
    "label_smoothing": {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}},
    "confidence_penalty": {"cross_entropy": {"weight": 1.0}, "confidence_penalty": {"weight": 0.1}},
}
CHARACTERS = {"capitals": "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "printed digits": "0123456789"}  # sets to transfer digits to
GRAMMAR = common.Grammar("[DATASET][,NETWORK]", networks=1)


def get_config(argument: str | None = None):
    """Argument: [DATASET][,NETWORK]."""
    dataset, networks, _ = common.read(argument, GRAMMAR)
    pair = ",".join((dataset, *networks, *networks))
    smoke = dataset == "smoke"
    small = dataset in ("digits", "smoke")
    study = ConfigDict()
    study.kind = "generations"
    study.title = "Generations of teachers"
    study.seeds = 1 if smoke else 5
    study.generations = 1 if smoke else 3 if small else 5
    study.label_weights = (0.6,) * study.generations  # rising weights approach one-hot labels again
    study.longest = study.generations
    study.members = study.generations
    study.report = "validation" if small else str(study.generations)
    study.chains = {
        name: {"patriarch": _run(pair, losses), "student": _run(pair, {**LABELS, **KL})}
        for name, losses in PATRIARCHS.items()
        if not smoke or name == "tolerant"
    }
    if not smoke:
        patriarch = _run(pair, PATRIARCHS["born_again"])
        study.chains["CE_then_KD"] = {"patriarch": patriarch, "student": _run(pair, {**LABELS, **HOT_KD})}
    study.alone = _run(pair, {"cross_entropy": {"weight": 1.0}})
    study.transfer = _transfer(dataset, study.alone)
    return study


def _run(pair: str, losses: dict) -> ConfigDict:
    config = common.teacher(pair)
    if config.model.name == "mlp" and config.data.name == "digits":
        config.model.args = {"hidden": (32,)}  # so small that there is something left to learn
    config.losses = losses
    return config


def _transfer(dataset: str, alone: ConfigDict) -> dict:
    """Returns two other data sets for the features: printed characters for digits, SVHN and STL-10 for CIFAR."""
    if dataset == "smoke":
        return {}
    if dataset != "digits":
        return {name: _other(alone, name, 32, 500) for name in ("svhn", "stl10")}
    tasks = {}
    for name, characters in CHARACTERS.items():
        tasks[name] = _other(alone, "letters", 0, 20)
        tasks[name].args = {"characters": characters}
    return tasks


def _other(alone: ConfigDict, name: str, size: int, per_class: int) -> ConfigDict:
    data = ConfigDict(alone.data.to_dict())
    data.name = name
    data.size = size
    data.validation = 0.1
    data.protocols = {"subset": {"per_class": per_class}}
    return data
