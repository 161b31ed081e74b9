"""Which teacher teaches? Is an MSE teacher nearer to the posterior on images that students see, and are they better?

Paper:    Hamidi et al., ECCV 2024 (the claim); Wei et al., Learning with Noisy Labels Revisited, ICLR 2022 (CIFAR-10N:
          three people's labels of every training image; CC BY-NC, not part of kdjax); Peterson et al., ICCV 2019.
Command:  python -m kdjax.run_study --config=configs/studies/which_teacher.py:human --store=runs/which_human
Expect:   the tables in the README.
Hardware: 2 CPU cores; digits and gaussian: minutes; human: 1.5 hours a seed; cifar100: 3 hours a seed.

`human` needs an .npz file of arrays, cifar10n.npz in --data_dir: `images` [50000, 32, 32, 3], `test_images` [10000, 32,
32, 3] and `test_labels` [10000] of CIFAR-10; `annotator1`, `annotator2` and `annotator3` [50000] of CIFAR-10N; and
`test_soft` [10000, 10], the distributions of CIFAR-10H. Its design, HUMAN_DESIGN, was written before its first run.
"""

from ml_collections import ConfigDict

from configs import common
from kdjax.config import defaults

RESULTS = "configs/studies/results"  # in the project's folder, where commands are run
NAMES = ("digits", "gaussian", "human", "cifar100", "smoke")
GRAMMAR = common.Grammar("digits, gaussian, human, cifar100 or smoke", datasets=NAMES, default="smoke")

HUMAN_DESIGN = """\
Claim: an MSE teacher is nearer to the Bayes posterior p*, on the images that students see, than the best
cross-entropy (CE) teacher, and its students are better.

Data. CIFAR-10 with one person's label to train on (CIFAR-10N); the two other people's labels are taken for
independent draws from p* given the image. That is assumed: 747 people worked on the set, and their identities are not
known image by image. For a draw e and an output p that did not see it, the mean of |p - e|^2 is |p - p*|^2 plus a
floor that is the same for every teacher, so that differences need no floor. Each seed draws 10,000 training and 5,000
validation images of the official training set without looking at labels; the 35,000 others are unseen. The training
annotator is 1 + seed mod 3, since the three have different error rates. Reported seeds: 0 to 5. Pilot: seed 100,
never reported.

Runs. resnet14 teaches resnet8; crop and flip, batches of 64, 36 epochs, a cosine schedule, weight decay 5e-4,
momentum 0.9; teachers and students see equally many examples. Two kinds of teacher runs, CE and MSE (summed over
classes). CE gives three teachers: its last epoch, the epoch of the lowest validation NLL (stopped; measured every two
epochs), and its last epoch with the temperature of the lowest validation NLL (fitted). MSE gives its last epoch, and
its stopped epoch for the distance only. Students learn by KD (0.1 labels, 0.9 teacher) at T = 1 and at T = 4; the
mean of the two students' accuracies, of their last epochs, is the teacher's score. Controls: a student alone; a
student of the mean of the two held-out annotators at T = 1, a ceiling with three times the labels. Students of one
seed share initial weights, order and views.

Choices. Rates of the teachers by the pilot, three cells each (CE 0.05, 0.1, 0.2; MSE 0.1, 0.2, 0.4) and one more
where the best lies at an edge, by the accuracy of the last epoch on the validation labels of the training annotator.
All students take the rate that the pilot finds in the same way for a student alone (0.05, 0.1, 0.2). Rate, stopping
and temperature use the training annotator's validation labels; held-out annotators and clean labels choose nothing,
and no student's result chooses its teacher's rate.

Gate, on the pilot's CE teacher alone: memorisation, the mean of |p - e|^2 over held-out annotators less that of the
training annotator, on the training images under the students' views, must be at least 0.05. Otherwise the whole
study, its pilot included, takes 5,000 training images and 72 epochs, once. MSE results never choose this.

Primary comparison, MSE (last) against each of CE last, stopped and fitted, n = 6 seeds:
H1: seen distance, on the training images under the students' views (four views of each), MSE less CE below 0.
H2: clean test accuracy of the students, MSE's score less CE's above 0.
Intervals: 95 %, paired t over the six seeds (t = 2.571); H2's add the test set's error, of the mean paired difference
of single test images, in quadrature.

Rule: "holds" if all six intervals exclude zero in the stated direction; "only against plain CE" if that is true of CE
last alone; "does not hold" if some interval lies wholly on the wrong side, or all of H2's lie within 1 point of zero;
else "cannot tell". A run that diverges counts at the accuracy that it reached, and the comparison is then "cannot
tell".

Secondary, without verdicts: each T, NLL on held-out annotators (the squared distance is MSE's own score), the unseen
distance, and the distance on test images to CIFAR-10H, another population: its people err on 4.8 % of the images
where these err on 17.7 %, so that a teacher that is too sharp can look nearer to it. Nobody looks at contrasts before
seed 5 has ended, and no seeds are added."""

