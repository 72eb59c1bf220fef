"""`make audit`: ask pip-audit about every locked version, and say so where it could not look one up.

    python tests/audit.py        # 0: all looked up, none with a known weakness; 1: weaknesses; 2: not all looked up

pip-audit itself ends with 0 where its database knows nothing of any package, as behind an index that mirrors files alone.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "-r", str(LOCK)]
        done = subprocess.run([*command, "--format", "json", "--output", str(report)], capture_output=True, text=True)
        found = json.loads(report.read_text(encoding="utf-8"))["dependencies"] if report.exists() else None
    status, said = judge(found, (done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    print(said, file=sys.stderr if status else sys.stdout)
    return status


def judge(dependencies: list[dict[str, Any]] | None, complaint: str) -> tuple[int, str]:
    """pip-audit's list of packages (None: it made none), and its last line → exit status and what to say."""
    if dependencies is None:
        return 2, f"Nothing was audited: the database of known weaknesses cannot be reached ({complaint[:200]})."
    weak = [f"{d['name']} {d['version']}: {', '.join(v['id'] for v in d['vulns'])}" for d in dependencies if d.get("vulns")]
    unknown = [d["name"] for d in dependencies if "skip_reason" in d]
    said = weak + ([f"{len(unknown)} of {len(dependencies)} not in the database: {', '.join(unknown)}"] if unknown else [])
    if unknown and not weak:
        return 2, "\n".join([*said, "Not all was audited. Try again where pypi.org itself can be reached."])
    return (1, "\n".join(said)) if weak else (0, f"{len(dependencies)} packages, no known weakness.")


if __name__ == "__main__":
    sys.exit(main())
