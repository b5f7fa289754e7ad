"""The section of a config about what the columns of a table are called."""

from typing import Self

from pydantic import Field, model_validator

from fedsim.config.base import Text, Words
from fedsim.config.mistakes import KeyedError, refuse_idle

OF_TEXTS = ("text", "second", "score")
OF_IMAGES = ("path", "patient", "client")


class ColumnsConfig(Words):
    """What the columns of tables are called: of texts, and of images."""

    path: Text = Field(
        default="path",
        description="table: the image's file, relative to root, or its name alone.",
    )
    text: Text = Field(default="text", description="text_files: the text.")
    second: Text | None = Field(default=None, description="text_files: the second text, where a row is a pair.")
    label: Text | None = Field(default=None, description="The class; this or score.")
    score: Text | None = Field(default=None, description="text_files: the number to be told; this or label.")
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
        if (self.label is None) == (self.score is None):
            raise KeyedError("label", f"label: {self.label} and score: {self.score}", "one of them; the other null")
        return self

    def check_kind(self, *, texts: bool, name: str) -> None:
        """Raise KeyedError for a column that a table of texts, or one of images, has no use for."""
        kind = "texts" if texts else "images"
        refuse_idle(self, OF_IMAGES if texts else OF_TEXTS, f"name: {name}, a table of {kind}", "columns.")
