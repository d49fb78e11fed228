"""The report of `widelimit verify` is one HTML file with its figures inside, for a phone and for a laptop."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from widelimit.claims.base import Check, Claim, source_code
from widelimit.claims.run import BROKEN, HELD, Outcome
from widelimit.pages import document, number, picture

_WORDS = (
    ("f, L, n, beta", "the network, its number of affine layers, its hidden width, the scale of its biases"),
    ("Sigma^L", "NNGP kernel: the covariance of the outputs of infinitely wide random networks"),
    ("Theta^L", "neural tangent kernel: the sum over all parameters p of df(x)/dp df(x')/dp, at infinite width"),
    ("C, t", "the cost, a mean over the training points, and the time of d theta/dt = -grad C: steps x learning rate"),
    ("d", "the derivative of the cost's summands with respect to the outputs, 2 (f - y) for the squared error"),
    ("|f|_K", "the norm of a function in the space of the kernel K (RKHS norm): small for what K finds simple"),
    ("slope", "the exponent a in a law width^a, fitted on logarithms; -1/2 halves the error for four times the width"),
    ("eps", "the relative rounding error of double precision, 2.2e-16"),
    ("standard error", "how far a mean over random repetitions typically is from the truth; 5 of them are no chance"),
)


_SIGNS = (
    {"<-": "\u2190", "<=": "\u2264", ">=": "\u2265", "!=": "\u2260", "sum_": "\u2211_"}
    | {
        name: html.unescape(f"&{name};")
        for name in ("Sigma", "Theta", "theta", "lambda", "alpha", "beta", "gamma", "eta", "mu", "phi", "pi")
    }
    | {"grad": "\u2207"}
)
_SIGN = re.compile(r"<-|<=|>=|!=|\bsum_|(?<![A-Za-z])(?:" + "|".join(filter(str.isalpha, _SIGNS)) + r")(?![A-Za-z])")
_MINUS = re.compile(r"(?<![\w)])-(?=[\d|A-Za-z(\u0370-\u03ff\u2207])|(?<= )-(?= )")
_POWER_OF_TEN = re.compile(r"\b(\d+)e(-?\d+)\b")
_RAISED = re.compile(r"\^(?:\{([^}]*)\}|\(([^)]*)\)|([-\u2212]?\d+(?:/\d+)?|\w))")
_LOWERED = re.compile(r"((?<![A-Za-z])[A-Za-z\u0370-\u03ff\u2211]|[|)])_(?:\{([^}]*)\}|([A-Za-z0-9]+))")


def prose(text: str) -> str:
    """Format plain text with formulas (Sigma^L, x_i, n^-1/2, 1e-9) as HTML."""
    text = _SIGN.sub(lambda found: _SIGNS[found[0]], text)
    text = _POWER_OF_TEN.sub(lambda found: ("" if found[1] == "1" else f"{found[1]}\u00b7") + f"10^{found[2]}", text)
    text = html.escape(_MINUS.sub("\u2212", text), quote=False)
    text = _LOWERED.sub(lambda found: f"{found[1]}<sub>{found[2] or found[3]}</sub>", text)
    return _RAISED.sub(lambda found: f"<sup>{found[1] or found[2] or found[3]}</sup>", text)


def interval(check: Check) -> tuple[str, str]:
    """Format the measured number and its interval; where that is narrow, both from its middle."""
    middle, half = (check.low + check.high) / 2, (check.high - check.low) / 2
    if 0 < half < 1e-3 * abs(middle):
        sign = "+" if check.measured >= middle else "&minus;"
        measured = f"{number(middle)} {sign} {number(abs(check.measured - middle))}"
        return measured, f"{number(middle)} &plusmn; {number(half)}"
    if half == 0:
        return number(check.measured), number(middle)
    return number(check.measured), f"{number(check.low)} to {number(check.high)}"


def page(outcomes: Sequence[Outcome], claims: Mapping[str, Claim], facts: dict[str, Any]) -> str:
    """Make the whole document; `facts`: what the run was made with, by name (versions, machine, effort, seconds)."""
    held = sum(outcome.verdict == HELD for outcome in outcomes)
    verdict = f"{held} of {len(outcomes)} claims hold, with a negative control that fails as it must."
    lines = "".join(_line(number, outcome, claims[outcome.name]) for number, outcome in enumerate(outcomes, 1))
    made = "; ".join(f"{html.escape(key)} {html.escape(str(value))}" for key, value in facts.items())
    banner = "banner" if held == len(outcomes) else "banner failed"
    words = "".join(f"<dt>{prose(word)}</dt><dd>{prose(text)}</dd>" for word, text in _WORDS)
    sections = "".join(_section(number, outcome, claims[outcome.name]) for number, outcome in enumerate(outcomes, 1))
    body = (
        "<h1>Infinitely wide neural networks: what the paper says, measured</h1>"
        "<p>Each section is one statement of &ldquo;Behavior of infinitely wide neural networks&rdquo;, corrected "
        "where its print is wrong, with an experiment that could have refuted it. A control repeats the experiment "
        "with an error planted on purpose: it must come out wrong, or the experiment proves nothing. In the figures "
        "lines are theory and points are measured, with one standard error unless a legend says otherwise.</p>"
        f'<p class="{banner}">{verdict}</p><p class="meta">{made}</p>'
        f"<details><summary>Words and symbols</summary><dl>{words}</dl></details>"
        f'<nav class="scroll" id="contents"><table><tr><th></th><th>claim</th><th>verdict</th><th>seconds</th></tr>'
        f"{lines}</table></nav>{sections}"
    )
    return document("Infinitely wide neural networks: the claims", body)


def _line(place: int, outcome: Outcome, claim: Claim) -> str:
    return (
        f'<tr><td>{place}</td><td><a href="#{outcome.name}">{prose(claim.title)}</a></td>'
        f'<td class="{_colour(outcome.verdict == HELD)}">{outcome.verdict}</td>'
        f'<td class="number">{outcome.seconds:.1f}</td></tr>'
    )


def _colour(good: bool) -> str:
    return "good" if good else "bad"


def _section(place: int, outcome: Outcome, claim: Claim) -> str:
    parts = [
        f'<h2 id="{outcome.name}">{place}. {prose(claim.title)}</h2>',
        f'<p>{prose(claim.statement)}</p><p class="meta">{html.escape(claim.source)}</p>',
        f"<h3>Prediction</h3><p>{prose(claim.prediction)}</p>",
        f"<h3>Measured &middot; {outcome.verdict}</h3>",
    ]
    if outcome.verdict == BROKEN:
        parts.append(f'<p class="bad">{html.escape(outcome.error)}</p>')
    parts.append(_checks(outcome.checks, expected=True))
    if outcome.data:
        parts.append(picture(claim.draw(outcome.data, outcome.control_data), claim.title))
    parts += [
        f'<p class="meta">Intervals: {prose(claim.tolerance)} Seed {claim.seed}; reads {claim.reads}.</p>',
        f"<h3>Control: must fail</h3><p>{prose(claim.control)}</p>",
        _checks(outcome.controls, expected=False),
        f"<details><summary>The code of this experiment and its figure</summary><pre>"
        f"{html.escape(source_code(outcome.name))}</pre></details>",
        '<p class="up"><a href="#contents">&uarr; all claims</a></p>',
    ]
    return "".join(parts)


def _checks(checks: Sequence[Check], *, expected: bool) -> str:
    rows = "".join(
        f'<tr><td class="name">{prose(check.name)}</td>'
        f'<td class="number" data-what="measured">{interval(check)[0]}</td>'
        f'<td class="number" data-what="interval">{interval(check)[1]}</td>'
        f'<td class="verdict {_colour(check.holds == expected)}">{"inside" if check.holds else "outside"}</td>'
        f'<td class="why">{prose(check.why)}</td></tr>'
        for check in checks
    )
    head = "<tr class=head><th>quantity</th><th>measured</th><th>interval</th><th></th><th>because</th></tr>"
    return f'<div class="scroll"><table class="checks">{head}{rows}</table></div>'
