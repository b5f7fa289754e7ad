"""A folder of clinical files to a set: pictures or volumes, and a manifest that ``data.name: table`` reads.

In the set lie ``images/``, ``manifest.csv``, ``import.json`` (how it was made), ``journal.jsonl`` (what is done), and
``bad_files.csv`` where files could not be read.
"""

import codecs
import csv
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from fedsim.data.clinic.convert import Pseudonyms, reader_of
from fedsim.data.clinic.journal import Journal, stamp_of
from fedsim.data.clinic.labels import read_labels
from fedsim.data.clinic.manifest import Known, Written, write_manifest
from fedsim.data.clinic.render import Settings
from fedsim.data.clinic.workers import Bad, converted
from fedsim.data.folders import walked
from fedsim.errors import UserError, reading
from fedsim.machine.files import parse_json, replacing, write_json

MIN_SALT = 16
IMAGES, MANIFEST, BAD_FILES, SETTINGS = "images", "manifest.csv", "bad_files.csv", "import.json"
BAD_SHOWN = 5
SECONDS_BETWEEN_LINES = 5.0
Say = Callable[[str], object]


@dataclass(frozen=True)
class Order:
    """What to import from where to where. ``salt``: a file with the secret of the pseudonyms, made where it is not."""

    folder: Path
    out: Path
    settings: Settings
    labels: Path | None = None
    salt: Path | None = None
    processes: int = 1
    skip_bad: bool = False

    @property
    def salt_file(self) -> Path:
        """Beside the set and not in it, since who has both can try out which patient is which."""
        return self.salt or self.out.with_name(f"{self.out.name}.salt")


def import_folder(order: Order, say: Say) -> str:
    """Do what is not done yet, write the manifest, and return a line about it.

    UserError for a set that was made otherwise, for a place that cannot be written, and, unless they are to be skipped,
    for files that cannot be read; all others are done by then. Several processes make the same bytes as one.
    """
    sources, num_others = _sources(order)
    known = None if order.labels is None else read_labels(order.labels, sources)
    chosen = [source for source in sources if known is None or source in known]
    if not chosen:
        raise UserError(str(order.folder), "no file that can be imported", "DICOM, NIfTI, PNG, TIFF, JPEG, BMP or WebP")
    try:
        pseudonyms = Pseudonyms(_salt(order))
        _begin(order, pseudonyms)
        bad, written = _fill(order, chosen, known, pseudonyms, say)
    except OSError as error:
        expected = "a folder with room to write; the same command goes on"
        raise UserError(str(error.filename or order.out), error.strerror or str(error), expected) from error
    notes = [f"{written.num_rows:,} rows of {written.num_files:,} files in {order.out / MANIFEST}"]
    if bad:
        notes.append(f"{len(bad):,} files skipped, in {order.out / BAD_FILES}")
    if num_passed := num_others + len(sources) - len(bad) - written.num_files:
        notes.append(f"{num_passed:,} passed over: no pictures" + ("" if known is None else ", or not in the table"))
    if written.num_named:
        notes.append(f"{written.num_named:,} say that names are burned into their pixels")
    return "; ".join(notes)


def _fill(
    order: Order, chosen: Sequence[str], known: Known | None, pseudonyms: Pseudonyms, say: Say
) -> tuple[list[Bad], Written]:
    """Make pictures and manifest; return the files that are left out, and what the manifest has."""
    journal = Journal(order.out)
    try:
        for half_written in (order.out / IMAGES).rglob(".*.tmp"):  # when a process was ended
            half_written.unlink(missing_ok=True)
        bad = _work(order, chosen, pseudonyms, journal, say)
        _write_bad(order, bad)
        if bad and not order.skip_bad:
            raise _refusal(order, bad, len(chosen))
        left_out = {one.source for one in bad}
        good = [source for source in chosen if source not in left_out]
        return bad, write_manifest(order.out / MANIFEST, journal, good, known, pseudonyms)
    finally:
        journal.close()


