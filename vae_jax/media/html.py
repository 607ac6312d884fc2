"""The page of a run: one HTML file without scripts or outside resources, pictures beside it, light and dark, for screens of any width.

Everything that comes from data, names or settings passes through `_text`; the content-security policy lets nothing but the page's own style
(by its hash) and its own pictures and sounds in. The players are the browser's own.
"""

import base64
import hashlib
import html
import math
import urllib.parse
from typing import NamedTuple


class Picture(NamedTuple):
    """A file beside the page, and where there is one, another for dark pages."""

    file: str
    alt: str
    dark: str = ""


class Sounds(NamedTuple):
    """Sound files that are heard together: a title, and (file beside the page, caption) of each."""

    title: str
    files: tuple[tuple[str, str], ...]


class Section(NamedTuple):
    """A heading, what is shown, its pictures with a caption each, and the numbers that belong to them: (name, value, note).

    A value is text, an int, a float, or a pair (mean, standard error). Sounds stand under the pictures, one line a group, then a table.
    """

    name: str  # of the anchor
    title: str
    text: str
    pictures: tuple[tuple[Picture, str], ...] = ()
    numbers: tuple[tuple, ...] = ()
    sounds: tuple[Sounds, ...] = ()
    table: "Table | None" = None


class Table(NamedTuple):
    """Rows of values (as in Section) under a head of column names; the first cell of a row names it, the last explains it."""

    head: tuple[str, ...]
    rows: tuple[tuple, ...]


_CSS = """
:root{color-scheme:light dark;--paper:#fff;--page:#f4f5f8;--ink:#1f2430;--faint:#5d6678;--rule:#e1e4ea;--mark:#3356d6;--code:#eef0f5}
@media (prefers-color-scheme:dark){:root{--paper:#161a22;--page:#0e1117;--ink:#e6e9ef;--faint:#98a2b3;--rule:#2b313d;--mark:#8aa4ff;--code:#0e1117}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 4rem}
header p,footer{color:var(--faint)}
h1{font-size:1.7rem;line-height:1.2;margin:.4rem 0 .2rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .35rem}
h3{font-size:.95rem;margin:0;overflow-wrap:anywhere}
section,.card{background:var(--paper);border:1px solid var(--rule);border-radius:12px;padding:1.1rem 1.2rem;margin:1.1rem 0}
section>p,.card>p{margin:.1rem 0 .9rem;color:var(--faint);max-width:46rem}
nav{display:flex;flex-wrap:wrap;gap:.35rem .9rem;margin:1rem 0;font-size:.9rem}
a{color:var(--mark);text-decoration:none}
a:hover,a:focus-visible{text-decoration:underline}
figure{margin:.9rem 0 0}
img{display:block;width:100%;height:auto;border-radius:6px}
figcaption{font-size:.85rem;color:var(--faint);margin-top:.45rem}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:.7rem 1.2rem;margin:1rem 0 0}
dl.facts{grid-template-columns:minmax(6rem,max-content) 1fr;gap:.15rem 1.2rem;margin:0;font-size:.92rem}
dl.facts dd{font-size:inherit;font-weight:400;overflow-wrap:anywhere}
dl.facts dt{font-size:inherit}
dt{font-size:.8rem;color:var(--faint)}
dd{margin:0;font-size:1.08rem;font-weight:600;font-variant-numeric:tabular-nums}
dd small{display:block;font-size:.75rem;font-weight:400;color:var(--faint)}
.sounds{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.4rem 1rem;padding:.7rem 0;border-bottom:1px solid var(--rule)}
.sounds h3{grid-column:1/-1}
.sounds figure{margin:0}
audio{display:block;width:100%;height:2.4rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.42rem .6rem;border-bottom:1px solid var(--rule);white-space:nowrap}
th{font-weight:600;color:var(--faint);font-size:.8rem}
tbody th{color:var(--ink);font-size:.92rem}
th:first-child,td:last-child,thead th:last-child{text-align:left}
td:last-child{white-space:normal;color:var(--faint);min-width:12rem}
tbody tr:last-child>*{border-bottom:0}
code{font:.84em/1.5 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;background:var(--code);border-radius:5px;overflow-wrap:anywhere}
.card>p{margin:.9rem 0 0;font-size:.85rem}
.command{display:block;padding:.6em .8em;margin:.3rem 0 0}
@media (max-width:42rem){
figure.chart picture{display:block;overflow-x:auto}
figure.chart img{width:44rem;max-width:none}
thead{display:none}
tbody tr{display:grid;grid-template-columns:1fr 1fr;gap:.1rem 1rem;padding:.6rem 0;border-bottom:1px solid var(--rule)}
tbody tr>*{border:0;padding:0;text-align:left}
tbody tr>th,tbody tr>td:last-child{grid-column:1/-1}
td[data-head]::before{content:attr(data-head);display:block;font-size:.75rem;color:var(--faint)}
}
@media print{section,.card{break-inside:avoid;border:0}nav{display:none}}
"""


