// The filled text of a template, as llama-server would get it, in a dialog.

import { byId, say } from "./dom.js";
import { count } from "./words.js";

const SHOWN = 200_000; // characters; more would only make the browser slow
const PAUSE = 300; // milliseconds after the last key

let current = null, timer = 0, asked = 0;

/** Open the dialog. */
export function preview(name, prefix) {
  current = name;
  say(byId("h-preview"), `What llama-server gets for ${prefix}`);
  byId("preview-message").value = "";
  byId("preview-text").textContent = "";
  byId("preview").showModal();
  load();
}

async function load() {
  const mine = ++asked, about = byId("preview-about"), text = byId("preview-text");
  const message = byId("preview-message").value || "(the message)";
  say(about, "reading …");
  try {
    const address = `templates/${encodeURIComponent(current)}/render?message=${encodeURIComponent(message)}`;
    const answer = await fetch(address);
    const filled = await answer.text();
    if (mine !== asked) return; // another one was asked for since
    text.textContent = filled.slice(0, SHOWN);
    const cut = filled.length > SHOWN ? `, of which the first ${count(SHOWN)} are shown` : "";
    say(about, answer.ok ? `${count(filled.length)} characters${cut}` : `It cannot be filled (${answer.status}):`);
  } catch {
    if (mine === asked) say(about, "bioproxy cannot be reached.");
  }
}

// Focus goes back to the button that opened it, unless its template is gone by now.
byId("preview").addEventListener("close", () => {
  if (document.activeElement === document.body) byId("h-templates").focus();
});
byId("preview-close").addEventListener("click", () => byId("preview").close());
byId("preview-message").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(load, PAUSE);
});
