"""The frame and the style of an HTML report: light and dark, wide and narrow, nothing from outside."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
 script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root {
  color-scheme: light dark; --o: 0.6;
  --paper: #fff; --card: #f6f7f9; --ink: #1d232b; --soft: #5b6672; --rule: #dfe3e8; --accent: #0072b2; --over: #fff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --card: #1c2229; --ink: #e6eaef; --soft: #9aa6b2; --rule: #303944; --accent: #4aa8e0;
    --over: #0c1116;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 1160px; padding: 20px 16px 60px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.2rem; margin: 40px 0 12px; padding-top: 14px; border-top: 1px solid var(--rule); }
h3 { font-size: 0.92rem; font-weight: 600; margin: 0 0 6px; }
header p, figcaption, .facts span, .note { color: var(--soft); }
header p { margin: 0 0 10px; }
p { max-width: 75ch; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 0.9rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
img { max-width: 100%; height: auto; display: block; }
img.whole { background: #fff; border-radius: 6px; }
.box { overflow-x: auto; max-width: 100%; margin: 10px 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
.facts div { background: var(--card); border-radius: 10px; padding: 10px 14px; }
.facts b { display: block; font-size: 1.25rem; line-height: 1.3; }
.facts span { font-size: 0.85rem; }
table { border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 9px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child {
  white-space: normal; min-width: 8.5em; max-width: 18em; position: sticky; left: 0; background: var(--paper);
}
tr.strong td { font-weight: 600; }
.bar {
  display: inline-block; min-width: 92px; padding: 0 4px; border-radius: 3px;
  background: linear-gradient(to right, color-mix(in srgb, var(--accent) 28%, transparent) var(--w), transparent 0);
}
.heat { font-size: 0.8rem; margin-top: 4px; }
.heat th, .heat td { border: 0; padding: 0; }
.heat td {
  min-width: 32px; height: 30px; text-align: center; border: 1px solid var(--paper);
  background: color-mix(in srgb, var(--accent) calc(4% + 96% * var(--v)), var(--paper));
}
.heat td.full { color: var(--over); }
.heat tr > th:first-child {
  position: sticky; left: 0; padding-right: 8px; background: var(--paper); max-width: 130px; overflow: hidden;
  text-overflow: ellipsis; text-align: right; vertical-align: middle;
}
.heat th span {
  writing-mode: vertical-rl; transform: rotate(180deg); display: inline-block; max-height: 130px; overflow: hidden;
  text-overflow: ellipsis; padding: 6px 0; text-align: left;
}
.heat tr:first-child th { text-align: center; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 14px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 0.82rem; padding-top: 3px; }
.chart { background: var(--card); border-radius: 10px; padding: 8px 10px; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { font-size: 12.5px; fill: var(--soft); }
.grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.mark { stroke: var(--card); stroke-width: 1.5; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 8px 0; padding: 0; }
.legend li { font-size: 0.88rem; }
.legend i {
  display: inline-block; width: 0.85em; height: 0.85em; margin-right: 6px; border-radius: 2px;
  vertical-align: -0.08em; outline: 1px solid var(--rule);
}
.case { margin: 16px 0 22px; }
.cells { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(46%, 170px), 1fr)); gap: 8px; }
.strip { display: flex; gap: 6px; overflow-x: auto; padding-bottom: 6px; }
.strip figure { flex: 1 0 120px; max-width: 240px; }
.cell { background-size: 100% 100%; border-radius: 4px; overflow: hidden; }
.cell img { width: 100%; image-rendering: pixelated; }
.over img { opacity: var(--o); }
.opacity { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 12px; font-size: 0.9rem; color: var(--soft); }
input[type="range"] { width: 180px; accent-color: var(--accent); }
pre {
  background: var(--card); border-radius: 10px; padding: 12px 14px; font-size: 0.82rem; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 8px 0;
}
summary { cursor: pointer; color: var(--accent); padding: 6px 0; }
@media (max-width: 600px) {
  h1 { font-size: 1.4rem; }
}
</style>
</head>
<body>{body}</body>
</html>
"""
