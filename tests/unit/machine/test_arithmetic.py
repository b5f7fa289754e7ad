"""The switches of PyTorch that decide what numbers mean."""

from collections.abc import Iterator

import pytest
import torch

from fedsim.errors import UserError
from fedsim.machine.arithmetic import set_arithmetic


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    yield
    torch.use_deterministic_algorithms(False)
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_gpu_rounds_only_where_asked(precision: str, deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    set_arithmetic(precision, deterministic, torch.device("cuda"))
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is (precision == "tf32")
    assert torch.are_deterministic_algorithms_enabled() is deterministic


def test_a_cpu_has_no_tf32() -> None:
    with pytest.raises(UserError, match=r"model.precision: found tf32 on a CPU; expected fp32 or bf16"):
        set_arithmetic("tf32", True, torch.device("cpu"))
    set_arithmetic("fp32", True, torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_denormal_numbers_are_zero() -> None:
    set_arithmetic("fp32", True, torch.device("cpu"))
    tiny = torch.tensor(1e-38)
    assert (tiny * 0.01).item() == 0.0
