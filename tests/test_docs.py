"""What the documents show is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vispco.config import SearchConfig, Study, load_study, parse_study
from vispco.problem import Problem
from vispco.pruning.methods import METHODS
from vispco.search import SEARCHES
from vispco.search.runner import validate

ROOT = Path(__file__).parent.parent


def blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), flags=re.DOTALL)


def test_readmes_python_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = blocks("README.md", "python")
    small = code.replace(
        'from_yaml("studies/quickstart.yaml")', 'from_yaml("studies/quickstart.yaml", ["tasks.0.splits.search=8"])'
    )
    assert small != code
    exec(compile(small, "README.md", "exec"), {})
    question, accuracy = capsys.readouterr().out.strip().splitlines()
    assert "?" in question
    assert 0 <= float(accuracy) <= 1


def test_readme_names_what_there_is() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in [*METHODS, *SEARCHES]:
        assert f"`{name}`" in readme
    for linked in re.findall(r"\]\((?!http)([^)#]+)", readme):
        assert (ROOT / linked).exists(), linked


def test_study_document_shows_a_valid_study() -> None:
    (text,) = blocks("docs/studies.md", "yaml")
    problem = Problem(parse_study(text), text)
    validate(problem)
    shown = set(re.findall(r"^(\w+):", text, flags=re.MULTILINE))
    assert shown == set(Study.model_fields)
    page = (ROOT / "docs/studies.md").read_text()
    for name in SEARCHES:
        assert f"`{name}`" in page
        for option in SEARCHES[name].Options.model_fields:
            assert f"`{option}" in page, (name, option)
    assert "seeds" in SearchConfig.model_fields


@pytest.mark.parametrize("file", sorted((ROOT / "studies").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_study_is_valid(file: Path) -> None:
    study, text = load_study(file)
    validate(Problem(study, text))
    assert study.purpose