CIFAR100_DESIGN = """\
Claim (Hamidi et al. 2024): students of an MSE teacher are better than those of a cross-entropy (CE) teacher, on
CIFAR-100 with the recipe of the papers at a tenth of its length.

Runs. resnet14 teaches resnet8; 45,000 training and 5,000 validation images; crop and flip, batches of 64, 24 epochs
with drops by 0.1 after 15, 18 and 21 (the papers' fractions), momentum 0.9, weight decay 5e-4 for both losses (no
other was tried for either). Seeds 0 to 3, each with a split, a CE and an MSE teacher (summed over classes), one
student of each teacher by each of KD (0.1 labels, 0.9 teacher, T = 4), TTM (gamma 0.3, weight 7) and WTTM (gamma 0.3,
weight 1.5), which are those that Zheng & Yang printed for resnet56 and resnet20, untuned and the same for both
teachers, and a student alone. All scores are of the last epoch. Students of one seed share initial weights, order and
views.

Choices. Rates of the teachers by pilot seed 100, never reported, on a schedule of 12 epochs (drops after 8, 9 and
11): CE 0.025, 0.05, 0.1, MSE 0.05, 0.1, 0.2, and one more where the best lies at an edge, by validation accuracy
after the last epoch. Students take 0.05, as in the papers.

Primary comparison, n = 4 seeds: test accuracy of MSE's students less that of CE's, averaged over the three losses.
Interval: 95 %, paired t over the four seeds (t = 3.182), with the test set's error, of the mean paired difference of
single test images, in quadrature.

Rule: "holds" if the interval lies above zero; "does not hold" if it lies below zero, or within 1 point of zero; else
"cannot tell". If the difference between KD's students of CE and students alone holds zero, the schedule is too short
to judge teachers, and the report says so. A run that diverges counts at the accuracy that it reached, and the
comparison is then "cannot tell"."""

DIGITS_DESIGN = """\
Claim (Hamidi et al. 2024): students of an MSE teacher are better than those of the best cross-entropy (CE) teacher.

Runs. Digits, MLP 512-512 teaches MLP 12 with the recipe of the quickstart, last epochs. Seeds 60 to 69, whose splits
no study has used; each draws its own test images. Kinds of teacher runs: CE, MSE (summed over classes), tolerant (top
5, eta 0.6), label smoothing 0.1, confidence penalty 0.1, generalised CE (q 0.7), CE with the mean of the weights over
the second half of the epochs (averaged), a born-again CE (KD at T = 4 from the seed's CE teacher) and CE with twice
the epochs (longer), both of which take twice the training examples. CE also gives its epoch of the lowest validation
NLL (stopped), and its last epoch with the temperature of the lowest validation NLL (fitted). Students of each by KD
(0.1 labels, 0.9 teacher) at T = 1, 2 and 4, whose mean is the teacher's score, and by TTM (gamma 0.25, weight 3.6,
labels 0.1); and a student alone. Students of one seed share initial weights and order. Under TTM, and under KD at a
tuned temperature, the fitted teacher is CE at another temperature and is not counted as another teacher.

Choices, on pilot seeds 160 and 161, never reported, by validation accuracy after the last epoch, three cells for
every kind of run and one more where the best lies at an edge: 0.1, 0.2, 0.5 for MSE and generalised CE, whose
gradients are smaller, and 0.02, 0.05, 0.1 for all others; students take the rate that is found in the same way for a
student alone.

Primary comparison: the score of MSE less that of each of CE last, stopped and fitted, in points of test accuracy,
above 0; n = 10 seeds. Interval: 95 %, paired t, with the variance that the overlap of the splits asks for (Nadeau &
Bengio).

Rule: "holds" if all intervals lie above zero; "only against plain CE" if that is true of CE last alone; "does not
hold" if some interval lies below zero, or all lie within 1 point of zero; else "cannot tell". A run that diverges
counts at the accuracy that it reached, and the comparison is then "cannot tell"."""

