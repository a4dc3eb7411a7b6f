"""The audit of locked packages tells a vulnerability, an accepted one, and that nothing was audited."""

import runpy
from pathlib import Path

AUDIT = runpy.run_path(str(Path(__file__).parent.parent / ".ci/audit.py"))


def package(name, *vulnerabilities):
    vulns = [{"id": found, "aliases": ["CVE-9"], "fix_versions": ["2"]} for found in vulnerabilities]
    return {"name": name, "version": "1", "vulns": vulns}


SKIPPED = {"name": "private", "skip_reason": "Dependency not found on PyPI"}


def test_a_vulnerability_fails_unless_it_is_accepted_with_a_reason():
    lines, status = AUDIT["judged"]({"dependencies": [package("a"), package("b", "PYSEC-1"), SKIPPED]}, {})
    assert status == 1
    assert lines[0].startswith("problem   b 1: PYSEC-1, mended in 2: ")
    assert lines[-1] == "2 packages audited, 1 unknown to PyPI"
    lines, status = AUDIT["judged"]({"dependencies": [package("b", "PYSEC-1")]}, {"CVE-9": "unused here"})
    assert (lines[0], status) == ("accepted  b 1: PYSEC-1: unused here", 0)


def test_an_audit_that_asked_nobody_does_not_look_like_one_that_found_nothing():
    lines, status = AUDIT["judged"]({"dependencies": [SKIPPED, SKIPPED]}, {})
    assert status == 0
    assert lines == ["NOT AUDITED: none of 2 packages could be asked about; PyPI cannot be reached from here"]
