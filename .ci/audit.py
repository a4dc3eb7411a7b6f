"""Known vulnerabilities of the locked packages: `make audit`. Exit status 1 if there is one that is not accepted below.

pip-audit asks PyPI. Where that cannot be reached, nothing is audited, and this says so instead of finding nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parent.parent / "requirements.lock"

# Vulnerabilities that no release mends yet, or that concern nothing this project does: id -> why it is accepted.
ACCEPTED: dict[str, str] = {}


def judged(report: dict[str, Any], accepted: dict[str, str]) -> tuple[list[str], int]:
    """What to print of pip-audit's report, and the exit status."""
    packages = report["dependencies"]
    audited = [package for package in packages if "skip_reason" not in package]
    lines, status = [], 0
    for package in audited:
        for found in package["vulns"]:
            name = f"{package['name']} {package['version']}: {found['id']}"
            if reason := next((accepted[i] for i in (found["id"], *found.get("aliases", [])) if i in accepted), None):
                lines.append(f"accepted  {name}: {reason}")
            else:
                mended = f"mended in {', '.join(found['fix_versions'])}" if found["fix_versions"] else "not mended yet"
                lines.append(
                    f"problem   {name}, {mended}: raise it in pyproject.toml and `make lock`, or accept it here"
                )
                status = 1
    if not audited:
        lines.append(
            f"NOT AUDITED: none of {len(packages)} packages could be asked about; PyPI cannot be reached from here"
        )
    else:
        skipped = len(packages) - len(audited)
        lines.append(f"{len(audited)} packages audited, {skipped} unknown to PyPI")
    return lines, status


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--no-deps", "--disable-pip",
               "--format", "json", "--progress-spinner", "off"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:  # it ends with the traceback of a connection that failed
        print(f"NOT AUDITED: {(done.stderr.strip().splitlines() or ['pip-audit said nothing'])[-1][:300]}")
        return 0
    lines, status = judged(report, ACCEPTED)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