GAUSSIAN_DESIGN = """\
Claim (Hamidi et al. 2024): an MSE teacher is nearer to the Bayes posterior p*, on the examples that students see,
than the best cross-entropy (CE) teacher, and its students are better.

Runs. The papers' mixture of Gaussians, drawn anew for every seed with its own centres: 5,000 training, 5,000
validation and 20,000 test examples. MLP 128-128 teaches MLP 128-128; batches of 32, 20 epochs, cosine schedule,
momentum 0.9, no weight decay. Kinds of teachers, their cells and their students are those of the study of digits,
with cells 0.01, 0.02, 0.05 for MSE and generalised CE and 0.002, 0.005, 0.01 for all others and for students; a
further control is a student of p* itself, with the same share of labels as KD at T = 1. Seeds 1 to 10; pilot seeds
101 and 102, never reported.

Primary comparison, MSE less each of CE last, stopped and fitted, n = 10 seeds, 95 % paired t intervals: the distance
to p* on the training examples below 0 (H1), and the students' score above 0 (H2). Test examples are the seed's own.

Rule: "holds" if all intervals exclude zero in the stated direction; "only against plain CE" if that is true of CE
last alone; "does not hold" if some interval lies wholly on the wrong side, or all of H2's lie within 1 point of zero;
else "cannot tell". A run that diverges counts at the accuracy that it reached, and the comparison is then "cannot
tell"."""

LOSSES = {
    "CE": {"cross_entropy": {"weight": 1.0}},
    "MSE": {"softmax_mse": {"weight": 1.0, "space": "probs", "reduction": "class_sum"}},
}
SMALL_GRADIENTS = ("MSE", "generalised CE")
# Kinds of teachers beside CE and MSE on the small data sets.
OTHERS = {
    "tolerant": {"tolerant": {"weight": 1.0, "num_top": 5, "eta": 0.6}},
    "smoothed": {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}},
    "penalised": {"cross_entropy": {"weight": 1.0}, "confidence_penalty": {"weight": 0.1}},
    "generalised CE": {"gce": {"weight": 1.0, "q": 0.7}},
}


def get_config(argument: str | None = None):
    """Argument: human, or smoke for a run of seconds."""
    return STUDIES[common.read(argument, GRAMMAR).dataset]()


def _human() -> ConfigDict:
    study = _study(HUMAN_DESIGN)
    study.title = "Which teacher teaches? One person's labels of CIFAR-10"
    study.results = f"{RESULTS}/which_teacher_human.json"
    study.data = "annotators"
    study.seeds, study.pilot = (0, 1, 2, 3, 4, 5), (100,)
    study.runs = {
        "CE": {"config": _human_run("resnet14", "CE"), "rates": (0.05, 0.1, 0.2)},
        "MSE": {"config": _human_run("resnet14", "MSE"), "rates": (0.1, 0.2, 0.4)},
    }
    study.student, study.student_rates = _human_run("resnet8", "CE"), (0.05, 0.1, 0.2)
    study.methods = {f"KD, T = {temperature:g}": _kd(temperature) for temperature in (1.0, 4.0)}
    study.scored = tuple(study.methods)
    people = _human_run("resnet8", "CE")  # its target 0.1 y + 0.9 m has the gradients of KD from m at T = 1
    people.data.targets = "soft"
    people.data.protocols.mixed_targets = {"epsilon": 0.1, "other": "labels"}
    study.controls = {"alone": _human_run("resnet8", "CE"), "two people": people}
    study.gates = ({"teacher": "CE last", "measure": "memorisation", "least": 0.05, "train": 5000, "epochs": 72},)
    return study


