"""What ``launch.py check`` says, on a job whose numbers are known."""

import pytest

from fedsim import plan
from tests.helpers import make_config, make_dataset, make_simulation


@pytest.mark.parametrize(("method", "phases"), [("fedavg", ["train"]), ("deer", ["b", "a"])])
def test_plan(method: str, phases: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [40, 0, 3]
    dataset, parts = make_dataset(sizes)
    config = make_config(algorithm={"name": method}, clients={"count": 3, "per_block": 1})
    sim = make_simulation(config, dataset, parts)
    monkeypatch.setattr(plan, "build_simulation", lambda *_: sim)
    rows = dict(plan.describe(config))
    assert rows["data"].endswith("43 train, 12 val, 12 test images")
    assert rows["classes"] == "class 0, class 1, class 2"
    assert rows["clients"] == "3, of 0 to 40 images, 1 without"
    assert rows["near-duplicates"].startswith("0 of 12 val images have one in train; 0 of 12 test images")
    assert rows["same pixels"].endswith("0 pictures in two classes")
    assert rows["cohort"] == "2 clients in 2 blocks of up to 1"
    assert rows["local steps"] == "1 to 3 per client and phase"
    # Two blocks, three slices, rank 2, width 32: as many numbers in A as in B.
    factor, head = 2 * 3 * 2 * 32, 3 * 32 + 3
    each = head + (2 * factor if method == "fedavg" else factor)
    for phase in phases:
        assert rows[f"phase {phase}"] == f"{each:,} parameters trained, {4 * each:,} bytes sent per client"
    assert rows["bytes per round"] == f"{len(phases) * each * 4 * 2:,} up, as float32"
