"""The section of a config about what the columns of a table are called."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedsim.config.base import Text, Words
from fedsim.config.mistakes import KeyedError, refuse_idle, show

OF_TEXTS = ("text", "second", "score")
OF_IMAGES = ("path", "findings", "listed", "unsure", "blank", "graded", "patient", "client")
TARGETS = ("label", "score", "findings", "listed")


class ColumnsConfig(Words):
    """What the columns of tables are called: of texts, and of images."""

    path: Text = Field(
        default="path",
        description="table: the image's file, relative to root, or its name alone.",
    )
    text: Text = Field(default="text", description="text_files: the text.")
    second: Text | None = Field(default=None, description="text_files: the second text, where a row is a pair.")
    label: Text | None = Field(default=None, description="The class.")
    score: Text | None = Field(default=None, description="text_files, in place of label: the number to be told.")
    findings: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None, description="table, in place of label: columns of findings, 1, 0, -1 for unsure, or empty."
    )
    listed: Text | None = Field(default=None, description="table, in place of label: findings with | between them.")
    unsure: Literal["ignored", "positive", "negative"] = Field(default="ignored", description="What -1 counts as.")
    blank: Literal["ignored", "negative"] = Field(default="ignored", description="What an empty finding counts as.")
    graded: bool = Field(
        default=False,
        description="table: whether labels are grades: whole numbers from the lowest up, or data.classes in its order.",
    )
    site: Text | None = Field(default=None, description="Where the row comes from, such as a hospital.")
    patient: Text | None = Field(
        default=None,
        description="table: what belongs together: patient, lesion, slide. An empty cell is one by itself.",
    )
    client: Text | None = Field(default=None, description="table: whose the row is, for the partition column.")
    split: Text | None = Field(
        default=None,
        description="train, validation or test; null: it is drawn, or the names of text_files say it.",
    )

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [key for key in TARGETS if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or f"none of {', '.join(TARGETS)}"
            raise KeyedError("label", found, f"one of {', '.join(TARGETS)}; the others null")
        if self.label is None:
            refuse_idle(self, ["graded"], f"{given[0]} in place of label")
        if self.findings is None:
            refuse_idle(self, ["unsure", "blank"], f"{given[0]} in place of findings")
        elif len(set(self.findings)) < len(self.findings):
            raise KeyedError("findings", show(list(self.findings)), "each once")
        return self

    @property
    def of_table(self) -> list[str]:
        """The columns that a table of images needs."""
        single = (self.path, self.label, self.listed, self.site, self.patient, self.client, self.split)
        return [name for name in (*single, *(self.findings or ())) if name is not None]

    def check_kind(self, *, texts: bool, name: str) -> None:
        """Raise KeyedError for a column that a table of texts, or one of images, has no use for."""
        kind = "texts" if texts else "images"
        refuse_idle(self, OF_IMAGES if texts else OF_TEXTS, f"name: {name}, a table of {kind}", "columns.")
