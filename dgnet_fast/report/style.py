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
figure { margin: 1rem 0; padding: 1rem; background: var(--band); border: 1px solid var(--rule); border-radius:
8px; } figure img { display: block; max-width: 100%; height: auto; border-radius: 4px; } figcaption {
margin-top: .6rem; color: var(--soft); font-size: .9rem; } .facts { display: grid; grid-template-columns:
max-content 1fr; gap: .25rem 1.4rem; margin: 0; } .facts dt { color: var(--soft); } .facts dd { margin: 0;
overflow-wrap: anywhere; } summary { cursor: pointer; color: var(--accent); } pre { overflow-x: auto; padding:
1rem; background: var(--band); border: 1px solid var(--rule); border-radius: 8px;
  font-size: .85rem; }
.missing { padding: .7rem 1rem; border-left: 3px solid var(--rule); background: var(--band); }
"""
