"""The look of pages and charts: colours by day and by night, and the rules that use them."""

from __future__ import annotations

import re

# Hues after Okabe and Ito (2008), in six steps of lightness: any two differ in grey, and for every
# kind of colour vision (tests/reports/html/test_style.py). By night lighter ones of the same hue.
DAY = {
    "paper": "#fdfdfc",
    "card": "#fff",
    "ink": "#1d2125",
    "soft": "#5c646c",
    "line": "#e2e4e6",
    "good": "#00684c",
    "bad": "#a83f00",
    "c0": "#193e73",
    "c1": "#a83b1c",
    "c2": "#4da180",
    "c3": "#40193c",
    "c4": "#aa7601",
    "c5": "#4b4f51",
}
NIGHT = {
    "paper": "#15181b",
    "card": "#1b1f23",
    "ink": "#e6e8ea",
    "soft": "#a2a9b0",
    "line": "#30363c",
    "good": "#5fcfa9",
    "bad": "#f39b62",
    "c0": "#3e89de",
    "c1": "#ef744e",
    "c2": "#57e1a8",
    "c3": "#a45b93",
    "c4": "#fed878",
    "c5": "#abb5c1",
    # Of heat maps, which have light text on them by night.
    "h1": "#d2603c",
    "h2": "#2f9d70",
}

_CHARTS = (
    """
svg text{fill:var(--ink)}svg .tick,svg .label{fill:var(--soft);font-variant-numeric:tabular-nums}
svg .value{font-variant-numeric:tabular-nums}
svg .over,svg .beside{paint-order:stroke;stroke:var(--paper);stroke-width:3.5px;
stroke-linejoin:round}svg .over{font-weight:700}
.grid{stroke:var(--line)}.axis{stroke:var(--soft);stroke-width:1.2}
.whisker{fill:none;stroke-width:1.3}
.under{stroke:var(--paper);stroke-width:3.6}.error{stroke:var(--ink);stroke-width:1.4}
.frame{fill:none;stroke:var(--line)}
.frontier{fill:none;stroke:var(--soft);stroke-width:1.5;stroke-dasharray:3 3}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.bar{stroke-width:1}
.whisker{stroke-opacity:.75}.mark{fill-opacity:.85}.ring{stroke-width:1.1;stroke-opacity:.75}
"""
    + "".join(
        f".c{i}{{stroke:var(--c{i})}}.m{i}{{fill:var(--c{i})}}"
        f".b{i}{{stroke:var(--c{i});fill:var(--c{i})}}.h{i}{{fill:var(--h{i},var(--c{i}))}}"
        for i in range(6)
    )
    # Of two bars the first is pale, so that they differ in grey, too.
    + "\n.b5{fill-opacity:.16}\n"
)

_PAGE = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1000px;margin:0 auto;padding:48px 24px 32px}
h1{font-size:1.9rem;line-height:1.25;font-weight:650;letter-spacing:-.015em;margin:0 0 .5em;
text-wrap:balance}
h2{font-size:1.2rem;font-weight:650;margin:0 0 .5rem}
h3{font-size:.9rem;font-weight:600;margin:0 0 .35rem}
.kicker{color:var(--soft);font-size:.85rem;margin:0 0 .6rem;letter-spacing:.01em}
.lead{font-size:1.08rem;max-width:46em;margin:.2em 0 .8em}
.good{color:var(--good)}.bad{color:var(--bad)}
.note,figcaption,footer{color:var(--soft);font-size:.875rem}
.note{max-width:52em;margin:0 0 .9rem}
.warning{border-left:3px solid var(--bad);padding:.1em 0 .1em .9em;max-width:52em}
section{margin-top:44px;padding-top:20px;border-top:1px solid var(--line)}
.figures{display:flex;flex-wrap:wrap;gap:28px 32px;align-items:flex-start;margin:.6rem 0 1.2rem}
figure{margin:0;max-width:100%}figure:has(>svg){min-width:min(440px,100%)}
figcaption{max-width:440px;margin-top:.3rem;line-height:1.45}
.wide{overflow-x:auto;margin:.4rem 0 1rem}.wide svg{max-width:none}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.925rem}
th,td{padding:.32em 1.4em .32em 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft);font-size:.85rem}
.number{text-align:right;padding:.32em 0 .32em 1.4em;white-space:nowrap}
.plain{font-size:.84rem}.plain td{overflow-wrap:anywhere;padding:.22em 1em .22em 0}
.plain td:first-child{color:var(--soft);white-space:nowrap}
.dense{font-size:.8rem}.dense th{font-size:.76rem;vertical-align:bottom}
.dense th,.dense td{padding:.3em .9em .3em 0}.dense .number{padding:.3em 0 .3em .9em}
.dense td.number{white-space:nowrap}.dense th.number{white-space:normal}
.rates td{font-size:1.15rem;padding-top:.45em;padding-bottom:.45em}
.rates small{display:block;color:var(--soft);font-size:.78rem}
.images td,.images th{border:0;padding:.15em .5em .15em 0;vertical-align:middle;font-size:.85rem}
.images img{image-rendering:pixelated;display:block;border-radius:3px}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.8em 1em;
overflow-x:auto;font:.85rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--soft)}
footer{margin-top:56px}
svg{display:block;max-width:100%;height:auto;overflow:visible;
font:11.5px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}
"""

# On a telephone, on paper; after the rules that they change.
_OTHERWISE = """
@media (max-width:600px){main{padding:28px 16px 24px}section{margin-top:32px}
h1{font-size:1.5rem}.rates td{font-size:1rem}.rates .number{padding-left:.7em}
.rates small{white-space:normal}.rates th.number{white-space:normal}
.images img{width:42px}.images th{font-size:.78rem}}
@media print{main{max-width:none}section{break-inside:avoid}}
"""


def _variables(colours: dict[str, str]) -> str:
    return ";".join(f"--{name}:{colour}" for name, colour in colours.items())


STYLE = (
    f":root{{color-scheme:light dark;{_variables(DAY)}}}\n"
    f"@media (prefers-color-scheme:dark){{:root{{{_variables(NIGHT)}}}}}"
    f"{_PAGE}{_CHARTS}{_OTHERWISE}"
)


def chart_style(colours: dict[str, str]) -> str:
    """The rules for a chart on its own, with colours in place of variables.

    Args:
        colours: :data:`DAY` or :data:`NIGHT`.

    Example:
        >>> "stroke:#193e73" in chart_style(DAY), "var(" in chart_style(DAY)
        (True, False)
    """

    def colour(found: re.Match[str]) -> str:
        return colours[found[1]] if found[1] in colours else colours[found[2]]

    return re.sub(r"var\(--(\w+)(?:,var\(--(\w+)\))?\)", colour, _CHARTS)
