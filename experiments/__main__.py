"""``python -m experiments study NAME|all`` and ``python -m experiments bench SUITE|all``, from the project's folder."""

from __future__ import annotations

import sys

from convsmith.cli.main import Program, main

USAGE = """usage: python -m experiments VERB [options]
       python -m experiments VERB -h    flags and examples of one verb

{verbs}

examples:
  python -m experiments study
  python -m experiments study redundancy/arithmetic
  python -m experiments bench pooling --threads 2
Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted with the state saved."""

PROGRAM = Program("python -m experiments", "experiments.verbs", USAGE, ("study", "bench", "pages"))

if __name__ == "__main__":
    sys.exit(main(program=PROGRAM))
