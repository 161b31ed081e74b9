"""What the papers print: CIFAR-100 and ImageNet test accuracies, and the weights that their tables were made with.

Accuracies: Zheng & Yang 2024, Tables 1 to 5, 11 and 12, which repeat the rows of Tian et al. 2020 (RepDistiller);
means of 5 runs for pairs of one architecture, of 3 for the others. TTM and WTTM: its Tables 8 to 10; where their
rows run together the assignment is an inference, checked against two commands of its README. DKD: mdistiller.
"""

# The 13 pairs in the order of the tables' columns: (teacher, student).
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
IMAGENET_PAIRS = (
    ("resnet34", "resnet18"),
    ("resnet50", "resnet18"),
    ("resnet101", "resnet18"),
    ("resnet152", "resnet18"),
    ("resnet50", "mobilenetv1"),
)

NONE = None  # not in the table
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
    "dkd": (76.24, 74.81, 71.97, NONE, 74.11, 76.32, 74.68, 69.71, 70.35, NONE, 76.45, 77.07, 76.70),
    "ttm": (76.23, 74.32, 71.83, 71.46, 73.97, 76.17, 74.33, 68.98, 69.24, 74.87, 74.18, 76.57, 75.39),
    "wttm": (76.37, 74.58, 71.92, 71.67, 74.13, 76.06, 74.44, 69.16, 69.59, 74.82, 74.37, 76.55, 75.42),
    "wttm_crd": (76.61, 74.94, 72.20, 72.13, 74.52, 76.65, 74.71, 70.30, 70.84, 75.30, 75.82, 77.04, 76.86),
    "wttm_itrd": (76.65, 75.34, 72.16, 72.20, 74.36, 77.36, 75.13, 70.70, 71.56, 76.00, 77.03, 77.68, 77.44),
}
IMAGENET_ACCURACY = {
    "teacher": (73.31, 76.16, NONE, NONE, 76.16),
    "alone": (69.76, 69.76, 69.76, 69.76, 68.87),
    "kd": (71.21, 71.35, 71.09, 71.12, 70.50),
    "crd": (71.17, NONE, NONE, NONE, 71.37),
    "review": (71.61, NONE, NONE, NONE, 72.56),
    "itrd": (71.68, NONE, NONE, NONE, NONE),
    "dkd": (71.70, NONE, NONE, NONE, 72.05),
    "dist": (72.07, 72.12, 72.08, 72.24, 73.24),
    "nkd": (71.96, NONE, NONE, NONE, 72.58),
    "wttm": (72.19, 72.26, 72.34, 72.39, 73.09),
}

# (gamma, beta) of each pair.
TTM = (
    *((0.1, 101.0), (0.1, 76.0), (0.3, 7.0), (0.2, 8.0), (0.1, 33.0), (0.1, 100.0), (0.1, 45.0)),
    *((0.2, 16.0), (0.2, 20.0), (0.1, 70.0), (0.2, 12.0), (0.4, 40.0), (0.3, 8.0)),
)
WTTM = (
    *((0.1, 4.0), (0.1, 3.0), (0.3, 1.5), (0.2, 2.0), (0.1, 1.5), (0.1, 3.0), (0.1, 2.25)),
    *((0.2, 3.0), (0.2, 5.0), (0.1, 2.0), (0.2, 1.4), (0.4, 16.0), (0.3, 3.0)),
)
WTTM_CRD = (
    *((0.1, 4.0), (0.1, 2.0), (0.3, 0.6), (0.2, 1.4), (0.2, 1.0), (0.2, 4.0), (0.2, 4.0)),
    *((0.3, 4.2), (0.3, 3.0), (0.1, 3.0), (0.2, 0.4), (0.4, 12.0), (0.2, 0.16)),
)
WTTM_ITRD = (
    *((0.3, 6.0), (0.4, 0.08), (0.5, 5.0), (0.3, 1.5), (0.3, 0.015), (0.1, 1.5), (0.1, 0.5)),
    *((0.3, 0.03), (0.2, 0.02), (0.1, 1.0), (0.3, 0.6), (0.4, 0.8), (0.1, 0.2)),
)
IMAGENET_WTTM = ((0.8, 1.6), (0.8, 1.6), (0.8, 1.6), (0.8, 1.6), (0.7, 3.5))
DKD_BETA = (6.0, 6.0, 2.0, 8.0, 2.0, 8.0, 6.0, 6.0, 8.0, 8.0, 8.0, 8.0, 8.0)
IMAGENET_DKD_BETA = (0.5, 0.5, 0.5, 0.5, 2.0)
# ReviewKD's weight by pair, of its authors' CIFAR-100 script; 5 where that has none.
REVIEW = (5.0, 5.0, 0.6, 5.0, 1.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 8.0, 5.0)
IMAGENET_REVIEW = (1.0, 1.0, 1.0, 1.0, 8.0)  # mdistiller
# ITRD's mutual term is left out for these pairs.
WITHOUT_MUTUAL = (("resnet50_cifar", "mobilenetv2_half"), ("resnet50_cifar", "vgg8"), ("wrn_40_2", "shufflenetv1"))


def of_pair(row: tuple, teacher: str, student: str, pairs: tuple = PAIRS):
    """Returns a row's entry for a pair of networks, None where the tables have no such pair."""
    return row[pairs.index((teacher, student))] if (teacher, student) in pairs else None


TABLES = {
    "cifar100": (ACCURACY, PAIRS, "last epoch, test split, mean of 3 to 5 runs"),
    "imagenet": (IMAGENET_ACCURACY, IMAGENET_PAIRS, "last epoch, validation split"),
}


def entry(row: str, dataset: str, teacher: str, student: str) -> dict:
    """Returns what goes into `config.published` of a method, or of 'teacher'; empty where the tables have none."""
    rows, pairs, protocol = TABLES.get(dataset, ({}, (), ""))
    accuracies = {
        field: of_pair(rows[name], teacher, student, pairs)
        for field, name in (("accuracy", row), ("teacher", "teacher"), ("alone", "alone"))
        if name in rows
    }
    if accuracies.get("accuracy") is None:
        return {}
    # All teachers of these tables were trained with it.
    return {**accuracies, "protocol": protocol, "source": "Zheng & Yang 2024", "teacher_losses": ("cross_entropy",)}
