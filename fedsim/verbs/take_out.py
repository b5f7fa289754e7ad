"""The verbs of the command line that take a trained model out of its run; ``launch.py`` adds them to the others."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedsim.machine.output import show_rows
from fedsim.verbs.command_line import IS_FIRST_RANK, RunDir, Saved, Trust

Images = Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files, and folders of them.")]
Table = Annotated[
    Path | None, typer.Option("--out", help="CSV file in place of standard output; with masks a folder, for them too.")
]
Form = Annotated[
    Literal["adapter", "weights", "onnx", "monai"],
    typer.Option("--format", help="LoRA for peft, the library's own network, ONNX, or a bundle of MONAI's."),
]
Folder = Annotated[Path | None, typer.Option("--out", help="New folder; RUN_DIR/export/FORMAT if not given.")]


def predict(
    run_dir: RunDir, images: Images, out: Table = None, checkpoint: Saved = "best", trust: Trust = False
) -> None:
    """Predict image files with a run's saved model."""
    from fedsim.verbs.predict import predict as predict_files

    predict_files(run_dir, images, checkpoint, out, trust)


def export(run_dir: RunDir, form: Form, out: Folder = None, checkpoint: Saved = "best", trust: Trust = False) -> None:
    """Write a run's saved model for programs without fedsim, with a model card."""
    from fedsim.verbs.taken_out.export import export_run

    folder, difference = export_run(run_dir, form, checkpoint, out, trust)
    if IS_FIRST_RANK:
        found = "not compared" if difference is None else f"differ from the run's by at most {difference:.1e}"
        show_rows([("folder", str(folder)), ("scores", found)])
