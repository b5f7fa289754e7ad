"""What scripts and notebooks call: ``fedsim.run``, ``fedsim.load`` and ``fedsim.evaluate``; see docs/python.md."""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedsim.comm.start import run_ranks
from fedsim.config.plain_yaml import apply_overrides, read_mapping
from fedsim.errors import UserError

if TYPE_CHECKING:
    from fedsim.config.experiment import Config
    from fedsim.models.outside.network import Scoring

ERROR = "error: "


class Run:
    """A run folder; what is in it is read when it is asked for. ``fedsim.load`` makes one."""

    def __init__(self, folder: Path, *, trust: bool) -> None:
        self.folder = folder
        self._trust = trust

    def __repr__(self) -> str:
        return f"fedsim.load({str(self.folder)!r})"

    @property
    def metrics(self) -> Path:
        """JSON lines, one for each round: losses, metrics, bytes, diagnostics."""
        return self.folder / "metrics.jsonl"

    @property
    def clients(self) -> Path:
        """JSON lines, one for each round, phase and client."""
        return self.folder / "clients.jsonl"

    @property
    def timings(self) -> Path:
        """JSON lines, one for each round: seconds, and bytes on the wire."""
        return self.folder / "timings.jsonl"

    @cached_property
    def config(self) -> "Config":
        """The config with all that the file left open."""
        from fedsim.runfolder.trust import load_recorded  # late: it finds the method, and with it torch

        return load_recorded(self.folder / "config.yaml", trust=self._trust)

    @cached_property
    def results(self) -> dict[str, Any]:
        """The content of results.json; UserError where the run has not come to its end."""
        file = self.folder / "results.json"
        try:
            found: dict[str, Any] = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise UserError(str(file), "no such file", "a run that has come to its end") from None
        except ValueError as error:
            raise UserError(str(file), f"no readable JSON ({error})", "the file that the run wrote") from None
        return found

    @cached_property
    def model(self) -> "Scoring":
        """The best round's network, ``class_names`` with it: images (N, 3, H, W) in 0..1 to class scores (N, C).

        For masks the scores are (N, C, H, W), for volumes the images (N, S, 3, H, W). Reads the run's data. UserError
        where the network's scores differ from the run's by more than rounding explains.
        """
        from fedsim.models.outside.network import Scoring  # late, as above
        from fedsim.runfolder.saved import open_saved
        from fedsim.verbs.taken_out.compared import compared_network

        with open_saved(self.folder, "best", self._trust) as saved:
            net, _ = compared_network(saved, str(self.folder), "a model")
            return Scoring(saved.sim.model, saved.params, saved.sim.dataset.class_names, net).eval()


def run(
    config: str | Path | Mapping[str, Any],
    *changes: str,
    ranks: int = 1,
    out: str | Path | None = None,
    resume: bool = False,
    trust: bool = False,
    show: Callable[[str], object] = print,
) -> Run:
    """Run an experiment on ranks of this machine, each a process of its own with one thread, and return its folder.

    ``config``: a YAML file, or what would be in one. ``changes``: ``"key=value"``, as on the command line. ``out``:
    ``runs/NAME`` if not given. Threads are more where the environment variable OMP_NUM_THREADS says so. ``show`` is
    told the lines of rank 0. UserError, of one line, for a mistake in config or data; RuntimeError with all that the
    ranks said where one fails. Ctrl-C, or whatever else ends this call, ends the ranks; ``resume`` goes on after it.
    """
    if ranks < 1:
        raise UserError("ranks", str(ranks), "at least 1")
    for change in changes:
        if not isinstance(change, str):
            raise UserError("changes", f"{change!r}", 'texts "key=value", one after the other')
    with tempfile.TemporaryDirectory(prefix="fedsim-") as scratch:
        if isinstance(config, Mapping):
            file = Path(scratch) / "config.yaml"
            file.write_text(_as_json(config), "utf-8")
        else:
            file = Path(config)
        data = read_mapping(file)
        apply_overrides(data, changes)
        folder = Path(out) if out is not None else Path("runs") / str(data.get("name"))
        code, errors = run_ranks("fedsim.launch", words(file, changes, folder, resume, trust), ranks, show)
    if code == 2:
        raise mistake(errors.replace(str(file), "config") if isinstance(config, Mapping) else errors)
    if code != 0:
        raise RuntimeError(f"a rank has failed\n{errors}")
    if errors:
        print(errors, end="", file=sys.stderr)
    return Run(folder, trust=trust)


def _as_json(config: Mapping[str, Any]) -> str:
    """JSON is YAML, and has no aliases for what stands at two places."""
    try:
        return json.dumps(dict(config), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise UserError("config", str(error), "texts, numbers, lists and dictionaries of them") from None


def words(file: Path, changes: Sequence[str], out: Path | None, resume: bool, trust: bool) -> list[str]:
    """The command line of ``launch.py run``, without ``--ranks``."""
    options = ["--out", str(out)] if out is not None else []
    options += [option for option, is_set in (("--resume", resume), ("--trust", trust)) if is_set]
    return ["run", *options, "--", str(file), *changes]


def mistake(errors: str) -> UserError:
    """The UserError that a rank has told in one line."""
    line = next((line for line in errors.splitlines() if line.startswith(ERROR)), errors.strip())
    where, _, rest = line.removeprefix(ERROR).partition(": found ")
    found, _, expected = rest.rpartition("; expected ")
    return UserError(where, found, expected)


def load(run: str | Path, *, trust: bool = False) -> Run:
    """Return the run in a folder. ``trust``: whether code is imported that the folder names by its import path.

    UserError where there is no run.
    """
    if not (Path(run) / "config.yaml").is_file():
        raise UserError(str(run), "no config.yaml", "the folder of a run")
    return Run(Path(run), trust=trust)


def evaluate(
    run: Run | str | Path, checkpoint: Literal["best", "last"] = "best", *, trust: bool = False
) -> dict[str, dict[str, float]]:
    """Measure a run's saved model anew, in this process: ``{"val": {metric: value}, "test": ...}``."""
    if checkpoint not in ("best", "last"):
        raise UserError("checkpoint", repr(checkpoint), "'best' or 'last'")
    from fedsim.measure.scores import evaluate as measure
    from fedsim.runfolder.saved import open_saved

    opened = run if isinstance(run, Run) else load(run, trust=trust)
    with open_saved(opened.folder, checkpoint, opened._trust) as saved:
        return measure(saved.sim, saved.params)
