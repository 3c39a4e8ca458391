"""Which solver, at how many network calls, on which grid: the README's table, on the shipped model.

    python benchmarks/which_solver.py --quick       # 2 noises
    python benchmarks/which_solver.py --full        # 20 noises

RMS error per pixel of the end point against a converged solution of the same noises. Guidance is off.
"""

from __future__ import annotations

from common import Run, arguments, load_problem

METHODS = (
    *("ddim", "heun", "midpoint", "dpm3", "ab4", "ipndm", "deis3"),
    *("dpmpp2m", "dpmpp3m", "unipc2", "unipc3"),
)
GRIDS = ("trailing", "quadratic", "karras")
NFE = (5, 10, 20)


def main() -> None:
    args = arguments(__doc__, "2 noises", "20 noises").parse_args()
    run = Run("which_solver", args)
    n = 20 if args.full else 2
    problem = load_problem("fashion-mnist", n)
    heads = [f"{grid} {nfe}" for grid in GRIDS for nfe in NFE]
    rows = []
    print("| method | " + " | ".join(heads) + " |\n|---|" + "---:|" * len(heads))
    for method in METHODS:
        row: dict[str, object] = dict(method=method)
        for grid in GRIDS:
            for nfe in NFE:
                row[f"{grid} {nfe}"] = f"{problem.error(method, nfe=nfe, grid=grid):.4f}"
        rows.append(row)
        print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
    run.save(rows, n=n)


if __name__ == "__main__":
    main()
