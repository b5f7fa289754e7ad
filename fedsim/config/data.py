"""The sections of a config about the images and the clients that hold them."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fedsim.catalogue.data import DATA, DataRow, data_row
from fedsim.config.base import Count, Seed, Share, Text, Words
from fedsim.config.columns import ColumnsConfig
from fedsim.config.flower import ours, with_their_names
from fedsim.config.mistakes import KeyedError, nearest, refuse_idle, show
from fedsim.config.partitions import DirichletPartition, PartitionConfig

Augmentation = Literal[
    "flip", "rotate90", "crop", "color", "vertical_flip", "brightness", "blur_or_noise", "shift_scale_rotate"
]
NUMBER = r"[-+]?[0-9]+(\.[0-9]*)?"
WINDOW = re.compile(f"{NUMBER}/{NUMBER}|{NUMBER}%-{NUMBER}%")


class FractionsConfig(Words):
    """Shares of the images set aside, used where a data set has no split of its own."""

    val: Share = Field(default=0.15, description="Share of the images (whole groups) for validation.")
    test: Share = Field(default=0.2, description="Share of the images (whole groups) for the test.")

    @model_validator(mode="after")
    def _leaves_training_images(self) -> Self:
        if self.val + self.test >= 1:
            raise KeyedError("val", f"val + test = {self.val + self.test:g}", "a sum below 1")
        return self


def has_volumes(name: object) -> bool:
    """Whether a set of that name has volumes and nothing else."""
    row = data_row(name) if isinstance(name, str) else None
    return row is not None and row.volumes == "needed"


class DataConfig(Words):
    """The images or texts and how they are split and prepared."""

    name: Text = Field(description="One of: " + ", ".join(DATA) + ", or package.module.function of your own.")
    root: Text | None = Field(default=None, description="Folder that holds the data set, where it is not packaged.")
    file: Text | dict[Literal["train", "val", "test"], Text] | None = Field(
        default=None,
        description="table: the table in root, .csv, .tsv or .parquet; or one for each split, {train: ..., val: ..., "
        "test: ...}.",
    )
    image_size: Annotated[int, Field(ge=8, le=1024)] = Field(
        default=28, description="Side of the square images, in pixels."
    )
    fit: Literal["stretch", "crop", "pad"] = Field(
        default="stretch",
        description="How images in files of your own become square: stretched, cropped to their middle, or padded with "
        "black.",
    )
    window: Text | None = Field(
        default=None,
        description="Black and white of grey values of more than 8 bits in files of your own: CENTRE/WIDTH, or "
        "LOW%-HIGH% of each picture; null: they are refused.",
    )
    slices: Count | None = Field(
        default_factory=lambda seen: 8 if has_volumes(seen.get("name")) else None,
        description="Slices of a volume, evenly spaced. Default: 8 for the medmnist: sets in 3D, else null. With a "
        "number the files of a table are volumes, .npy.",
    )
    max_tokens: Count | None = Field(
        default=None, description="Tokens of a text at most, longer ones are cut; null: as many as the model takes."
    )
    columns: ColumnsConfig | None = Field(default=None, description="Names of the columns of table and text_files.")
    classes: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None,
        description="table, image_folder: the classes in this order, also such as no image has; null: train's.",
    )
    patient: Text | None = Field(
        default=None,
        description="Regular expression on files' paths below root: its first group, or all that it finds, names the "
        "patient, lesion or slide.",
    )
    augment: Annotated[tuple[Augmentation, ...], Field(strict=False)] = Field(
        default=(), description="Augmentations of training images, in this order."
    )
    fractions: FractionsConfig = Field(
        default=FractionsConfig(), description="Shares set aside where the data set has no split of its own."
    )
    split: Literal["released", "by_lesion"] | None = Field(
        default=None,
        description="dermoscopic_clients only: released (null is the same), which has lesions in several parts; or "
        "by_lesion: whole lesions, divided by split_seed into parts of the released sizes.",
    )
    external_sites: Annotated[tuple[Text, ...], Field(strict=False)] = Field(
        default=(),
        description="Sites that nobody trains on: their images are the test, and no other site's.",
    )
    split_seed: Seed = Field(
        default=0, description="Seed of the split and of max_train; independent of the run's seed."
    )
    max_train: Count | None = Field(
        default=None, description="At most this many training images (whole groups); null: all."
    )
    truncate_to_smallest: bool = Field(
        default=False,
        description="Every site keeps as many training images as the smallest has; with the sites partition only.",
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        row = data_row(self.name)
        if row is None:
            raise KeyedError("name", repr(self.name), nearest(self.name, DATA))
        if row.root == "needed" and self.root is None:
            raise KeyedError("root", f"null with name: {self.name}", "the folder of the images or tables")
        if row.volumes == ("needed" if self.slices is None else "none"):
            found = "null" if self.slices is None else str(self.slices)
            expected = "a number of slices" if row.volumes == "needed" else "null: only volumes have slices"
            raise KeyedError("slices", f"{found} with name: {self.name}", expected)
        self._check_files(row)
        if row.root == "none" and self.root is not None:
            raise KeyedError("root", f"{show(self.root)} with name: {self.name}", "null: the set is packaged")
        if row.texts is not None:
            self.check_kind(texts=row.texts)
        if not row.lesions and self.split is not None:
            takes = " or ".join(other.name for other in DATA.values() if other.lesions)
            raise KeyedError("split", f"{self.split} with name: {self.name}", f"null: only {takes} tells lesions")
        for key in ("augment", "external_sites", "classes"):
            words = getattr(self, key) or ()
            if len(set(words)) < len(words):
                raise KeyedError(key, f"{list(words)}", "each once")
        return self

    def _check_files(self, row: DataRow) -> None:
        """Raise KeyedError for keys about files and their table that the set has no use for, or lacks."""
        for key, is_taken in (("columns", row.columns), ("file", row.file)):
            is_given = getattr(self, key) is not None
            if is_taken != is_given:
                given = key if is_given else f"no {key}"
                takes = " or ".join(other.name for other in DATA.values() if getattr(other, key))
                raise KeyedError(key, f"{given} with name: {self.name}", f"{key} with name: {takes}, and only there")
        if not row.classes:
            refuse_idle(self, ["classes"], f"name: {self.name}, which brings its classes")
        elif self.columns is not None and self.columns.findings is not None:
            refuse_idle(self, ["classes"], "columns.findings, which names them")
        if isinstance(self.file, dict):
            if "train" not in self.file or len(set(self.file.values())) < len(self.file):
                raise KeyedError("file", show(self.file), "a table for train, and others for val and test")
            if self.columns is not None and self.columns.split is not None:
                raise KeyedError("columns.split", f"{self.columns.split} with tables for the splits", "one of them")
        if not row.own_files:
            idle = ["fit", "patient", *([] if row.window else ["window"])]
            refuse_idle(self, idle, f"name: {self.name}, which is not read from image files of yours")
        if self.slices is not None:
            refuse_idle(self, ["window"], "slices: volumes have their grey levels already")
        if self.window is not None and not WINDOW.fullmatch(self.window):
            raise KeyedError("window", show(self.window), "CENTRE/WIDTH or LOW%-HIGH%, such as 40/400 or 1%-99%")
        if self.columns is not None and self.columns.patient is not None and self.patient is not None:
            raise KeyedError("patient", f"{show(self.patient)} with columns.patient", "one of them")
        if self.patient is not None:
            try:
                re.compile(self.patient)
            except re.error as error:
                raise KeyedError("patient", f"{show(self.patient)} ({error})", "a regular expression") from None

    @property
    def folder(self) -> Path:
        """``root`` of a set that needs one."""
        assert self.root is not None, "the row of such a set says so"
        return Path(self.root).expanduser()

    def check_kind(self, *, texts: bool) -> None:
        """Raise KeyedError for a key that a set of texts, or one of images, has no use for."""
        if self.columns is not None:
            self.columns.check_kind(texts=texts, name=self.name)
        if texts:
            refuse_idle(self, ["image_size"], f"name: {self.name}, which has no images")
        if not texts and self.max_tokens is not None:
            raise KeyedError("max_tokens", f"{self.max_tokens} with name: {self.name}", "null: only texts have tokens")
        if texts and self.augment:
            raise KeyedError(
                "augment", f"{list(self.augment)} with name: {self.name}", "none: only images are augmented"
            )


class ClientsConfig(Words):
    """How many clients there are, who takes part in a round, and what each of them holds."""

    count: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="Number of clients.")
    per_round: Literal["all"] | Count | Share = Field(
        default="all", description="Clients per round: all, a number, or a fraction below 1."
    )
    sampling: Literal["uniform", "poisson", "volume", "multinomial"] = Field(
        default="uniform",
        description="Who takes part: all alike; poisson: each by a coin of its own, so that a round has per_round "
        "clients on average; volume: in proportion to the number of images; multinomial: the same with "
        "replacement, a client drawn twice counts twice (FedProx, MLSys 2020). Of volume's cohorts of several clients "
        "a large one is in less often than its images are worth, so only multinomial's mean weight is exactly that.",
    )
    weighting: Literal["samples", "uniform"] = Field(
        default_factory=lambda seen: (
            "samples" if seen.get("sampling", "uniform") in ("uniform", "poisson") else "uniform"
        ),
        description="Weight of a client's update: its number of images, or all alike. Default: samples; uniform where "
        "sampling goes by the number of images already.",
    )
    min_samples: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="Clients with fewer training images are left out, such as those too small for BatchNorm.",
    )
    max_diverged: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Largest share of a round's clients that may be left out of a phase of it since their training "
        "diverged: a parameter is not finite, or has changed by more than 2^21. With more the run ends. 0: at the "
        "first.",
    )
    per_block: Literal["auto"] | Count = Field(default="auto", description="Clients trained together as one batch.")
    partition: PartitionConfig = Field(
        description="How the training images are divided among the clients.", json_schema_extra=with_their_names
    )

    @model_validator(mode="before")
    @classmethod
    def _by_flowers_names(cls, words: Any) -> Any:
        has_one = isinstance(words, dict) and "partition" in words
        return {**words, "partition": ours(words["partition"])} if has_one else words

    @model_validator(mode="after")
    def _enough_clients(self) -> Self:
        if isinstance(self.per_round, int) and self.per_round > self.count:
            raise KeyedError("per_round", str(self.per_round), f"at most clients.count = {self.count}")
        if self.sampling in ("volume", "multinomial") and self.weighting == "samples":
            found = f"samples with sampling: {self.sampling}, which counts a client's images twice"
            raise KeyedError("weighting", found, "uniform")
        if self.sampling in ("volume", "poisson") and self.num_per_round == self.count:
            found = f"{self.sampling} with per_round: {self.per_round}"
            raise KeyedError("sampling", found, "fewer clients than all per round")
        fewest = self.partition.min_size if isinstance(self.partition, DirichletPartition) else 0
        if self.min_samples is not None and self.min_samples <= fewest:
            raise KeyedError("min_samples", str(self.min_samples), f"null, or more than partition.min_size = {fewest}")
        return self

    @property
    def num_per_round(self) -> int:
        """How many clients a round draws, where so many have images."""
        if self.per_round == "all":
            return self.count
        return max(1, round(self.per_round * self.count)) if isinstance(self.per_round, float) else self.per_round
