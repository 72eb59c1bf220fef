"""The lock file: every package that a run can meet, in one exact version; and what `make audit` says of them."""

import re
from importlib import metadata
from pathlib import Path

import pytest
from audit import judge
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent


def pins(file: str) -> dict[str, set[str]]:
    """Package → its versions (one for each platform where they differ). Every line is an exact pin."""
    found: dict[str, set[str]] = {}
    for line in (REPOSITORY / file).read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith(("#", "-r ")):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==" and "*" not in specifier.version, line
            assert not requirement.extras, line  # which a constraint may not have
            found.setdefault(canonicalize_name(requirement.name), set()).add(specifier.version)
    return found


LOCKED = pins("requirements.lock")


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_the_lock_has_what_is_asked_for_directly(file):
    wanted = pins(file)
    assert len(wanted) > 5
    assert {name: LOCKED.get(name) for name in wanted} == wanted


def test_the_lock_has_what_these_bring_along():
    """Of the packages that are installed here: all that can be reached from the direct ones."""
    waiting, seen = sorted(pins("requirements.txt")), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform
        version = found.version.split("+")[0]  # 2.13.0+cpu is this machine's build of 2.13.0
        assert version in LOCKED.get(name, set()), f"{name} {version} is installed; requirements.lock has {LOCKED.get(name)}"
        for text in found.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    assert len(seen) > 30


def test_make_installs_under_the_lock():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert "--constraint requirements.lock" in makefile
    installs = re.findall(r"^\t.*install .*-r .*|^\t\$\(INSTALL\).*", makefile, flags=re.M)
    assert installs == ["\t$(INSTALL) -r requirements.txt", "\t$(INSTALL) -r requirements-dev.txt"]


def test_an_audit_that_could_not_ask_is_none():
    assert judge(None, "connection refused")[0] == 2
    good, unknown = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found"}
    weak = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1"}, {"id": "CVE-2"}]}
    assert judge([good, good], "") == (0, "2 packages, no known weakness.")
    status, said = judge([good, unknown], "")
    assert status == 2 and "1 of 2 not in the database: b" in said and "Not all was audited" in said
    assert judge([good, weak, unknown], "") == (1, "c 2: CVE-1, CVE-2\n1 of 3 not in the database: b")
