"""Compiling the kernels, and what happens on a machine where that is not possible."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fedsim.comm.group import Group
from fedsim.kernels import build
from fedsim.kernels.attention import CompiledAttention
from fedsim.kernels.rows import FrozenNorm, Gelu
from fedsim.machine import cache as data_cache
from fedsim.runfolder.environment import environment
from fedsim.runfolder.runlog import RunLog
from tests.helpers import LORA, TINY_VIT, make_config, make_dataset, shared_models

ROOT = Path(__file__).resolve().parents[3]
TYPES = [torch.float32, torch.bfloat16]
CONFIG = make_config(model={**TINY_VIT, "lora": LORA})
needs_compiler = pytest.mark.skipif(build.problem() is not None, reason=str(build.problem()))


def forget() -> None:
    build.problem.cache_clear()
    build._load.cache_clear()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing loaded so far, and whatever a test sets is gone after it."""
    forget()
    with monkeypatch.context() as context:
        yield context
    forget()


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """A compiler that tells its version and no more."""
    path = tmp_path / "broken"
    says = "echo In file x: >&2; echo x:1: error: bad >&2; exit 1"
    path.write_text(f'#!/bin/sh\ncase "$*" in *--version) exit;; esac\n{says}\n')
    path.chmod(0o755)
    return str(path)


def set_compiler(fresh: pytest.MonkeyPatch, name: str) -> str:
    """Use one that does not work, and return what ``problem`` says."""
    fresh.setenv("CXX", name)
    reason = build.problem()
    assert reason is not None
    assert reason.splitlines() == [reason]
    return reason


def test_no_compiler(fresh: pytest.MonkeyPatch) -> None:
    assert set_compiler(fresh, "/nowhere/c++") == "no C++ compiler: /nowhere/c++: No such file or directory"
    assert not any(build.available(dtype) for dtype in TYPES)


def test_a_compiler_that_fails(fresh: pytest.MonkeyPatch, cache: Path, broken: str) -> None:
    assert set_compiler(fresh, "false") == "false --version: exit status 1"
    forget()
    reason = set_compiler(fresh, f"{broken} -pipe")
    assert reason.startswith(f"{broken} -pipe -std=c++17")
    assert reason.endswith(": x:1: error: bad")
    assert not list(cache.glob("kernels-*")), "no folder without a library"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("g++ '", "CXX=g++ ': No closing quotation"), ("", "CXX names no compiler"), ("  ", "CXX names no compiler")],
)
def test_a_compiler_that_cannot_be_read(name: str, reason: str, fresh: pytest.MonkeyPatch) -> None:
    assert set_compiler(fresh, name) == reason


def why_not() -> str:
    """What a run's environment says about the kernels, in which the same line is printed."""
    reason = environment(group("cpu"))["cpu_kernels"]
    assert isinstance(reason, str)
    assert reason == build.problem()
    assert reason.splitlines() == [reason]
    assert scores_and_gradients("fp32"), "PyTorch's operators do the work"
    return reason


@needs_compiler
def test_a_cache_that_cannot_be_written(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("FEDSIM_CACHE", "/proc/self")  # a folder in which not even root can make a file
    assert why_not().startswith("cache folder /proc/self: found No such file or directory; expected a folder that")


@needs_compiler
def test_a_cache_that_cannot_be_made(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fresh.setenv("FEDSIM_CACHE", str(tmp_path / "file" / "cache"))
    assert why_not().startswith("FEDSIM_CACHE=")


@needs_compiler
def test_kernels_in_a_cache_that_can_no_longer_be_written(fresh: pytest.MonkeyPatch, cache: Path) -> None:
    assert build.problem() is None
    assert {path.stat().st_mode & 0o777 for path in cache.glob("kernels-*")} == {0o700}
    forget()
    fresh.setattr(data_cache, "alone", lambda _: pytest.fail("wants to write"))
    assert build.problem() is None


@needs_compiler
def test_kernels_of_another_user(fresh: pytest.MonkeyPatch, cache: Path) -> None:
    assert build.problem() is None
    forget()
    owner = os.geteuid()
    fresh.setattr(os, "geteuid", lambda: owner + 1)
    for path in cache.glob("kernels-*"):
        path.rename(path.with_name(path.name.replace(f"kernels-{owner}-", f"kernels-{owner + 1}-")))
    fresh.setattr(build.seal, "load", lambda *_: pytest.fail("loaded"))
    assert f": found a folder of user {owner}; expected one of user {owner + 1}" in why_not()


@needs_compiler
@pytest.mark.parametrize("damage", ["cut in half", "a byte changed"])
def test_damaged_kernels_are_compiled_anew(damage: str, cache: Path) -> None:
    run = [
        sys.executable,
        "-c",
        "from fedsim.kernels import build, rows; import torch; print(build.problem(), "
        "rows.Gelu()(torch.ones(1)).item())",
    ]
    said = subprocess.run(run, cwd=ROOT, capture_output=True, check=True).stdout
    whole = {path: path.read_bytes() for path in cache.glob("kernels-*/kernels.so")}
    assert len(whole) == len(TYPES)
    for path, data in whole.items():
        middle = len(data) // 2
        path.write_bytes(data[:middle] if damage == "cut in half" else data[:middle] + b"?" + data[middle + 1 :])
    again = subprocess.run(run, cwd=ROOT, capture_output=True)
    assert (again.returncode, again.stdout, again.stderr) == (0, said, b"")
    assert all(len(path.read_bytes()) == len(data) for path, data in whole.items())


@needs_compiler
def test_other_types_have_no_kernels() -> None:
    assert [build.available(dtype) for dtype in [*TYPES, torch.float64, torch.float16]] == [True, True, False, False]


def scores_and_gradients(precision: str) -> list[Tensor]:
    config = make_config(model={**TINY_VIT, "lora": LORA, "precision": precision})
    made = shared_models(config.model.model_dump_json(), config.data.image_size, 3)[0]
    stream = torch.Generator().manual_seed(0)
    params = {
        name: (value[None] + 0.1 * torch.randn(2, *value.shape, generator=stream)).requires_grad_()
        for name, value in made.initial(0).items()
    }
    fixed = made.prefix(make_dataset([8])[0].images[:8].float() / 255)
    scores = made.forward(params, fixed.reshape(2, 4, *fixed.shape[1:]), training=True)
    grads = torch.autograd.grad(scores.square().sum(), list(params.values()))
    return [scores.detach(), torch.cat([grad.flatten() for grad in grads])]


@needs_compiler
@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.03)])
def test_without_a_compiler_the_model_is_the_same(
    precision: str, tolerance: float, compiler: str, fresh: pytest.MonkeyPatch
) -> None:
    compiled = scores_and_gradients(precision)
    forget()
    set_compiler(fresh, compiler)
    fresh.setattr(build, "call", lambda *_: pytest.fail("called all the same"))
    for ours, plain in zip(compiled, scores_and_gradients(precision), strict=True):
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance * plain.abs().max().item())
        assert not torch.equal(ours, plain), "rounded the same way: were there two ways at all?"


