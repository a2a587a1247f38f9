"""The page of `dgnet-fast demo`: HTML, style and script in one string, without outside files."""

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>dgnet_fast demo</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --ink: #1a202c; --soft: #4a5568; --paper: #fff; --band: #f4f6f9;
  --rule: #c5cdd8; --accent: #1f5fa8; --alarm: #a4271b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ecf2; --soft: #aeb8c6; --paper: #14181f;
  --band: #1e242e; --rule: #465060; --accent: #8ab8f0; --alarm: #ff9a8d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .2rem; font-size: 1.6rem; } h2 { margin: 1.6rem 0 .6rem; font-size: 1.15rem; }
p { margin: .2rem 0; color: var(--soft); }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
.drop { display: flex; flex-direction: column; align-items: center; justify-content: center; gap: .5rem; flex: 1 1 15rem;
  min-height: 13rem; padding: 1rem; border: 2px dashed var(--rule); border-radius: 8px; background: var(--band);
  text-align: center; cursor: pointer; }
.drop.over, .drop:focus-within { border-color: var(--accent); }
.drop input { position: absolute; opacity: 0; width: 1px; height: 1px; }
.drop img, figure img { height: 12rem; width: auto; image-rendering: pixelated; border-radius: 4px; }
.people img { height: 8rem; }
figure { margin: 0; padding: .7rem; background: var(--band); border: 1px solid var(--rule); border-radius: 8px;
  text-align: center; }
figcaption { margin-top: .35rem; max-width: 8.5rem; overflow-wrap: anywhere; color: var(--soft); font-size: .85rem; }
#message { min-height: 1.6rem; margin-top: .8rem; } #message.error { color: var(--alarm); }
</style>
</head>
<body>
<h1>dgnet_fast demo</h1>
<p>Drop two pictures of pedestrians. They stay on this machine.</p>
<p id="model">__MODEL__</p>
<div class="row" style="margin-top:1rem">
<label class="drop" data-name="a"><input type="file" accept="image/*" id="file-a"><span>Picture A: drop or choose</span></label>
<label class="drop" data-name="b"><input type="file" accept="image/*" id="file-b"><span>Picture B: drop or choose</span></label>
</div>
<p id="message" role="status" aria-live="polite"></p>
<div id="results" hidden>
<h2>Swaps</h2><div class="row" id="swaps"></div>
<div id="nearest"></div>
</div>
<script>
"use strict";
const files = {}, message = document.getElementById("message");
let asked = 0;
function say(text, error) { message.textContent = text; message.className = error ? "error" : ""; }
function figure(source, caption) {
  const made = document.createElement("figure"), picture = document.createElement("img"),
        text = document.createElement("figcaption");
  picture.src = source; picture.alt = caption; text.textContent = caption; made.append(picture, text); return made;
}
function take(drop, file) {
  if (!file) return;
  files[drop.dataset.name] = file;
  const picture = drop.querySelector("img") || drop.insertBefore(document.createElement("img"), drop.firstChild);
  if (picture.src) URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(file);
  picture.alt = "Picture " + drop.dataset.name.toUpperCase();
  drop.querySelector("span").textContent = file.name;
  if (files.a && files.b) send();
}
for (const drop of document.querySelectorAll(".drop")) {
  drop.addEventListener("dragover", event => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", event => {
    event.preventDefault(); drop.classList.remove("over"); take(drop, event.dataTransfer.files[0]); });
  drop.querySelector("input").addEventListener("change", event => take(drop, event.target.files[0]));
}
async function send() {
  const mine = ++asked, form = new FormData();
  form.append("a", files.a); form.append("b", files.b);
  say("Generating …");
  let answer;
  try {
    const response = await fetch("swap", { method: "POST", body: form });
    answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
  } catch (error) { if (mine === asked) { document.getElementById("results").hidden = true; say(error.message, true); } return; }
  if (mine !== asked) return;
  document.getElementById("swaps").replaceChildren(
    ...answer.pictures.map(one => figure(one.picture, one.caption)));
  document.getElementById("nearest").replaceChildren(...answer.nearest.flatMap(group => {
    const title = document.createElement("h2"), row = document.createElement("div");
    title.textContent = group.title; row.className = "row people";
    row.append(...group.people.map(one => figure(one.picture, one.caption)));
    return [title, row];
  }));
  document.getElementById("results").hidden = false;
  say("Done in " + answer.seconds.toFixed(2) + " s.");
}
</script>
</body>
</html>
"""
