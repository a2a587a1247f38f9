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
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .2rem; font-size: 1.6rem; } h2 { margin: 1.6rem 0 .6rem; font-size: 1.15rem; }
p { margin: .2rem 0; color: var(--soft); }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
.drop { display: flex; flex-direction: column; align-items: center; justify-content: center; gap: .5rem; flex: 1 1 15rem;
  min-height: 13rem; padding: 1rem; border: 2px dashed var(--rule); border-radius: 8px; background: var(--band);
  text-align: center; cursor: pointer; }
.drop.over, .drop:focus-within { border-color: var(--accent); }
.drop input { position: absolute; opacity: 0; width: 1px; height: 1px; }
.drop img, figure img { height: 12rem; width: auto; max-width: 100%; border-radius: 4px; }
#swaps img { height: min(26rem, 60vh); } .path img { height: 13rem; } .people img { height: 9rem; }
.path { flex-wrap: nowrap; overflow-x: auto; } .path figure { flex: none; padding: .4rem; }
.examples { flex-wrap: nowrap; overflow-x: auto; padding: .3rem 0; gap: .5rem; }
.examples button { flex: none; padding: .2rem; border: 2px solid var(--rule); border-radius: 8px; background: var(--band);
  cursor: pointer; }
.examples button:hover, .examples button:focus-visible { border-color: var(--accent); }
.examples img { display: block; height: 6.5rem; border-radius: 4px; }
@media (max-width: 40rem) { body { padding: 1rem; } .drop { min-height: 9rem; flex-basis: 9rem; } .drop img { height: 9rem; }
  #swaps { gap: .5rem; } #swaps figure { flex: 1 1 8rem; padding: .5rem; } #swaps img { height: auto; width: 100%; }
  .people { flex-wrap: nowrap; overflow-x: auto; } .people figure { flex: none; max-width: 9rem; } }
figure { margin: 0; padding: .7rem; background: var(--band); border: 1px solid var(--rule); border-radius: 8px;
  text-align: center; }
figcaption { margin: .35rem auto 0; max-width: 16rem; overflow-wrap: anywhere; color: var(--soft); font-size: .85rem; }
#message { min-height: 1.6rem; margin-top: .8rem; }
#message.error { padding: .6rem .9rem; border-left: 4px solid var(--alarm); background: var(--band); color: var(--alarm); }
</style>
</head>
<body>
<h1>dgnet_fast demo</h1>
<p>Drop two pictures of pedestrians, or click two of the examples. Your pictures stay on this machine.</p>
<p id="model">__MODEL__</p>
<div class="row" style="margin-top:1rem">
<label class="drop" data-name="a"><input type="file" accept="image/*" id="file-a"><span>Picture A: drop or choose</span></label>
<label class="drop" data-name="b"><input type="file" accept="image/*" id="file-b"><span>Picture B: drop or choose</span></label>
</div>
<div class="row examples" id="examples" role="group" aria-label="Example pictures"></div>
<p id="message" role="status" aria-live="polite"></p>
<div id="results" hidden>
<h2>Swaps</h2><div class="row" id="swaps"></div>
<h2>From the appearance of A to that of B, in the structure of A</h2><div class="row path" id="path"></div>
<div id="nearest"></div>
</div>
<script>
"use strict";
const files = {}, message = document.getElementById("message");
let asked = 0, next = "a";
function say(text, error) { message.textContent = text; message.className = error ? "error" : ""; }
function figure(source, caption) {
  const made = document.createElement("figure"), picture = document.createElement("img"),
        text = document.createElement("figcaption");
  picture.src = source; picture.alt = caption; text.textContent = caption; made.append(picture, text); return made;
}
function take(drop, file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) { say(file.name + " is no picture.", true); return; }
  files[drop.dataset.name] = file;
  next = drop.dataset.name === "a" ? "b" : "a";
  const picture = drop.querySelector("img") || drop.insertBefore(document.createElement("img"), drop.firstChild);
  if (picture.src) URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(file);
  picture.alt = "Picture " + drop.dataset.name.toUpperCase();
  picture.onerror = () => picture.remove();
  drop.querySelector("span").textContent = drop.dataset.name.toUpperCase() + ": " + file.name;
  if (files.a && files.b) send(); else say("Now picture " + next.toUpperCase() + ".");
}
function fileOf(url, name) {
  const bytes = Uint8Array.from(atob(url.split(",")[1]), one => one.charCodeAt(0));
  return new File([bytes], name, { type: "image/png" });
}
__EXAMPLES__.forEach((url, number) => {
  const button = document.createElement("button"), picture = document.createElement("img");
  const name = "example " + (number + 1);
  picture.src = url; picture.alt = name; button.type = "button"; button.title = name; button.append(picture);
  button.addEventListener("click", () =>
    take(document.querySelector(`.drop[data-name=${next}]`), fileOf(url, name)));
  document.getElementById("examples").append(button);
});
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
    answer = await response.json().catch(() => ({ error: "The server answered with status " + response.status + "." }));
    if (!response.ok) throw new Error(answer.error);
  } catch (error) {
    if (mine === asked) {
      document.getElementById("results").hidden = true;
      say(error instanceof TypeError ? "The server does not answer; is the command still running?" : error.message, true);
    }
    return;
  }
  if (mine !== asked) return;
  document.getElementById("swaps").replaceChildren(
    ...answer.pictures.map(one => figure(one.picture, one.caption)));
  document.getElementById("path").replaceChildren(...answer.path.map(one => figure(one.picture, one.caption)));
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
