"""The sweep's own law, on one small model: what writes docs/coverage.md must not fall behind the library."""

from tests.zoo.coverage import failures
from tests.zoo.row import examine


def test_a_small_model_has_its_row_with_numbers() -> None:
    row = examine("timm/lcnet_035", "key", 3.0)
    assert row.traced == {"eval": "", "train": ""} and not row.note
    checks = row.numbers["checks"]
    assert len(checks) == len(row.outcomes) == 5 and not [
        c["why"] for c in checks if not c["verified"] or c["why"]
    ]
    assert all(c["logits"] <= 1e-3 and c["features"] <= 1e-3 for c in checks)
    assert not failures(vars(row))
