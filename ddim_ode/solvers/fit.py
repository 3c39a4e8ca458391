"""What a calibrated plan says of its fit, in a few lines.

A fit is plain data that may come from another person or version: what is missing or malformed is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_LONGEST = 90


def fit_lines(fit: Mapping[str, Any]) -> list[str]:
    """Lines of a term and what it says, for ``Plan.describe``."""
    error = number(fit.get("reference_error"))
    facts = [
        ("fitted to", _target(fit)),
        ("by", _making(fit)),
        ("held out", held_out_text(fit)),
        ("unseen", _unseen(fit)),
        ("reference", error and f"off by {error} itself"),
        ("incumbent", _incumbent(fit)),
    ]
    warnings = fit.get("warnings")
    if isinstance(warnings, (list, tuple)):
        facts += [("warning", " ".join(str(warning).split())) for warning in warnings]
    return [f"  {term:<9}  {text}" for term, text in facts if text]


def ratio_text(fit: Mapping[str, Any]) -> str:
    """The held-out ratio of the errors, after to before, with its interval; empty if there is none."""
    held = _part(fit, "held_out")
    ratio, low, high = (_exp(held.get(key)) for key in ("log_ratio", "low", "high"))
    return f"{ratio} ({low} to {high})" if ratio and low and high else ratio


def held_out_text(fit: Mapping[str, Any]) -> str:
    held = _part(fit, "held_out")
    before, after, ratio = number(held.get("before")), number(held.get("after")), ratio_text(fit)
    seeds = held.get("seeds")
    parts = [f"{n} noises" if (n := number(held.get("n"))) else ""]
    if isinstance(seeds, (list, tuple)) and len(seeds) == 2:
        parts.append(f"of seeds {number(seeds[0])} to {number(seeds[1])}")
    where = " ".join(part for part in parts if part)
    of = "squared distance" if _part(fit, "data").get("matched") is True else "error"
    gain = f"{of} {before} before, {after} after" if before and after else ""
    return ", ".join(part for part in (where, gain, ratio and f"ratio {ratio}") if part)


def number(value: Any) -> str:
    """A number to three digits (whole ones in full), or nothing."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**18 else ""
    return f"{value:.3g}"


def _target(fit: Mapping[str, Any]) -> str:
    parts = [_line(fit.get("model"))]
    if isinstance(fit.get("prediction"), str):
        parts.append(f"predicts {_line(fit['prediction'])}")
    if guidance := number(fit.get("guidance")):
        parts.append(f"guidance {guidance}")
    parts.append(_line(ode_text(_part(fit, "alterations"))))
    span = fit.get("sigma_range")
    if isinstance(span, (list, tuple)) and len(span) == 2:
        low, high = ("inf" if end == "inf" else number(end) for end in span)
        parts.append(f"σ {low} to {high}" if low and high else "")
    return ", ".join(part for part in parts if part)


def _making(fit: Mapping[str, Any]) -> str:
    n, seed, evals = (number(fit.get(key)) for key in ("n", "seed", "net_evals"))
    seconds = number(fit.get("seconds"))
    return ", ".join(
        part
        for part in (
            _line(fit.get("version")) and f"ddim_ode {_line(fit.get('version'))}",
            _line(fit.get("budget")) and f"budget {_line(fit.get('budget'))}",
            n and f"{n} noises" + (f" from seed {seed}" if seed else ""),
            evals and f"{evals} network evaluations" + (f" in {seconds} s" if seconds else ""),
        )
        if part
    )


def _unseen(fit: Mapping[str, Any]) -> str:
    """What measures that the fit did not see say, before and after."""
    parts = _part(fit, "unseen") or _part(_part(fit, "data"), "unseen")
    gains = {
        _line(name): [number(_part(parts, name).get(k)) for k in ("before", "after")]
        for name in [*parts][:4]
    }
    return ", ".join(
        f"{name} {' to '.join(gain)}" for name, gain in gains.items() if name and all(gain)
    )


def _incumbent(fit: Mapping[str, Any]) -> str:
    name = _line(fit.get("incumbent"))
    if fit.get("calibrated") is False:
        return f"{name or 'the best method'}: the fit did not beat it, and this is its plan"
    return f"{name}, the best method found" if name else ""


def _part(fit: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = fit.get(key)
    return part if isinstance(part, Mapping) else {}


def _line(value: Any) -> str:
    """Text on one line, of bounded length."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _exp(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 50:
        return ""
    return f"{math.exp(value):.3g}"


def ode_text(alterations: Mapping[str, Any]) -> str:
    """What makes an ODE another than the network's own: "guidance 2, clip 1"."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, (int, float)) else f"{name} {value}"
        for name, value in alterations.items()
    )
