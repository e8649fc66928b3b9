"""A long run: ``python tests/fuzz/campaign.py --minutes 60 --seed 1`` draws cases until the time is up.

Prints every disagreement as a line that builds the case again, and at the end the counts; ``--write`` keeps these in
``campaign.json`` beside this file. Exits with 1 if anything disagreed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from convex_cases import Case, cases
from convex_verdict import Verdict, judge
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st
from nonlinear_cases import NonlinearCase, nonlinear_cases
from nonlinear_verdict import judge_nonlinear
from tqdm import tqdm

KINDS = {"convex": cases(), "nonlinear": nonlinear_cases(), "both": st.one_of(cases(), nonlinear_cases())}


def verdict_of(case: Case | NonlinearCase) -> Verdict:
    """The verdict of either kind of case; what it raises is a disagreement."""
    try:
        return judge_nonlinear(case) if isinstance(case, NonlinearCase) else judge(case)
    except Exception:
        return Verdict(wrong=[f"raised\n{traceback.format_exc()}"])


def main() -> int:
    """Run, print, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=sorted(KINDS), default="both")
    parser.add_argument("--write", action="store_true", help="keep the counts in campaign.json")
    args = parser.parse_args()
    counts, wrong, number = Counter[str](), list[str](), 0
    deadline = time.monotonic() + 60 * args.minutes
    bar = tqdm(unit=" cases", disable=None)

    def one(case: Case | NonlinearCase) -> None:
        nonlocal number
        if time.monotonic() > deadline:
            return
        number += 1
        verdict = verdict_of(case)
        family = "nonlinear" if isinstance(case, NonlinearCase) else "convex"
        counts.update({f"{family}: {what}": count for what, count in verdict.counts.items()})
        for text in verdict.wrong:
            wrong.append(f"{case}\n    {text}")
            tqdm.write(wrong[-1])
        bar.update()

    rounds = 0
    while time.monotonic() < deadline:  # hypothesis runs a bounded number of examples at a time
        run = settings(
            max_examples=1000, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        )
        seed(args.seed * 100_003 + rounds)(run(given(KINDS[args.kind])(one)))()
        rounds += 1
    bar.close()
    report = {"cases": number, "disagreements": len(wrong), "outcomes": dict(sorted(counts.items()))}
    print(json.dumps(report, indent=1))
    if args.write:
        (Path(__file__).parent / "campaign.json").write_text(json.dumps(report, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
