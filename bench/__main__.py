"""`python -m bench NAME`: run one benchmark, print its figures, exit with 1 where a goal is missed.

A benchmark is a module of this folder with `run(quick) -> list[Figure]`; some go by a number too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

THREADS = 2
NUMBERS = {
    **{"B1": "generate", "B2": "decode", "B3": "prefill", "B4": "prefix", "B5": "adapters", "B6": "adapters"},
    **{"B7": "embed", "B10": "search", "B13": "index", "B15": "serving"},
}
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(THREADS)  # before torch is imported anywhere
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def names() -> list[str]:
    """The modules of this folder that have a `run`; found by their text, so that nothing is imported."""
    modules = sorted(Path(__file__).parent.glob("*.py"))
    return [path.stem for path in modules if "\ndef run(quick: bool)" in path.read_text(encoding="utf-8")]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure ours beside a peer, A B A B.")
    parser.add_argument("name", choices=[*names(), *NUMBERS])
    parser.add_argument("--quick", action="store_true", help="a version of about a minute")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()

    from bench.harness import describe, environment

    print(environment(), flush=True)
    figures = importlib.import_module(f"bench.{NUMBERS.get(arguments.name, arguments.name)}").run(arguments.quick)
    for figure in figures:
        print(describe(figure))
    if arguments.json:
        values = [figure.to_json() for figure in figures]
        print(json.dumps(values[0] if len(values) == 1 else values))
    return 0 if all(figure.ok for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