def page(title: str, subtitle: str, facts: list[tuple[str, str]], command: str, table: Table, sections: list[Section]) -> str:
    """The whole page as text. `command` is the one that writes the page and its pictures."""
    digest = base64.b64encode(hashlib.sha256(_CSS.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src 'self' data:; media-src 'self'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    links = "".join(f'<a href="#{_url(s.name)}">{_text(s.title)}</a>' for s in sections)
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_text(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="referrer" content="no-referrer">\n'
        f'<link rel="icon" href="data:,">\n<title>{_text(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n'
        f"<header><h1>{_text(title)}</h1><p>{_text(subtitle)}</p></header>\n"
        f'<div class="card"><dl class="facts">{rows}</dl><p>Every number and picture here is written by</p>'
        f'<code class="command">{_text(command)}</code></div>\n'
        f"<nav>{links}</nav>\n"
        f'<section id="numbers"><h2>Numbers</h2>{_table(table)}</section>\n' + "\n".join(_section(s, command) for s in sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def show(value) -> str:
    """A value as people read it: four significant digits, or a mean to the second digit of its standard error. None is a dash."""
    if isinstance(value, tuple):
        mean, error = value
        if not (math.isfinite(mean) and math.isfinite(error) and error > 0):
            return show(float(mean))
        places = 1 - math.floor(math.log10(error))
        return f"{mean:.{max(places, 0)}f} ± {error:.{max(places, 0)}f}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 or not math.isfinite(value) else f"{value:,.0f}"
    return "–" if value is None else str(value)


def _section(section, command):
    numbers = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(show(value))}" + (f"<small>{_text(note)}</small>" if note else "") + "</dd></div>"
        for name, value, note in section.numbers
    )
    figures = "".join(_figure(picture, caption, command) for picture, caption in section.pictures)
    sounds = "".join(_sounds(group, command) for group in section.sounds)
    return (f'<section id="{_text(section.name)}"><h2>{_text(section.title)}</h2><p>{_text(section.text)}</p>{figures}{sounds}'
            + (_table(section.table) if section.table else "")
            + (f"<dl>{numbers}</dl>" if numbers else "") + "</section>")


def _sounds(group, command):
    heading = f"<h3>{_text(group.title)}</h3>" if group.title else ""
    return f'<div class="sounds">{heading}' + "".join(_player(file, caption, command) for file, caption in group.files) + "</div>"


def _player(file, caption, command):
    return (f'<figure><audio controls preload="metadata" aria-label="{_text(caption)}" src="{_url(file)}"></audio>'
            f"<figcaption>{_caption(file, caption, command)}</figcaption></figure>")


def _figure(picture, caption, command):
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{_url(picture.dark)}">' if picture.dark else ""
    image = f'<img src="{_url(picture.file)}" alt="{_text(picture.alt)}">'
    kind = ' class="chart"' if picture.dark else ""
    return f"<figure{kind}><picture>{dark}{image}</picture><figcaption>{_caption(picture.file, caption, command)}</figcaption></figure>"


def _caption(file, caption, command):
    return f'{_text(caption)} <a href="{_url(file)}" title="{_text("written by: " + command)}">{_text(file)}</a>'


def _table(table):
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in table.head)
    body = ""
    for row in table.rows:
        values = "".join(f'<td data-head="{_text(name)}">{_text(show(cell))}</td>' for name, cell in zip(table.head[1:-1], row[1:-1]))
        body += f'<tr><th scope="row">{_text(row[0])}</th>{values}<td>{_text(row[-1])}</td></tr>'
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(value) -> str:
    """Any text as HTML text or attribute value; characters that cannot be shown or encoded become backslash codes."""
    shown = "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape", "surrogatepass").decode() for c in str(value))
    return html.escape(shown, quote=True)


def _url(name: str) -> str:
    """A file name or anchor as a relative URL: it can name no scheme and no other folder."""
    return urllib.parse.quote(name.encode("utf-8", "surrogateescape"), safe="")