def results(dtype: torch.dtype) -> list[Tensor]:
    """Outputs and gradients of all passes."""
    stream = torch.Generator().manual_seed(3)
    projected = torch.randn(2, 77, 3, 2, 20, generator=stream).to(dtype).requires_grad_()
    x = (3 * torch.randn(1001, generator=stream)).to(dtype).requires_grad_()
    rows = torch.randn(5, 200, generator=stream).requires_grad_()
    mask = torch.arange(77) < torch.tensor([77, 30])[:, None, None, None]
    norm = FrozenNorm(nn.LayerNorm(200).requires_grad_(False))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        outs = [CompiledAttention.apply(None, projected, mask), Gelu()(x), norm(rows)]
    grads = [torch.randn(out.shape, generator=stream).to(out.dtype) for out in outs]
    return [*outs, *torch.autograd.grad(outs, [projected, x, rows], grads)]


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64")
@pytest.mark.parametrize("machine", ["x86-64-v2", "x86-64-v3"])
def test_code_for_older_processors(machine: str, fresh: pytest.MonkeyPatch, cache: Path) -> None:
    native = {dtype: results(dtype) for dtype in TYPES}
    forget()
    fresh.setattr(build, "COMPILE", build.COMPILE.replace("-march=native", f"-march={machine}"))
    for dtype, tolerance in zip(TYPES, (3e-6, 0.02), strict=True):
        for older, newer in zip(results(dtype), native[dtype], strict=True):
            assert older.dtype == newer.dtype
            torch.testing.assert_close(older, newer, rtol=tolerance, atol=tolerance * newer.abs().max().item())
    assert build.problem() is None
    assert len(list(cache.glob("kernels-*"))) == 2 * len(TYPES)


@needs_compiler
def test_options_of_the_compiler_make_another_library(fresh: pytest.MonkeyPatch, cache: Path) -> None:
    compiler = os.environ.get("CXX", "c++")
    for command in (compiler, f"{compiler} -DOTHER"):
        forget()
        fresh.setenv("CXX", command)
        assert build.problem() is None
    assert len(list(cache.glob("kernels-*"))) == 2 * len(TYPES)


@needs_compiler
def test_two_processes_that_start_at_once(cache: Path) -> None:
    uses = "print(build.problem(), rows.Gelu()(torch.ones(1)).item())"
    code = f"import torch; from fedsim.kernels import build, rows; {uses}"
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert said[0] == said[1]
    assert said[0].startswith(b"None 0.8413")
    assert len(list(cache.glob("kernels-*"))) == len(TYPES)


def group(device: str, rank: int = 0) -> Group:
    facts: dict[str, Any] = {"rank": rank, "num_ranks": 2, "is_server": rank == 0, "backend": "b", "launcher": "none"}
    facts["decide"] = lambda act: act() if rank == 0 else None
    return cast(Group, SimpleNamespace(**facts, device=torch.device(device)))


@needs_compiler
def test_the_environment_names_compiled_kernels() -> None:
    assert environment(group("cpu"))["cpu_kernels"] == "compiled"


def test_a_run_without_kernels_says_so(
    fresh: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = set_compiler(fresh, "false")
    assert environment(group("cpu"))["cpu_kernels"] == reason
    RunLog(tmp_path / "lora", CONFIG, group("cpu"), False)
    assert [line.endswith(f": {reason}") for line in capsys.readouterr().out.splitlines()] == [False, True]
    RunLog(tmp_path / "lora", CONFIG, group("cpu", rank=1), False)
    assert not capsys.readouterr().out
    RunLog(tmp_path / "head", make_config(model={**TINY_VIT, "train": "head"}), group("cpu"), False)
    assert reason not in capsys.readouterr().out


@needs_compiler
def test_a_run_with_kernels_has_no_more_to_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunLog(tmp_path / "lora", CONFIG, group("cpu"), False)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_run_on_a_gpu_compiles_nothing(
    fresh: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh.setattr(build, "problem", lambda: pytest.fail("asked for kernels"))
    RunLog(tmp_path / "lora", CONFIG, group("cuda:0"), False)
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert environment(group("cuda:0"))["cpu_kernels"] is None
