"""What the papers report: CIFAR-100 and ImageNet accuracies with their provenance, and the weights of their losses.

The accuracies are those of Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024,
Tables 1 to 5, 7, 11 and 12, which repeat the rows of earlier papers; `SOURCES` names the paper of each row. The weights
of TTM and WTTM are in their Tables 8 to 10. Where the labels of the rows run together in the paper, the assignment is
an inference, checked against two commands in their README. The weights of DKD are those of mdistiller.

Papers that repeat a row do not always agree. For resnet32x4 -> resnet8x4 the README of ITRD has 76.69 where the table
has 76.19, and the paper of KD++ has 75.79 for DIST where the table has 76.31. For KD on resnet34 -> resnet18 there are
71.21 (DIST, at T = 4), 70.66 (Table 5), 71.03 (mdistiller) and 71.37 (torchdistill).
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from kdjax.config import recipe

# The 13 pairs of CIFAR-100 in the order of the tables' columns: (teacher, student). The first 7 are of one family.
PAIRS = (
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
    ("vgg13", "mobilenetv2_half"),
    ("resnet50_cifar", "mobilenetv2_half"),
    ("resnet50_cifar", "vgg8"),
    ("resnet32x4", "shufflenetv1"),
    ("resnet32x4", "shufflenetv2"),
    ("wrn_40_2", "shufflenetv1"),
)
ONE_FAMILY = PAIRS[:7]
IMAGENET_PAIRS = (
    ("resnet34", "resnet18"),
    ("resnet50", "resnet18"),
    ("resnet101", "resnet18"),
    ("resnet152", "resnet18"),
    ("resnet50", "mobilenetv1"),
)

NONE = None  # the tables have no number for this pair
ACCURACY = {
    "teacher": (75.61, 75.61, 72.34, 74.31, 74.31, 79.42, 74.64, 74.64, 79.34, 79.34, 79.42, 79.42, 75.61),
    "alone": (73.26, 71.98, 69.06, 69.06, 71.14, 72.50, 70.36, 64.60, 64.60, 70.36, 70.50, 71.82, 70.50),
    "kd": (74.92, 73.54, 70.66, 70.67, 73.08, 73.33, 72.98, 67.37, 67.35, 73.81, 74.07, 74.45, 74.83),
    "hint": (73.58, 72.24, 69.21, 68.99, 71.06, 73.50, 71.02, 64.14, 63.16, 70.69, 73.59, 73.54, 73.73),
    "attention": (74.08, 72.77, 70.55, 70.22, 72.31, 73.44, 71.43, 59.40, 58.58, 71.84, 71.73, 72.73, 73.32),
    "similarity": (73.83, 72.43, 69.67, 70.04, 72.69, 72.94, 72.68, 66.30, 68.08, 73.34, 73.48, 74.56, 74.52),
    "correlation": (73.56, 72.21, 69.63, 69.48, 71.48, 72.97, 70.71, 64.86, 65.43, 70.25, 71.14, 71.29, 71.38),
    "vid": (74.11, 73.30, 70.38, 70.16, 72.61, 73.09, 71.23, 65.56, 67.57, 70.30, 73.38, 73.40, 73.61),
    "rkd": (73.35, 72.22, 69.61, 69.25, 71.82, 71.90, 71.48, 64.52, 64.43, 71.50, 72.28, 73.21, 72.21),
    "pkt": (74.54, 73.45, 70.34, 70.25, 72.61, 73.64, 72.88, 67.13, 66.52, 73.01, 74.10, 74.69, 73.89),
    "activation_boundary": (
        *(72.50, 72.38, 69.47, 69.53, 70.98, 73.17, 70.94),
        *(66.06, 67.20, 70.65, 73.55, 74.31, 73.34),
    ),
    "factor_transfer": (73.25, 71.59, 69.84, 70.22, 72.37, 72.86, 70.58, 61.78, 60.99, 70.29, 71.75, 72.50, 72.03),
    "fsp": (72.91, NONE, 69.95, 70.11, 71.89, 72.62, 70.23, NONE, NONE, NONE, NONE, NONE, NONE),
    "nst": (73.68, 72.24, 69.60, 69.53, 71.96, 73.30, 71.53, 58.16, 64.96, 71.28, 74.12, 74.68, 74.89),
    "crd": (75.48, 74.14, 71.16, 71.46, 73.48, 75.51, 73.94, 69.73, 69.11, 74.30, 75.11, 75.65, 76.05),
    "itrd": (76.12, 75.18, 71.47, 71.99, 74.26, 76.19, 74.93, 70.39, 71.41, 75.71, 76.91, 77.40, 77.35),
    "dist": (75.51, 74.73, 71.75, 71.65, 73.69, 76.31, 73.89, 68.50, 68.66, 74.11, 76.34, 77.35, 76.40),
    "dkd": (76.24, 74.81, 71.97, 71.06, 74.11, 76.32, 74.68, 69.71, 70.35, NONE, 76.45, 77.07, 76.70),
    "ttm": (76.23, 74.32, 71.83, 71.46, 73.97, 76.17, 74.33, 68.98, 69.24, 74.87, 74.18, 76.57, 75.39),
    "ickd": (NONE, NONE, 71.76, NONE, NONE, 75.25, NONE, NONE, NONE, NONE, NONE, NONE, NONE),
    "sskd": (NONE, NONE, 71.49, NONE, NONE, 76.20, NONE, NONE, NONE, NONE, NONE, NONE, NONE),
    "kd_dot": (NONE, NONE, NONE, NONE, NONE, 75.12, 73.77, NONE, NONE, NONE, NONE, 75.55, NONE),
    "kdpp": (NONE, NONE, 72.53, NONE, NONE, 75.54, NONE, NONE, NONE, NONE, NONE, NONE, NONE),
    "ctkd": (NONE, NONE, 71.19, NONE, NONE, 73.39, NONE, NONE, NONE, NONE, NONE, NONE, NONE),
    "simkd": (NONE, NONE, NONE, NONE, NONE, 78.08, NONE, NONE, NONE, NONE, NONE, NONE, NONE),
    "wkdl": (NONE, NONE, NONE, NONE, NONE, 76.53, NONE, NONE, NONE, NONE, NONE, NONE, NONE),
    "wttm": (76.37, 74.58, 71.92, 71.67, 74.13, 76.06, 74.44, 69.16, 69.59, 74.82, 74.37, 76.55, 75.42),
    "wttm_crd": (76.61, 74.94, 72.20, 72.13, 74.52, 76.65, 74.71, 70.30, 70.84, 75.30, 75.82, 77.04, 76.86),
    "wttm_itrd": (76.65, 75.34, 72.16, 72.20, 74.36, 77.36, 75.13, 70.70, 71.56, 76.00, 77.03, 77.68, 77.44),
}
IMAGENET_ACCURACY = {
    "teacher": (73.31, 76.16, 77.37, 78.31, 76.16),
    "alone": (69.76, 69.76, 69.76, 69.76, 68.87),
    "kd": (71.21, 71.35, 71.09, 71.12, 70.50),
    "crd": (71.17, NONE, NONE, NONE, 71.37),
    "review": (71.61, NONE, NONE, NONE, 72.56),
    "itrd": (71.68, NONE, NONE, NONE, NONE),
    "dkd": (71.70, NONE, NONE, NONE, 72.05),
    "dist": (72.07, 72.12, 72.08, 72.24, 73.24),
    "kd_dot": (71.72, NONE, NONE, NONE, 73.09),
    "kdpp": (71.98, NONE, NONE, NONE, 72.77),
    "ctkd": (71.32, NONE, NONE, NONE, NONE),
    "srrl": (71.73, NONE, NONE, NONE, 72.49),
    "wkdl": (72.49, NONE, NONE, NONE, 73.17),
    "nkd": (71.96, NONE, NONE, NONE, 72.58),
    "wttm": (72.19, 72.26, 72.34, 72.39, 73.09),
}


LAST, BEST, NOT_STATED = "last epoch", "best epoch", ""


class Source(NamedTuple):
    """Where a number comes from.

    Attributes:
      paper: The paper that reports the number, and the table that repeats it.
      selection: Epoch whose accuracy is reported: LAST, BEST (chosen on the test images) or NOT_STATED.
      epochs: Length of the runs; 0 if not stated.
      runs: Number of runs averaged, for a pair of one family and for other pairs; 0 if not stated.
      alone: Accuracy (%) of the student alone in this paper, if it differs from the row 'alone'.
      same_teacher: Whether the teacher is that of the row 'teacher'.
    """

    paper: str
    selection: str = NOT_STATED
    epochs: int = 0
    runs: tuple[int, int] = (0, 0)
    alone: float | None = None
    same_teacher: bool = True


def _repeated(paper: str, tables: str) -> str:
    return f"{paper}, as in Zheng & Yang 2024, {tables}"


# The code of RepDistiller: "The results reported in the paper/README is from the last epoch." ITRD's code repeats it.
TIAN = Source(_repeated("Tian et al. 2020 (CRD)", "Tables 1 to 4"), LAST, 240, (5, 3))
CHECKPOINTS = Source("Tian et al. 2020 (CRD), the checkpoints ckpt_epoch_240", LAST, 240, (1, 1))
MILES = Source(_repeated("Miles et al. 2022 (ITRD)", "Tables 1 to 4"), LAST, 240, (3, 3))
# Six pairs have the numbers of the DIST paper; Zheng & Yang ran the others themselves.
HUANG = Source(_repeated("Huang et al. 2022 (DIST) or a rerun", "Tables 1 to 4"), NOT_STATED, 240, (5, 3))
# Its authors: "Our paper reports the best accuracies among epochs" (mdistiller, issue 30), "5/3 trials".
ZHAO = Source(_repeated("Zhao et al. 2022 (DKD)", "Tables 1 to 4"), BEST, 240, (5, 5))
ZHAO_IN_LSKD = Source("Zhao et al. 2022 (DKD), as in the README of Sun et al. 2024 (LSKD)", BEST, 240)
# The code of TTM logs every epoch and the best one. Neither the code nor the paper says which one is reported.
ZHENG = Source("Zheng & Yang 2024, Tables 1 to 4", NOT_STATED, 240, (5, 3))
SOURCES = {
    **dict.fromkeys(ACCURACY, TIAN),
    "teacher": CHECKPOINTS,
    "itrd": MILES,
    "dist": HUANG,
    "dkd": ZHAO,
    "ickd": Source("Liu et al. 2021 (ICKD)", LAST, same_teacher=False),
    "sskd": Source("Xu et al. 2020 (SSKD), from teachers of 79.63 and 73.44", BEST, same_teacher=False),
    "kd_dot": Source("Zhao et al. 2023 (DOT), README of mdistiller", BEST, same_teacher=False),
    "kdpp": Source("Wang et al. 2024 (KD++)", runs=(5, 5), same_teacher=False),
    "ctkd": Source("Li et al. 2023 (CTKD)", same_teacher=False),
    "simkd": Source("Chen et al. 2022 (SimKD), projector of factor 2", alone=73.09, same_teacher=False),
    "wkdl": Source("Lv et al. 2024 (WKD-L)", same_teacher=False),
    **dict.fromkeys(("ttm", "wttm", "wttm_crd", "wttm_itrd"), ZHENG),
}

# On ImageNet Zheng & Yang used torchdistill, whose script evaluates the checkpoint of the best epoch.
TABLE_5 = Source("Zheng & Yang 2024, Table 5")
TABLE_7 = Source("Zheng & Yang 2024, Table 7")
TORCHVISION = Source(_repeated("torchvision's weights", "Table 5"))
HUANG_7 = Source(_repeated("Huang et al. 2022 (DIST)", "Table 7"))
MMCLS = _repeated("Yang et al. 2023 (NKD), with teachers of mmcls,", "Table 5")
IMAGENET_SOURCES = {
    "teacher": TORCHVISION,
    "alone": TORCHVISION,
    "kd": HUANG_7,
    "crd": TABLE_5,
    "review": Source(_repeated("Chen et al. 2021 (ReviewKD)", "Table 5")),
    "itrd": Source(_repeated("Miles et al. 2022 (ITRD)", "Table 5")),
    "dkd": Source(_repeated("Zhao et al. 2022 (DKD)", "Table 5"), BEST, 100, (3, 3)),
    "dist": HUANG_7,
    "kd_dot": Source("Zhao et al. 2023 (DOT), README of mdistiller", BEST, same_teacher=False),
    "kdpp": Source("Wang et al. 2024 (KD++)", runs=(5, 5), same_teacher=False),
    "ctkd": Source("Li et al. 2023 (CTKD), from a teacher of 73.96", alone=70.26, same_teacher=False),
    "srrl": Source("Yang et al. 2021 (SRRL)", epochs=100, same_teacher=False),
    "nkd": Source(MMCLS, alone=69.90, same_teacher=False),
    "wkdl": Source("Lv et al. 2024 (WKD-L)", same_teacher=False),
    "wttm": TABLE_7,
}
# (row, teacher, student) -> source of a number that is not from its row's source.
EXCEPTIONS = {
    ("teacher", "resnet101", "resnet18"): Source("torchvision's weights, as in the README of Huang et al. 2022 (DIST)"),
    ("teacher", "resnet152", "resnet18"): Source("torchvision's weights, as in the README of Huang et al. 2022 (DIST)"),
    ("dkd", "resnet110", "resnet20"): ZHAO_IN_LSKD,
    ("ctkd", "resnet32x4", "resnet8x4"): Source(
        "Li et al. 2023 (CTKD), as in Sun et al. 2024 (LSKD)", same_teacher=False
    ),
    ("alone", "resnet50", "mobilenetv1"): TABLE_5,
    ("kd", "resnet50", "mobilenetv1"): TABLE_5,
    ("dist", "resnet50", "mobilenetv1"): Source(_repeated("Huang et al. 2022 (DIST)", "Table 5"), alone=70.13),
    ("nkd", "resnet50", "mobilenetv1"): Source(MMCLS, alone=69.21, same_teacher=False),
    ("wttm", "resnet50", "mobilenetv1"): TABLE_5,
}


class Tables(NamedTuple):
    """The tables of a data set.

    Attributes:
      accuracy: Row -> test accuracy (%) for each pair.
      sources: Row -> its source.
      pairs: The pairs of networks, in the order of the columns.
      view: View of the training images.
      images: Number of training images.
    """

    accuracy: dict[str, tuple[float | None, ...]]
    sources: dict[str, Source]
    pairs: tuple[tuple[str, str], ...]
    view: str
    images: int


TABLES = {
    "cifar100": Tables(ACCURACY, SOURCES, PAIRS, "crop_flip", 50_000),
    "imagenet": Tables(IMAGENET_ACCURACY, IMAGENET_SOURCES, IMAGENET_PAIRS, "rrc_flip", 1_281_167),
}


def state(config: ConfigDict, row: str, dataset: str, teacher: str, student: str) -> None:
    """Sets `config.published` of a whole config, with the recipe that the number belongs to.

    Args:
      config: The config; what is changed in it later is no longer of the recipe.
      row: Name of a method, or 'teacher'.
      dataset: Name of the data set.
      teacher: Name of the teacher's network.
      student: Name of the student's network.
    """
    found = entry(row, dataset, teacher, student)
    if found:
        facts = {"images": TABLES[dataset].images, **({"teacher": teacher} if config.teachers else {})}
        found["recipe"] = recipe(config, **facts)
    config.published = found


def entry(row: str, dataset: str, teacher: str, student: str) -> dict:
    """Returns the fields of `config.published`, see `kdjax.config.defaults`; {} if the tables do not have the number.

    Args:
      row: Name of a method, or 'teacher'.
      dataset: Name of the data set.
      teacher: Name of the teacher's network.
      student: Name of the student's network.
    """
    pair, tables = (teacher, student), TABLES.get(dataset)
    if tables is None or pair not in tables.pairs or row not in tables.accuracy:
        return {}
    column = tables.pairs.index(pair)
    accuracy = tables.accuracy[row][column]
    if accuracy is None:
        return {}
    source = EXCEPTIONS.get((row, *pair), tables.sources[row])
    teacher_accuracy = {"teacher": tables.accuracy["teacher"][column]} if source.same_teacher else {}
    return {
        "accuracy": accuracy,
        **teacher_accuracy,
        "alone": source.alone or tables.accuracy["alone"][column],
        "source": source.paper,
        "selection": source.selection,
        "view": tables.view,
        "epochs": source.epochs,
        "runs": source.runs[0 if pair in ONE_FAMILY else 1],
        "teacher_losses": ("cross_entropy",),  # all teachers of these tables were trained with it
    }


class ByPair(NamedTuple):
    """Hyper-parameters of a loss that the papers set for each pair of networks.

    Attributes:
      names: Names of the hyper-parameters.
      cifar: Their values for each of PAIRS, on all data sets but ImageNet.
      imagenet: Their values for each of IMAGENET_PAIRS.
      others: Their values for a pair that the tables do not have.
      same_network: Their values if teacher and student are the same network, which the tables do not have; None for
        `others`.
    """

    names: tuple[str, ...]
    cifar: tuple[tuple[float, ...], ...]
    imagenet: tuple[tuple[float, ...], ...]
    others: tuple[float, ...]
    same_network: tuple[float, ...] | None = None

    def of(self, dataset: str, teacher: str, student: str) -> dict[str, float]:
        """Returns hyper-parameter -> value for a pair of networks."""
        pairs, rows = (IMAGENET_PAIRS, self.imagenet) if dataset == "imagenet" else (PAIRS, self.cifar)
        if (teacher, student) in pairs:
            values = rows[pairs.index((teacher, student))]
        else:
            values = self.same_network if self.same_network and teacher == student else self.others
        return dict(zip(self.names, values, strict=True))


class Known(NamedTuple):
    """Hyper-parameters of a loss that its paper's code sets for a few pairs of networks only.

    Attributes:
      names: Names of the hyper-parameters.
      pairs: (teacher, student) -> their values.
      others: Their values for any other pair, those of one that is known.
      imagenet: Their values for every pair on ImageNet.
    """

    names: tuple[str, ...]
    pairs: dict[tuple[str, str], tuple[float, ...]]
    others: tuple[float, ...]
    imagenet: tuple[float, ...]

    def of(self, dataset: str, teacher: str, student: str) -> dict[str, float]:
        """Returns hyper-parameter -> value for a pair of networks."""
        values = self.imagenet if dataset == "imagenet" else self.pairs.get((teacher, student), self.others)
        return dict(zip(self.names, values, strict=True))


CATKD = Known(("weight",), {("resnet32x4", "resnet8x4"): (15.0,), ("resnet56", "resnet20"): (0.7,)}, (15.0,), (0.5,))
KDPP = Known(("weight",), {("resnet32x4", "resnet8x4"): (3.5,), ("resnet56", "resnet20"): (1.0,)}, (1.0,), (1.0,))
WKDL = Known(
    ("weight", "temperature"),
    {("resnet32x4", "resnet8x4"): (600.0, 8.0), ("wrn_40_2", "shufflenetv1"): (200.0, 6.0)},
    (600.0, 8.0),
    (30.0, 2.0),
)

# Where the tables do not have the pair: the weights of KD at T = 4, which make TTM KD but for the Rényi term.
KD_LIKE = (0.25, 3.6)
IMAGENET_WTTM = ((0.8, 1.6), (0.8, 1.6), (0.8, 1.6), (0.8, 1.6), (0.7, 3.5))
TTM = ByPair(
    ("gamma", "weight"),
    (
        *((0.1, 101.0), (0.1, 76.0), (0.3, 7.0), (0.2, 8.0), (0.1, 33.0), (0.1, 100.0), (0.1, 45.0)),
        *((0.2, 16.0), (0.2, 20.0), (0.1, 70.0), (0.2, 12.0), (0.4, 40.0), (0.3, 8.0)),
    ),
    IMAGENET_WTTM,
    KD_LIKE,
)
WTTM = ByPair(
    ("gamma", "weight"),
    (
        *((0.1, 4.0), (0.1, 3.0), (0.3, 1.5), (0.2, 2.0), (0.1, 1.5), (0.1, 3.0), (0.1, 2.25)),
        *((0.2, 3.0), (0.2, 5.0), (0.1, 2.0), (0.2, 1.4), (0.4, 16.0), (0.3, 3.0)),
    ),
    IMAGENET_WTTM,
    KD_LIKE,
)
WTTM_CRD = ByPair(
    ("gamma", "weight"),
    (
        *((0.1, 4.0), (0.1, 2.0), (0.3, 0.6), (0.2, 1.4), (0.2, 1.0), (0.2, 4.0), (0.2, 4.0)),
        *((0.3, 4.2), (0.3, 3.0), (0.1, 3.0), (0.2, 0.4), (0.4, 12.0), (0.2, 0.16)),
    ),
    IMAGENET_WTTM,
    KD_LIKE,
)
WTTM_ITRD = ByPair(
    ("gamma", "weight"),
    (
        *((0.3, 6.0), (0.4, 0.08), (0.5, 5.0), (0.3, 1.5), (0.3, 0.015), (0.1, 1.5), (0.1, 0.5)),
        *((0.3, 0.03), (0.2, 0.02), (0.1, 1.0), (0.3, 0.6), (0.4, 0.8), (0.1, 0.2)),
    ),
    IMAGENET_WTTM,
    KD_LIKE,
)
DKD = ByPair(
    ("beta",),
    ((6.0,), (6.0,), (2.0,), (8.0,), (2.0,), (8.0,), (6.0,), (6.0,), (8.0,), (8.0,), (8.0,), (8.0,), (8.0,)),
    ((0.5,), (0.5,), (0.5,), (0.5,), (2.0,)),
    (8.0,),
)
REVIEW = ByPair(
    ("weight",),
    # of its authors' CIFAR-100 script; 5 where that does not have the pair
    ((5.0,), (5.0,), (0.6,), (5.0,), (1.0,), (5.0,), (5.0,), (5.0,), (5.0,), (5.0,), (5.0,), (8.0,), (5.0,)),
    ((1.0,), (1.0,), (1.0,), (1.0,), (8.0,)),  # of mdistiller
    (5.0,),
)
ITRD = ByPair(
    ("alpha", "mutual_weight"),  # alpha is 1.01 for one family and 1.5 for two; three pairs have no mutual term
    (
        *((1.01, 1.0), (1.01, 1.0), (1.01, 1.0), (1.01, 1.0), (1.01, 1.0), (1.01, 1.0), (1.01, 1.0)),
        *((1.5, 1.0), (1.5, 0.0), (1.5, 0.0), (1.5, 1.0), (1.5, 1.0), (1.5, 0.0)),
    ),
    ((1.5, 1.0), (1.5, 1.0), (1.5, 1.0), (1.5, 1.0), (1.5, 1.0)),
    (1.5, 1.0),
    same_network=(1.01, 1.0),
)