def _human_run(network: str, losses: str) -> ConfigDict:
    config = defaults()
    config.data.name, config.data.args = "arrays", {"path": "cifar10n.npz", "scale": 1 / 255}
    config.data.args.mean, config.data.args.std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    config.data.view, config.data.validation = "crop_flip", 0.0  # both splits are drawn by the protocol
    config.data.protocols = {"random_split": {"train": 10_000, "validation": 5_000}}
    config.data.allow_overlap = True  # CIFAR-10 has a few images twice
    config.model.name = network
    config.epochs, config.batch_size, config.eval_batch_size = 36, 64, 500
    config.schedule.name = "cosine"
    config.losses = LOSSES[losses]
    if network == "resnet14":
        config.select_by, config.eval_every, config.checkpoint.every_epochs = "nll", 2, 2
    else:
        config.select, config.eval_every, config.checkpoint.every_epochs = "last", 12, 2
    return config


def _cifar100() -> ConfigDict:
    study = ConfigDict()
    study.kind, study.design = "which_teacher", CIFAR100_DESIGN
    study.title = "Which teacher teaches? CIFAR-100 at a tenth of the papers' length"
    study.results = f"{RESULTS}/which_teacher_cifar100.json"
    study.data = "official"
    study.seeds, study.pilot = (0, 1, 2, 3), (100,)
    study.pilot_epochs, study.pilot_milestones = 12, (8, 9, 11)
    study.runs = {
        "CE": {"config": _cifar100_run("resnet14", "CE"), "rates": (0.025, 0.05, 0.1)},
        "MSE": {"config": _cifar100_run("resnet14", "MSE"), "rates": (0.05, 0.1, 0.2)},
    }
    study.teachers = {"CE": {"run": "CE"}, "MSE": {"run": "MSE"}}
    study.challenger, study.baselines = "MSE", ("CE",)
    study.student, study.student_rates = _cifar100_run("resnet8", "CE"), (0.05,)
    study.methods = {
        "KD": _kd(4.0),
        "TTM": {"cross_entropy": {"weight": 1.0}, "ttm": {"weight": 7.0, "gamma": 0.3}},
        "WTTM": {"cross_entropy": {"weight": 1.0}, "wttm": {"weight": 1.5, "gamma": 0.3}},
    }
    study.scored = ("KD", "TTM", "WTTM")
    study.controls = {"alone": _cifar100_run("resnet8", "CE")}
    return study


def _cifar100_run(network: str, losses: str) -> ConfigDict:
    config = defaults()
    config.data.name, config.data.view, config.data.validation = "cifar100", "crop_flip", 0.1
    config.model.name = network
    config.epochs, config.batch_size, config.eval_batch_size = 24, 64, 500
    config.schedule.name, config.schedule.milestones = "step", (15, 18, 21)
    config.select, config.eval_every, config.checkpoint.every_epochs = "last", 12, 1
    config.losses = LOSSES[losses]
    return config


def _study(design: str) -> ConfigDict:
    """Returns the fields that studies of CE teachers read in three ways have in common."""
    study = ConfigDict()
    study.kind, study.design = "which_teacher", design
    study.teachers = {
        "CE last": {"run": "CE"},
        "CE stopped": {"run": "CE", "checkpoint": "best"},
        "CE fitted": {"run": "CE", "fitted": True},
        "MSE last": {"run": "MSE"},
        "MSE stopped": {"run": "MSE", "checkpoint": "best", "taught": False},
    }
    study.challenger, study.baselines = "MSE last", ("CE last", "CE stopped", "CE fitted")
    return study


