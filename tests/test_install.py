"""The built wheel: what is in it, and that it works without the repository, from a folder that knows nothing of it."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from diffbody.cli.console import EXTRAS
from diffbody_ref.ops.images import read_image

ROOT = Path(__file__).parents[1]
PACKAGES = ("diffbody", "diffbody_ref", "export", "runtime", "triton_models")
OTHERS = ("benchmarks", "tests")  # which a checkout has beside the packages
# What the source distribution holds besides.
BESIDE = (".ci", ".github", "deploy", "docs", "samples")
FILES = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "constraints.txt")
TYPED = ("diffbody", "diffbody_ref", "export", "runtime")

# What installed files are: not those of the checkout.
WHERE = f"""
import importlib, sys
from pathlib import Path
for name in {PACKAGES!r}:
    module = importlib.import_module(name)
    for path in map(Path, module.__path__):
        assert path.is_relative_to(sys.prefix), path
"""


# What Windows or macOS lack of the standard library; pwd, grp and termios are on macOS, but not on Windows.
UNIX_ONLY = ("fcntl", "grp", "ossaudiodev", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty")
ELSEWHERE = f"""
import importlib, pkgutil, sys
hidden = {UNIX_ONLY!r}
for name in hidden:
    sys.modules.pop(name, None)
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
import diffbody, runtime, runtime.triton.client
for package in (diffbody, runtime):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        # The server stays on Linux.
        if not module.name.startswith(("runtime.triton.", "diffbody.__main__")):
            importlib.import_module(module.name)
from diffbody.cli import main
main(sys.argv[1:])
"""


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the wheel in it.

    Attributes:
        wheel: the file that was installed.
        programs: the environment's folder of programs.
        folder: an empty folder, from which they are run.
    """

    wheel: Path
    programs: Path
    folder: Path

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run a program of the environment, and return what it prints to stdout."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(self.programs / program), *map(str, arguments)]
        ended = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=1800, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel, built of the sources as they are and installed where else only other people's packages are."""
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"
    for name in (*PACKAGES, *OTHERS):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps"]
    run = lambda *command: subprocess.run(command, check=True, cwd=folder, timeout=600)  # noqa: E731
    run(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", "venv")
    programs = folder / "venv" / "bin"
    run(*pip, "--python", str(programs / "python"), "install", *offline, str(wheel))
    # Paths in a .pth file do not bring the .pth files there into effect, such as that of an editable installation.
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    others = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (site / "others.pth").write_text("\n".join(others) + "\n")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return Installation(wheel, programs, elsewhere)


def test_the_wheel_restores_without_the_repository(installation: Installation) -> None:
    names = zipfile.ZipFile(installation.wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert {f"{name}/py.typed" for name in TYPED} <= set(names)
    for name in PACKAGES:
        for path in (ROOT / name).rglob("*"):
            hidden = path.name.startswith(".") or "__pycache__" in path.parts
            assert hidden or path.is_dir() or str(path.relative_to(ROOT)) in names, path

    installation.run("python", "-c", WHERE)
    assert "Input and output" in installation.run("diffbody", "restore", "--help")

    shutil.copy(ROOT / "samples" / "degraded" / "synthetic_1.jpg", installation.folder / "photo.jpg")
    assert installation.run("diffbody", "restore", "photo.jpg", "--steps", "2") == "photo.restored.png\n"
    script = "import diffbody; diffbody.restore('photo.jpg', num_inference_steps=2).save('again.png')"
    installation.run("python", "-c", script)
    first, again = (read_image(installation.folder / name).pixels for name in ("photo.restored.png", "again.png"))
    np.testing.assert_array_equal(first, again)

    installation.run("diffbody", "triton-repo", "-o", "models")
    assert (installation.folder / "models" / "sampler" / "1" / "model.py").is_file()


def test_restoring_needs_nothing_that_other_systems_lack(installation: Installation) -> None:
    folder = installation.folder / "album"
    folder.mkdir()
    for name in ("synthetic_1.jpg", "synthetic_2.jpg"):
        shutil.copy(ROOT / "samples" / "degraded" / name, folder / name)
    arguments = ("restore", "album", "-o", "restored", "--steps", "2", "--compare")
    told = installation.run("python", "-c", ELSEWHERE, *arguments)
    assert told.splitlines()[-1] == "restored 2, failed 0"
    assert "skipped 2" in installation.run("python", "-c", ELSEWHERE, *arguments)


def test_a_plain_install_brings_what_restoring_needs(installation: Installation) -> None:
    wheel = zipfile.ZipFile(installation.wheel)
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    requirements = metadata.get_all("Requires-Dist", [])
    plain = {re.split(r"[^\w-]", line)[0] for line in requirements if "extra ==" not in line}
    assert {"numpy", "onnxruntime", "pillow", "tokenizers"} <= plain
    assert "torch" not in plain
    assert any(line.startswith("numpy<2") and 'extra == "serve"' in line for line in requirements)
    extras = set(metadata.get_all("Provides-Extra", []))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [extra for extra in extras if extra != "dev" and f"`{extra}`" not in readme] == []
    # Every extra that a message or a page names is there.
    assert set(EXTRAS.values()) <= extras
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "Makefile", *(ROOT / "deploy").iterdir()):
        if page.is_file():
            named = re.findall(r'"\.\[([a-z,]+)\]"|EXTRAS[=:] ?([a-z,]+)', page.read_text(encoding="utf-8"))
            assert {extra for pair in named for each in pair for extra in each.split(",") if extra} <= extras, page


def test_the_source_distribution_holds_what_a_checkout_has(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in (*PACKAGES, *OTHERS, *BESIDE):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*FILES, "pyproject.toml", ".gitignore", ".pre-commit-config.yaml"):
        shutil.copy(ROOT / file, source / file)
    there = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=600)
    (made,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(made) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert there <= held


@pytest.mark.slow
def test_the_wheel_exports_without_the_repository(installation: Installation) -> None:
    assert installation.run("diffbody", "export", "-o", "bundle") == "exported bundle\n"
    assert (installation.folder / "bundle" / "parity.md").is_file()
    shutil.copy(ROOT / "samples" / "degraded" / "synthetic_1.jpg", installation.folder / "picture.jpg")
    installation.run("diffbody", "restore", "picture.jpg", "--bundle", "bundle", "--steps", "2")
    assert (installation.folder / "picture.restored.png").is_file()
