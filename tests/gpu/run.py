"""The GPU contract, tier by tier, each in a process of its own: `make test-gpu`, or `python3 run.py` in an unpacked kit.

    python3 run.py               every tier
    python3 run.py 1 1b          these, after tier 0

Writes out/gpu/report.txt and report.json, to send. Exit status: 0 everything that could run passed; 1 something failed, or
there is no GPU. Needs Python alone; what a tier needs besides, tier 0 says.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if not (HERE / "tiers").is_dir():  # the top of a kit
    HERE = HERE / "tests" / "gpu"
ROOT = HERE.parents[1]
OUT = ROOT / "out" / "gpu"
TIERS = {
    "0": ["tier0_probe.py"], "1": ["tier1_kernels.py"], "1b": ["tier1b_memory.py"],
    **{tier: ["tier_engines.py", "--tier", tier] for tier in ("2", "3", "4", "5")},
}  # fmt: skip
SECONDS = 1800


def run(tier: str) -> dict[str, Any]:
    """One tier's report; what it found before it died, where it does."""
    file = OUT / f"tier{tier}.json"
    file.unlink(missing_ok=True)
    script, *arguments = TIERS[tier]
    print(f"\nTier {tier}", flush=True)
    command = [sys.executable, str(HERE / "tiers" / script), *arguments, "--json", str(file)]
    try:
        status: int | str = subprocess.run(command, timeout=SECONDS).returncode
    except subprocess.TimeoutExpired:
        status = f"stopped after {SECONDS} s"
    report: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"tier": tier, "facts": {}, "checks": []}
    failed = any(check["outcome"] == "failed" for check in report["checks"])
    if status != 0 and not failed:
        what = f"ended with status {status}" if isinstance(status, int) else status
        print(f"  failed  tier {tier} {what}", flush=True)
        report["checks"].append({"check": f"tier {tier}", "outcome": "failed", "seconds": 0, "reason": what, "figures": {}})
    return report


def skipped(tier: str, reason: str) -> dict[str, Any]:
    """The report of a tier that tier 0 says cannot run."""
    print(f"\nTier {tier}\n  skipped {reason}", flush=True)
    check = {"check": f"tier {tier}", "outcome": "skipped", "seconds": 0, "reason": reason, "figures": {}}
    return {"tier": tier, "facts": {}, "checks": [check]}


def text(reports: list[dict[str, Any]]) -> str:
    """The report for people."""
    sys.path.insert(0, str(HERE / "tiers"))
    from tier_harness import lines

    said = ["Jakiro on a GPU"]
    for report in reports:
        said += ["", f"Tier {report['tier']}: {report.get('title', '')}"]
        said += [f"  {name}: {value}" for name, value in report["facts"].items() if value is not None]
        for check in report["checks"]:
            said += lines(check)
    counts = {
        kind: sum(check["outcome"] == kind for report in reports for check in report["checks"])
        for kind in ("passed", "failed", "skipped")
    }
    return "\n".join([*said, "", ", ".join(f"{count} {kind}" for kind, count in counts.items())]) + "\n"


def main() -> int:
    chosen = sys.argv[1:] or list(TIERS)
    unknown = [tier for tier in chosen if tier not in TIERS]
    if unknown:
        print(f"Error: There is no tier {unknown[0]}; known are {', '.join(TIERS)}.", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    probe = run("0")
    reasons = {check["check"].split()[1]: check["reason"] for check in probe["checks"] if check["outcome"] == "skipped"}
    tiers = [tier for tier in dict.fromkeys(chosen) if tier != "0"]
    reports = [probe, *(skipped(tier, reasons[tier]) if tier in reasons else run(tier) for tier in tiers)]
    (OUT / "report.json").write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    (OUT / "report.txt").write_text(text(reports), encoding="utf-8")
    print(f"\n{text(reports).splitlines()[-1]}\nWritten to {OUT / 'report.txt'} and report.json; please send both.")
    return int(any(check["outcome"] == "failed" for report in reports for check in report["checks"]))


if __name__ == "__main__":
    sys.exit(main())