def _kd(temperature: float) -> dict:
    return {"cross_entropy": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": temperature}}


def _digits() -> ConfigDict:
    study = _small(DIGITS_DESIGN, common.teacher("digits"), (0.02, 0.05, 0.1), (0.1, 0.2, 0.5))
    study.title = "Which teacher teaches? Digits"
    study.results = f"{RESULTS}/which_teacher_digits.json"
    study.data, study.seeds, study.pilot = "splits", tuple(range(60, 70)), (160, 161)
    study.student = common.student("digits")
    study.student.losses = LOSSES["CE"]
    study.controls = {"alone": study.student.copy_and_resolve_references()}
    return study


def _gaussian() -> ConfigDict:
    run = defaults()
    run.data.name, run.data.validation = "gaussian", 0.5
    run.data.args = {"n_train": 10_000, "n_test": 20_000}
    run.model.args = {"hidden": (128, 128)}
    run.epochs, run.batch_size, run.eval_batch_size = 20, 32, 5000
    run.schedule.name, run.optimizer.weight_decay = "cosine", 0.0
    run.checkpoint.every_epochs = 0
    study = _small(GAUSSIAN_DESIGN, run, (0.002, 0.005, 0.01), (0.01, 0.02, 0.05))
    study.title = "Which teacher teaches? A mixture of Gaussians"
    study.results = f"{RESULTS}/which_teacher_gaussian.json"
    study.data, study.seeds, study.pilot = "posterior", tuple(range(1, 11)), (101, 102)
    study.student = run.copy_and_resolve_references()
    study.student.losses = LOSSES["CE"]
    posterior = study.student.copy_and_resolve_references()
    posterior.data.targets = "soft"
    posterior.data.protocols.mixed_targets = {"epsilon": 0.1, "other": "labels"}
    study.controls = {"alone": study.student.copy_and_resolve_references(), "p*": posterior}
    return study


def _small(design: str, base: ConfigDict, rates: tuple, steep: tuple) -> ConfigDict:
    """Returns a study of all kinds of teachers that share a config but for their losses."""
    study = _study(design)
    kinds = {**LOSSES, **OTHERS, "averaged": LOSSES["CE"], "born again": _kd(4.0), "longer": LOSSES["CE"]}
    study.runs = {}
    for name, losses in kinds.items():
        config = base.copy_and_resolve_references()
        config.losses, config.select_by = losses, "nll"
        study.runs[name] = {"config": config, "rates": steep if name in SMALL_GRADIENTS else rates}
    study.runs["averaged"].config.average.update({"name": "swa", "start": base.epochs // 2})
    study.runs["born again"].config.teachers = {"a": {"run": "CE"}}
    study.runs["longer"].config.epochs = 2 * base.epochs
    study.runs["born again"].passes = study.runs["longer"].passes = 2.0
    study.teachers.update({name: {"run": name} for name in kinds if name not in LOSSES})
    study.student_rates = rates
    study.methods = {f"KD, T = {temperature:g}": _kd(temperature) for temperature in (1.0, 2.0, 4.0)}
    study.scored = tuple(study.methods)
    study.methods["TTM"] = {"cross_entropy": {"weight": 0.1}, "ttm": {"weight": 3.6, "gamma": 0.25}}
    return study


def _smoke() -> ConfigDict:
    study = _study("Every part of the study, in seconds; it shows no science.")
    study.title = "Which teacher teaches? The smoke form"
    study.data = "posterior"
    study.seeds, study.pilot = (0, 1), (100,)
    study.runs = {name: {"config": _smoke_run(name), "rates": (0.02, 0.05)} for name in LOSSES}
    study.student, study.student_rates = _smoke_run("CE"), (0.02, 0.05)
    study.methods = {"KD, T = 1": _kd(1.0), "KD, T = 4": _kd(4.0)}
    study.scored = tuple(study.methods)
    study.controls = {"alone": _smoke_run("CE")}
    return study


def _smoke_run(losses: str) -> ConfigDict:
    config = defaults()
    config.data.name = "gaussian"
    config.data.args = {"classes": 4, "dim": 6, "n_train": 480, "n_test": 400}
    config.data.validation = 0.5
    config.model.args = {"hidden": (8,)}
    config.epochs, config.batch_size, config.eval_batch_size = 2, 48, 400
    config.select_by, config.checkpoint.every_epochs = "nll", 0
    config.losses = LOSSES[losses]
    return config


STUDIES = {"digits": _digits, "gaussian": _gaussian, "human": _human, "cifar100": _cifar100, "smoke": _smoke}
