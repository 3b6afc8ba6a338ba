// A dialog with the filled text of a template, as llama-server would get it.

import { byId, say } from "./dom.js";
import { count } from "./words.js";

const SHOWN = 200_000; // characters; more would make the browser slow
const PAUSE = 300; // milliseconds after the last key until the text is loaded

let current = null, timer = 0, asked = 0;

/** Open the dialog for a template. */
export function preview(name, prefix) {
  current = name;
  say(byId("h-preview"), `Filled text of ${prefix}`);
  byId("preview-message").value = "";
  byId("preview-text").textContent = "";
  byId("preview").showModal();
  load();
}

async function load() {
  const mine = ++asked, about = byId("preview-about"), text = byId("preview-text");
  const message = byId("preview-message").value || "(the message)";
  say(about, "loading …");
  try {
    const address = `templates/${encodeURIComponent(current)}/render?message=${encodeURIComponent(message)}`;
    const answer = await fetch(address);
    const filled = await answer.text();
    if (mine !== asked) return; // a newer text was requested meanwhile
    text.textContent = filled.slice(0, SHOWN);
    const cut = filled.length > SHOWN ? `; the first ${count(SHOWN)} are shown` : "";
    say(about, answer.ok ? `${count(filled.length)} characters${cut}` : `The template cannot be filled (status ${answer.status}):`);
  } catch {
    if (mine === asked) say(about, "bioproxy cannot be reached.");
  }
}

// The browser returns the focus to the button that opened the dialog, unless its template was removed meanwhile.
byId("preview").addEventListener("close", () => {
  if (document.activeElement === document.body) byId("h-templates").focus();
});
byId("preview-close").addEventListener("click", () => byId("preview").close());
byId("preview-message").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(load, PAUSE);
});
