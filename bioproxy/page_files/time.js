// Ages and durations.  The proxy sends moments ("since"), never ages, so that it has nothing to send while nothing happens;
// the counting is done here, once a second, by the proxy's clock.

import { say } from "./dom.js";
import { span } from "./words.js";

let ahead = 0; // milliseconds that the proxy's clock is ahead of the browser's

/** Learn what time it is for the proxy. */
export const setClock = (iso) => { ahead = Date.parse(iso) - Date.now(); };

/** The proxy's time, in seconds since 1970. */
export const now = () => (Date.now() + ahead) / 1000;

export const secondsSince = (iso) => now() - Date.parse(iso) / 1000;

/** The time of day. */
export const clock = (seconds) =>
  new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** Bring all times on the page up to date. */
export function tick() {
  for (const node of document.querySelectorAll("time[data-age]")) {
    const seconds = secondsSince(node.dateTime);
    const ago = seconds < 2 ? "just now" : `${span(seconds)} ago`;
    say(node, node.dataset.age === "ago" ? ago : span(seconds));
    if (!node.title) node.title = new Date(node.dateTime).toLocaleString();
  }
}
