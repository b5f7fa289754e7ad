"""What a run loads, and how."""

import subprocess
import sys

from tests.distributed.runs import ROOT


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_what_is_loaded_is_not_searched_for_garbage_and_garbage_made_later_is() -> None:
    code = (
        "import gc, weakref\n"
        "from fedsim.machine.loading import loading\n"
        "with loading():\n"
        "    assert not gc.isenabled()\n"
        "    import fedsim.server\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 100_000\n"
        "class Knot: pass\n"
        "knot = Knot(); knot.own = knot; watched = weakref.ref(knot); del knot\n"
        "gc.collect()\n"
        "assert watched() is None\n"
    )
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failed_import_leaves_the_collector_on() -> None:
    code = (
        "import gc\n"
        "from fedsim.machine.loading import loading\n"
        "try:\n"
        "    with loading():\n"
        "        import fedsim.no_such_module\n"
        "except ModuleNotFoundError:\n"
        "    raise SystemExit(0 if gc.isenabled() else 3)\n"
    )
    assert python(code).returncode == 0


def test_a_run_loads_no_tables_and_no_library_of_models_that_its_own_does_not_need() -> None:
    code = (
        "import fedsim.server, sys; sys.exit(any(name in sys.modules for name in ('pandas', 'timm', 'transformers')))"
    )
    assert python(code).returncode == 0