def _sources(order: Order) -> tuple[list[str], int]:
    """Return the files that a reader takes, by their paths below the folder in order, and how many others there are."""
    if not order.folder.is_dir():
        raise UserError(str(order.folder), "no folder", "a folder of DICOM, NIfTI, PNG or TIFF files")
    if order.out.resolve().is_relative_to(order.folder.resolve()):
        raise UserError(f"--out {order.out}", f"a place in {order.folder}", "one beside it")
    found, num_others = [], 0
    for path in walked(order.folder):
        if not path.is_file():
            continue
        if reader_of(path) is None:
            num_others += 1
        else:
            found.append(path.relative_to(order.folder).as_posix())
    return sorted(found), num_others


def _salt(order: Order) -> bytes:
    """Return the secret of the pseudonyms; where there is none, make one that its owner alone can read."""
    path = order.salt_file
    expected = "the file with the secret of this set's pseudonyms; --salt names it"
    if not path.exists():
        if (order.out / SETTINGS).exists():
            raise UserError(str(path), "no such file", expected)
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:  # mode 600
            file.write(secrets.token_hex(32) + "\n")
        Path(file.name).rename(path)
    with reading(str(path), expected):
        salt = path.read_text().strip()
        if len(salt) < MIN_SALT:
            raise UserError(str(path), f"{len(salt)} characters", f"{MIN_SALT} at least")
    return salt.encode()


def _begin(order: Order, pseudonyms: Pseudonyms) -> None:
    """Make the set's folder, or see that the one there was made with these settings and this salt."""
    settings = {**asdict(order.settings), "salt": pseudonyms("salt", "of this set")}
    path = order.out / SETTINGS
    if path.is_file():
        with reading(str(path), "the settings of an import"):
            found = parse_json(path.read_text())
            other = next((name for name in settings if found[name] != settings[name]), None)
        if other is not None:
            shown = "another salt" if other == "salt" else f"--{other} {found[other]}"
            expected = "the same salt" if other == "salt" else f"--{other} {settings[other]} in another --out"
            raise UserError(str(order.out), f"a set that was made with {shown}", expected)
    else:
        if order.out.exists() and (not order.out.is_dir() or any(order.out.iterdir())):
            raise UserError(f"--out {order.out}", "something else than a set that was imported", "a new folder")
        order.out.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)


def _work(order: Order, chosen: Sequence[str], pseudonyms: Pseudonyms, journal: Journal, say: Say) -> list[Bad]:
    """Import what is not done yet; return the files that cannot be read."""
    left = [one for one in chosen if not journal.is_done(one, stamp_of(order.folder / one))]
    if len(left) < len(chosen):
        say(f"{len(chosen) - len(left):,} of {len(chosen):,} files are done already")
    bad: list[Bad] = []
    begin = told = 0.0
    for number, done in enumerate(
        converted(order.folder, order.out / IMAGES, left, order.settings, pseudonyms, order.processes), 1
    ):
        if isinstance(done, Bad):
            bad.append(done)
        else:
            journal.add(done.source, done.stamp, done.rows)
        now = time.monotonic()
        if number == 1:  # until then processes have begun
            begin = told = now
        if now - told >= SECONDS_BETWEEN_LINES:
            journal.flush()
            rate = (number - 1) / (now - begin)
            seconds = (len(left) - number) / rate
            say(f"{number:,} of {len(left):,} files, {rate:.0f} a second, {seconds:.0f} s left, {len(bad):,} bad")
            told = now
    journal.flush()
    return bad


def _write_bad(order: Order, bad: Sequence[Bad]) -> None:
    """Write the list of the files that cannot be read, or remove an earlier one."""
    path = order.out / BAD_FILES
    if not bad:
        path.unlink(missing_ok=True)
        return
    with replacing(path, durable=True) as file:
        writer = csv.writer(codecs.getwriter("utf-8")(file), lineterminator="\n")
        writer.writerow(Bad._fields)
        writer.writerows(bad)


def _refusal(order: Order, bad: Sequence[Bad], num_files: int) -> UserError:
    shown = [f"{one.source}: {one.found}" for one in bad[:BAD_SHOWN]]
    more = [f"and {len(bad) - BAD_SHOWN:,} more"] if len(bad) > BAD_SHOWN else []
    expected = "; ".join(dict.fromkeys(one.expected for one in bad[:BAD_SHOWN]))
    where = f"{len(bad):,} of {num_files:,} files, all in {order.out / BAD_FILES}"
    return UserError(where, "; ".join([*shown, *more]), f"{expected}; or --skip-bad")
