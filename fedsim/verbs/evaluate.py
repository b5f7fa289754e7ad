"""``launch.py evaluate``: a run's saved model, measured anew, with all that a paper asks for."""

from pathlib import Path

from rich.table import Table

from fedsim.comm.group import open_group
from fedsim.machine.files import naming_files
from fedsim.measure.cross_site import cross_site
from fedsim.measure.report import outside_set, own_sets, whole_report
from fedsim.runfolder.evaluation import shown, write_evaluation
from fedsim.runfolder.saved import saved_model
from fedsim.runfolder.trust import load_outside_data, load_recorded


def evaluate_run(
    run_dir: Path,
    which: str,
    trust: bool = False,
    data: Path | None = None,
    out: Path | None = None,
    crosses: bool = False,
) -> list[Table | str]:
    """Measure a run's best or last saved state, write the report, and return what is shown of it, on the server.

    Of the run's own files it only reads, so the run may be at work. ``data``: a YAML file whose section data is the set
    to measure on, in place of the run's validation and test images. ``out``: the folder of the report; null:
    evaluation/WHICH in the run's, or evaluation/WHICH-NAME with NAME that of the file. ``crosses``: whether each
    client's own model is measured at every site. ``trust``: whether code that the folder names by its import path is
    imported; UserError without.
    """
    config = load_recorded(run_dir / "config.yaml", trust=trust)
    words = None if data is None else load_outside_data(data, config.data, run_dir, trust=trust)
    name = which if data is None else f"{which}-{data.stem}"
    out = out or run_dir / "evaluation" / name
    with open_group() as group, naming_files(run_dir), naming_files(out):
        saved = saved_model(run_dir, config, which, group)
        sim, state, params = saved.sim, saved.state, saved.params
        outside = None if data is None or words is None else outside_set(sim, words, str(data))
        crossed = cross_site(sim, state, params, outside or own_sets(sim)[-1]) if crosses else None
        report = whole_report(sim, params, outside)
        if not group.is_server:
            return []
        about = {"run": config.name, "checkpoint": which, "round": state.round}
        report = about | report | ({} if crossed is None else {"cross_site": crossed})
        files = write_evaluation(out, report)
    remark = [outside.remark] if outside is not None else []
    title = f"{run_dir}, {which} checkpoint, round {state.round}"
    return [*shown(report, title), *remark, f"{out}: {files[0]} and {len(files) - 1} other files"]
