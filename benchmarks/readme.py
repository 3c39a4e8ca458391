"""The README's two pictures, measured again: work_precision.png and steps_vs_quality.png.

python benchmarks/readme.py --data DIR      # DIR: Fashion-MNIST's IDX files; about an hour on one core
python benchmarks/readme.py --redraw        # only drawn again, from the measurements in results/
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="folder with Fashion-MNIST's IDX files")
    what.add_argument("--redraw", action="store_true", help="from the CSV files in results/")
    args = parser.parse_args()
    how = ["--full", *(["--redraw"] if args.redraw else [])]
    data = [] if args.redraw else ["--data", str(args.data)]
    here = Path(__file__).parent
    for script, extra in (("work_precision.py", []), ("steps_vs_quality.py", data)):
        subprocess.run([sys.executable, str(here / script), *how, *extra], check=True)


if __name__ == "__main__":
    main()
