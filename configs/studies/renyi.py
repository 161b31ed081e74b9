"""Where is WTTM's gain from? From KD to TTM by the Rényi entropy between them, and the three figures of the TTM paper.

Paper:    Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024. With beta = lambda T /
          (1 - lambda), TTM beside CE is KD beside CE less beta (T - 1) H_{1/T}(q): a coefficient on that entropy
          goes from KD (0) to TTM (1) and beyond. The figures are the student's entropy under KD, TTM and WTTM, KL to
          the transformed teacher without CE, and the entropy against KD's temperature.
Command:  python -m kdjax.run_study --config=configs/studies/renyi.py --store=runs/renyi
Expect:   the table in the README; 'KD less 100 % Renyi' is TTM up to rounding.
Hardware: 2 CPU cores, a few minutes.

T = 4 and lambda = 0.9 give beta = 36 beside CE of weight 1. All weights are times (1 - lambda), as in configs/
kd_student.py: CE 0.1, KD 0.9, TTM 3.6, and WTTM 3.6 over its mean weight. CE alone has weight 1. On the embedded
digits, an MLP of 12 from one of 512-512.
"""

from ml_collections import ConfigDict

from configs import alone_student, ce_teacher

TEMPERATURE, SHARE = 4.0, 0.9  # T and lambda
BETA = SHARE * TEMPERATURE  # beta (1 - lambda)
COEFFICIENTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)


def get_config(argument: str | None = None):
    """Argument: digits | smoke."""
    smoke = argument == "smoke"
    study = ConfigDict()
    study.kind, study.title = "renyi", "KD, TTM, WTTM and the Rényi entropy between them"
    study.temperature = TEMPERATURE
    study.seeds = (5, 6) if smoke else tuple(range(5, 15))  # splits 0 to 4 were for choosing
    study.baseline = "KD"
    study.teacher, study.student = ce_teacher.get_config(argument), alone_student.get_config(argument)
    labels = {"cross_entropy": {"weight": 1 - SHARE, "label_smoothing": 0.0}}
    study.losses = {"CE": {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.0}}}
    study.losses["CE, smoothed 10 %"] = {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}}
    study.losses["KD"] = {**labels, "kd": _kd(TEMPERATURE)}
    study.losses["TTM"] = {**labels, "ttm": _ttm()}
    study.losses["WTTM"] = {**labels, "wttm": _wttm()}
    study.losses["TTM without CE"] = {"ttm": _ttm()}
    study.losses["WTTM without CE"] = {"wttm": _wttm()}
    for coefficient in COEFFICIENTS[1::3] if smoke else COEFFICIENTS[1:]:
        entropy = {"weight": -coefficient * BETA * (TEMPERATURE - 1), "order": 1 / TEMPERATURE}
        study.losses[f"KD less {100 * coefficient:03g} % Renyi"] = {
            **labels,
            "kd": _kd(TEMPERATURE),
            "student_renyi": entropy,
        }
    for temperature in TEMPERATURES:
        if temperature != TEMPERATURE and not smoke:
            study.losses[f"KD at T = {temperature:g}"] = {**labels, "kd": _kd(temperature)}
    study.contrasts = (
        ("TTM", "KD"),
        ("WTTM", "KD"),
        ("WTTM", "TTM"),
        ("WTTM without CE", "TTM without CE"),
        ("KD", "CE"),
        ("CE, smoothed 10 %", "CE"),
        *(() if smoke else (("KD less 100 % Renyi", "TTM"), ("KD at T = 1", "CE"), ("KD at T = 8", "CE"))),
    )
    return study


def _kd(temperature: float) -> dict:
    return {"weight": SHARE, "temperature": temperature}


def _ttm() -> dict:
    return {"weight": BETA, "gamma": 1 / TEMPERATURE}


def _wttm() -> dict:
    return {"weight": BETA, "gamma": 1 / TEMPERATURE, "normalize": "batch_mean"}
