"""Where does WTTM's gain come from? From KD to TTM by the Rényi entropy between them, and the TTM paper's figures.

Paper:    Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024. With beta = lambda T /
          (1 - lambda), TTM with CE is KD with CE minus beta (T - 1) H_{1/T}(q): a coefficient on that entropy goes
          from KD (0) to TTM (1) and beyond. The figures are the student's entropy under KD, TTM and WTTM, KL to the
          transformed teacher without CE, and the entropy against KD's temperature.
Command:  python -m kdjax.run_study --config=configs/studies/renyi.py --store=runs/renyi
Expect:   the table in the README; 'KD less 100 % Renyi' equals TTM up to rounding.
Hardware: 2 CPU cores, a few minutes.

T = 4 and lambda = 0.9 give beta = 36 beside CE of weight 1. All weights are multiplied by (1 - lambda), as in
configs/kd_student.py: CE 0.1, KD 0.9, TTM 3.6, and WTTM 3.6 divided by its mean weight. CE without a teacher has weight
1. On the embedded digits, students are MLPs with 12 hidden units and teachers MLPs with 512-512.
"""

from ml_collections import ConfigDict

from configs import alone_student, ce_teacher

TEMPERATURE = 4.0  # T
SHARE = 0.9  # lambda
BETA = SHARE * TEMPERATURE  # beta (1 - lambda)
COEFFICIENTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
LABELS = {"cross_entropy": {"weight": 1 - SHARE, "label_smoothing": 0.0}}  # cross-entropy beside a teacher
CONTRASTS = (
    ("TTM", "KD"),
    ("WTTM", "KD"),
    ("WTTM", "TTM"),
    ("WTTM without CE", "TTM without CE"),
    ("KD", "CE"),
    ("CE, smoothed 10 %", "CE"),
)
WHOLE_CONTRASTS = (("KD less 100 % Renyi", "TTM"), ("KD at T = 1", "CE"), ("KD at T = 8", "CE"))


def get_config(argument: str | None = None):
    """Argument: digits | smoke."""
    smoke = argument == "smoke"
    study = ConfigDict()
    study.kind = "renyi"
    study.title = "KD, TTM, WTTM and the Rényi entropy between them"
    study.temperature = TEMPERATURE
    study.seeds = (5, 6) if smoke else tuple(range(5, 15))  # hyper-parameters were chosen on splits 0 to 4
    study.baseline = "KD"
    study.teacher = ce_teacher.get_config(argument)
    study.student = alone_student.get_config(argument)
    study.losses = {
        "CE": {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.0}},
        "CE, smoothed 10 %": {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}},
        "KD": {**LABELS, "kd": _kd(TEMPERATURE)},
        "TTM": {**LABELS, "ttm": _ttm()},
        "WTTM": {**LABELS, "wttm": _wttm()},
        "TTM without CE": {"ttm": _ttm()},
        "WTTM without CE": {"wttm": _wttm()},
    }
    for coefficient in COEFFICIENTS[1::3] if smoke else COEFFICIENTS[1:]:
        study.losses[f"KD less {100 * coefficient:03g} % Renyi"] = _kd_less_entropy(coefficient)
    for temperature in TEMPERATURES:
        if temperature != TEMPERATURE and not smoke:
            study.losses[f"KD at T = {temperature:g}"] = {**LABELS, "kd": _kd(temperature)}
    study.contrasts = CONTRASTS if smoke else (*CONTRASTS, *WHOLE_CONTRASTS)
    return study


def _kd(temperature: float) -> dict:
    return {"weight": SHARE, "temperature": temperature}


def _kd_less_entropy(coefficient: float) -> dict:
    entropy = {"weight": -coefficient * BETA * (TEMPERATURE - 1), "order": 1 / TEMPERATURE}
    return {**LABELS, "kd": _kd(TEMPERATURE), "student_renyi": entropy}


def _ttm() -> dict:
    return {"weight": BETA, "gamma": 1 / TEMPERATURE}


def _wttm() -> dict:
    return {"weight": BETA, "gamma": 1 / TEMPERATURE, "normalize": "batch_mean"}
