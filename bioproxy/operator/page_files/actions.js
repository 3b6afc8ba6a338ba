// Actions: a button that sends a POST, and the line at the bottom of the page that says what came of it.

import { byId, say } from "./dom.js";

/**
 * Send a POST for a button, which is disabled meanwhile, and show the result: the text `done`, or `failed` and why.
 * Returns whether it worked.
 */
export async function act(button, address, done, failed) {
  button.disabled = true;
  try {
    const answer = await fetch(address, { method: "POST" });
    announce(answer.ok ? done : `${failed}: ${(await answer.text()).trim()}`, !answer.ok);
    return answer.ok;
  } catch {
    announce(`${failed}: bioproxy cannot be reached.`, true);
    return false;
  } finally {
    button.disabled = false;
    button.focus({ preventScroll: true });
  }
}

let hide = 0;

/** Show a text for 8 seconds; screen readers announce it. */
export function announce(text, bad = false) {
  const said = byId("said");
  clearTimeout(hide);
  say(said, text);
  said.classList.toggle("bad", bad);
  hide = setTimeout(() => say(said, ""), 8000);
}
