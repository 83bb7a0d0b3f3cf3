"""Everything that ships has a licence that lets it ship."""

import re
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vaopd"

OTHERS = {"report/templates/uplot": "uPlot", "assets/geometry3k_sample": "Geometry3K"}
"""Folders of the package that hold the work of others."""

OWN = {".py", ".yaml", ".txt", ".jinja", ".html", ".css", ".js", ".json", ".safetensors", ".typed"}
"""Suffixes of files that are made here, the tiny models among them."""

FORBIDDEN = re.compile(r"GPL|Affero|SSPL|BUSL|Commons Clause|non-?commercial|proprietary", re.I)
"""Words of licences that a package under Apache-2.0 must not depend on."""


def test_work_of_others_lies_beside_its_licence_and_is_named_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    licences = readme[readme.index("## Licence") :]
    for folder, name in OTHERS.items():
        text = (PACKAGE / folder / "LICENSE").read_text()
        assert "Permission is hereby granted, free of charge" in text
        assert f"src/vaopd/{folder}" in licences and name in licences


def test_every_other_file_is_of_a_kind_that_is_made_here():
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file()]
    ours = [
        path
        for path in files
        if "__pycache__" not in path.parts
        and not any(path.is_relative_to(folder) for folder in OTHERS)
    ]
    assert len(ours) > 150
    assert [path for path in ours if path.suffix not in OWN] == []


def test_no_package_that_a_run_needs_has_a_licence_that_binds_its_users():
    lines = (ROOT / "requirements" / "run.txt").read_text().splitlines()
    names = [found[0] for line in lines if (found := re.match(r"[A-Za-z0-9][\w.-]*", line))]
    known = {found.metadata["Name"].lower().replace("_", "-"): found for found in _installed()}
    checked = [known[name] for name in names if name in known]
    assert len(checked) > 40
    for one in checked:
        about = one.metadata
        classifiers = [c for c in about.get_all("Classifier") or [] if c.startswith("License")]
        # Some packages give the whole text, which also names what their compilers are under.
        words = [about.get("License-Expression") or "", (about.get("License") or "")[:80]]
        stated = " ".join([*words, *classifiers]).strip()
        assert stated, f"{about['Name']} states no licence"
        assert not FORBIDDEN.search(stated), f"{about['Name']} is under {stated}"


def _installed() -> list[metadata.Distribution]:
    return list(metadata.distributions())
