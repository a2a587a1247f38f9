"""The style sheet of `report.html`; a Python string, so that no package data has to be installed."""

STYLE = """\
:root { color-scheme: light dark; --ink: #1a202c; --soft: #4a5568; --paper: #fff; --band: #f4f6f9; --rule:
  #d8dee6; --accent: #1f5fa8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ecf2; --soft: #aeb8c6; --paper: #14181f; --band:
  #1e242e; --rule: #37404e; --accent: #8ab8f0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
header, main { max-width: 76rem; margin: 0 auto; padding: 1.5rem; }
header { border-bottom: 1px solid var(--rule); }
h1 { margin: 0; font-size: 1.8rem; overflow-wrap: anywhere; }
h2 { margin: 2rem 0 .8rem; font-size: 1.3rem; }
p { max-width: 70ch; margin: .4rem 0; color: var(--soft); }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; margin-top: .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; }
caption { padding: .4rem 0; text-align: left; font-weight: 600; }
th, td { padding: .4rem .9rem; border-bottom: 1px solid var(--rule); text-align: left; }
thead th { background: var(--band); color: var(--soft); font-size: .9rem; }
tbody th { font-weight: 500; }
tbody tr:hover { background: var(--band); }
.number { text-align: right; }
.notes { margin: .3rem 0 1.4rem; color: var(--soft); font-size: .9rem; }
figure { margin: 1rem 0; padding: 1rem; background: var(--band); border: 1px solid var(--rule); border-radius: 8px; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
figcaption { margin-top: .6rem; color: var(--soft); font-size: .9rem; }
h3 { margin: 1.2rem 0 .3rem; font-size: 1rem; }
.verdict { margin: .3rem 0; color: var(--ink); font-weight: 500; }
.samples { display: flex; flex-wrap: wrap; gap: 0 1.2rem; align-items: flex-start; }
.newest { max-width: 100%; }
.newest img { max-height: 46rem; width: auto; }
.before { flex: 1 1 22rem; min-width: 0; }
figure label { position: relative; display: block; cursor: zoom-in; }
figure input { position: absolute; opacity: 0; width: 1px; height: 1px; }
figure input:focus-visible + img { outline: 3px solid var(--accent); }
.strip { display: flex; flex-wrap: wrap; gap: .6rem; overflow: auto; max-height: 42rem; align-items: flex-start; }
.strip figure { flex: none; margin: .3rem 0; padding: .6rem; }
.strip img { height: 12rem; width: auto; max-width: none; }
.strip input:checked + img { height: auto; max-height: 56rem; cursor: zoom-out; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1rem; align-items: start; }
.pair figure { margin: 0; overflow-x: auto; }
.pair figure:has(input:checked) { grid-column: 1 / -1; }
.pair input:checked + img { width: 100%; min-width: 60rem; max-width: none; cursor: zoom-out; }
.curves { columns: 30rem; column-gap: 1rem; }
.curves figure { margin: 0 0 1rem; overflow-x: auto; break-inside: avoid; }
.curves figure:has(input:checked) { column-span: all; }
.curves input:checked + img { width: 100%; min-width: 60rem; max-width: none; cursor: zoom-out; }
.facts { display: grid; grid-template-columns: max-content 1fr max-content 1fr; gap: .25rem 1.4rem; margin: 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--accent); }
code { font-size: .9em; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: 1rem; background: var(--band); border: 1px solid var(--rule); border-radius: 8px;
  font-size: .85rem; }
@media (max-width: 60rem) { .facts { grid-template-columns: max-content 1fr; } }
@media (max-width: 40rem) { header, main { padding: 1rem; } .facts { grid-template-columns: 1fr; } .facts dd { margin-bottom: .4rem; }
  table { font-size: .8rem; } th, td { padding: .35rem .3rem; } thead th { vertical-align: bottom; background: none; font-size: .72rem; }
  tbody th, thead th:first-child { position: sticky; left: 0; background: var(--paper); padding-left: 0; }
  .scroll { background: linear-gradient(to left, var(--paper) 1.2rem, transparent) right / 2.4rem 100% no-repeat local,
    linear-gradient(to left, var(--rule), transparent) right / .9rem 100% no-repeat scroll; }
  caption span { position: sticky; left: 0; display: inline-block; max-width: calc(100vw - 2rem); }
  .strip { flex-wrap: nowrap; } .strip img { height: 10rem; } }
.missing code { display: block; }
.missing { padding: .7rem 1rem; border-left: 3px solid var(--rule); background: var(--band); }
"""
