"""The tables of a study of generations: accuracy by generation, ensembles, controls, transfer, paired differences."""

from collections.abc import Mapping
from typing import Any

from kdjax.reporting.contrasts import interval
from kdjax.reporting.figures import Figure, Series, curves
from kdjax.reporting.tables import markdown, spread


def report(study: Any, outcome: Any) -> str:
    """Returns the study's tables in Markdown.

    Args:
      study: of kind 'generations'.
      outcome: what `studies.generations.run` returned.
    """
    how = "chosen on validation over all seeds" if study.report == "validation" else "fixed beforehand"
    parts = [
        f"# {study.title}",
        f"Test accuracy in %, last checkpoint; ± is the standard deviation over {study.seeds} seeds. Generation 0 is "
        "the patriarch; m counts generations, times the length, or networks.",
        _by_generation(outcome),
        "Mean probability of generations (or networks) 1 to m:",
        _grid(outcome.ensembles),
        f"The generation that a chain is reported by ({how}), and its difference to what stands beside it, paired by "
        "seed, [ ] a 95 % t interval over seeds:",
        _differences(outcome),
    ]
    if outcome.transfer:
        parts += ["Linear probe on the features, strength chosen on validation:", _transfer(outcome)]
        parts += ["What the reported generation's features gain over others, paired likewise:", _carried(outcome)]
    return "\n\n".join(parts) + "\n"


def figures(study: Any, outcome: Any) -> list[Figure]:
    """Returns accuracy by generation, and that of the mean of generations 1 to m.

    Args:
      study: of kind 'generations'.
      outcome: what `studies.generations.run` returned.
    """
    accuracy = {key: scores["last"] for key, scores in outcome.accuracy.items()}
    panels = {
        ("m: generation, times as long, networks", "test accuracy [%]"): _lines(accuracy),
        ("m: mean of 1 to m", "test accuracy [%]"): _lines(outcome.ensembles),
    }
    caption = f"Last checkpoint; a band is the standard deviation over {study.seeds} seeds, generation 0 the patriarch."
    return [curves("generations", "Generations", caption, panels)]


def _lines(values: Mapping[tuple[str, int, int], float]) -> list[Series]:
    """(row, m, seed) -> value as a line a row."""
    series = []
    for row in dict.fromkeys(row for row, _, _ in values):
        places = sorted({m for r, m, _ in values if r == row})
        series.append(
            Series(row, places, [[100 * v for (r, m, _), v in values.items() if (r, m) == (row, x)] for x in places])
        )
    return series


def _by_generation(outcome: Any) -> str:
    return _grid({key: scores["last"] for key, scores in outcome.accuracy.items()})


def _grid(values: Mapping[tuple[str, int, int], float]) -> str:
    """(row, m, seed) -> value as rows by m."""
    columns = sorted({m for _, m, _ in values})
    rows = []
    for row in dict.fromkeys(row for row, _, _ in values):
        cells = [[100 * v for (r, k, _), v in values.items() if (r, k) == (row, m)] for m in columns]
        rows.append((row, *(spread(cell) for cell in cells)))
    return markdown(("", *(f"m = {m}" for m in columns)), rows)


def _differences(outcome: Any) -> str:
    others, rows = dict.fromkeys(row for row, _, _ in outcome.accuracy if row not in outcome.chosen), []
    for chain, m in outcome.chosen.items():
        own = _last(outcome, chain, m)
        for name, row, generation in [*_chains_beside(outcome, chain), *((row, row, m) for row in others)]:
            base = _last(outcome, row, generation)
            if base:  # controls may end before
                rows.append((f"{chain}, m = {m}", name, _gain(own, base)))
    return markdown(("generation", "against", "difference"), rows)


def _chains_beside(outcome: Any, chain: str) -> list[tuple[str, str, int]]:
    """(label, chain, generation) of a reported generation's patriarch, and of the same generation of other chains."""
    m = outcome.chosen[chain]
    others = [(f"generation {m} of {other}", other, m) for other in outcome.chosen if other != chain]
    return [(f"generation 0 of {chain}", chain, 0), *others]


def _gain(own: Mapping[int, float], base: Mapping[int, float]) -> str:
    """Of seed -> accuracy, paired by seed, in %."""
    return interval([100 * (own[seed] - base[seed]) for seed in own])


def _last(outcome: Any, row: str, m: int) -> dict[int, float]:
    """Seed -> accuracy; independent networks are members of an ensemble, which is what stands beside a chain."""
    if (row, m, 0) in outcome.ensembles and row not in outcome.chosen:
        return {seed: v for (r, k, seed), v in outcome.ensembles.items() if (r, k) == (row, m)}
    return {seed: v["last"] for (r, k, seed), v in outcome.accuracy.items() if (r, k) == (row, m)}


def _carried(outcome: Any) -> str:
    """Differences of the probes, of a chain's reported generation to other chains' and to its patriarch."""
    names, rows = _names(outcome), []
    for chain, m in outcome.chosen.items():
        for label, other, generation in _chains_beside(outcome, chain):
            pairs = [(_probes(outcome, name, chain, m), _probes(outcome, name, other, generation)) for name in names]
            rows.append((f"{chain}, m = {m}", label, *(_gain(*pair) for pair in pairs)))
    return markdown(("generation", "against", *names), rows)


def _probes(outcome: Any, name: str, row: str, m: int) -> dict[int, float]:
    """Seed -> accuracy."""
    return {seed: v for (n, r, k, seed), v in outcome.transfer.items() if (n, r, k) == (name, row, m)}


def _names(outcome: Any) -> list[str]:
    """The sets that features were carried to."""
    return list(dict.fromkeys(name for name, *_ in outcome.transfer))


def _transfer(outcome: Any) -> str:
    names = _names(outcome)
    places = list(dict.fromkeys((row, m) for _, row, m, _ in outcome.transfer))
    rows = []
    for row, m in places:
        cells = [[100 * v for v in _probes(outcome, name, row, m).values()] for name in names]
        rows.append((row, m, *(spread(cell) for cell in cells)))
    return markdown(("chain", "generation", *names), rows)
