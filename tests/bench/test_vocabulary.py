"""The table of losses of a large vocabulary."""

import pytest

from kdjax.bench import vocabulary


def test_a_row_for_every_loss_and_form():
    table = vocabulary.table(rounds=1, rows=8, classes=20)
    names = [row[0] for row in table.rows]
    assert names[: len(vocabulary.OF_LOGITS)] == list(vocabulary.OF_LOGITS) and "linear_divergence, chunk=256" in names
    assert all(len(row) == len(table.header) and float(row[1]) >= 0 for row in table.rows)


@pytest.mark.slow
def test_temporaries_and_gradients_of_kd_ttm_and_wttm_are_at_most_three_arrays_and_chunks_hold_less_than_the_whole():
    """Only programs that are compiled as users compile them have these figures."""
    held = {row[0]: row[3] for row in vocabulary.table(rounds=1, rows=1024, classes=2000).rows}
    for name in ("kd", "ttm", "wttm"):
        assert float(held[name]) < 3.1, (name, held[name])
    assert float(held["linear_divergence, chunk=256"]) < float(held["forward_kl of hidden states, whole"]) / 2
