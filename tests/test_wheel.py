"""The wheel owns one import name and works without development extras."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_every_package_is_named_in_the_build() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    here = {".".join(file.relative_to(ROOT).parent.parts) for file in (ROOT / "vispco").rglob("__init__.py")}
    assert here <= set(listed)


def test_wheel_owns_one_name_and_carries_the_demo(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"vispco"}
    for needed in (
        "vispco/models/demo/llava/model.safetensors",
        "vispco/models/demo/llava/training.json",
        "vispco/models/demo/deep/model.safetensors",
        "vispco/models/demo/qwen/model.safetensors",
        "vispco/models/demo/qwen/chat_template.jinja",
        "vispco/models/smol/weights.safetensors",
        "vispco/studies/quickstart.yaml",
        "vispco/dashboards/report.css",
        "vispco/dashboards/report.js",
        "vispco/py.typed",
    ):
        assert needed in names
    assert not [
        name
        for name in names
        if name.startswith("vispco/models/demo/") and "train" in name.split("/")[-1] and name.endswith(".py")
    ]


@pytest.mark.slow
def test_installed_alone_the_command_line_works(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    binaries = tmp_path / "env" / "bin"
    pip = [binaries / "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
    for what in ("torch", wheel):
        done = subprocess.run([*pip, what], capture_output=True, text=True, check=False, cwd=tmp_path)
        if done.returncode != 0 and "No matching distribution" in done.stderr:
            pytest.skip(f"no package index to install from: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    absent = "import importlib.util as u; assert not any(map(u.find_spec, ['pytest', 'hypothesis', 'mypy']))"
    subprocess.run([binaries / "python", "-c", absent], check=True, cwd=tmp_path)
    study = subprocess.run(
        [binaries / "python", "-c", "import vispco.studies as s; print(s.__path__[0])"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    ).stdout.strip()
    sizes = [f"tasks.0.splits.{split}=4" for split in ("search", "held_out", "calibration")]
    sets = [part for item in (*sizes, "budgets=1") for part in ("--set", item)]
    run = [binaries / "vispco", "run", f"{study}/quickstart.yaml", "--search", "lagrangian", *sets]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "quickstart: 1 new trials" in done.stderr
    report = subprocess.run([binaries / "vispco", "report", "quickstart"], capture_output=True, text=True, cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert Path(report.stdout.strip()).stat().st_size > 1_000_000
