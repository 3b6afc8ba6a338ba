// Ages and durations.  The proxy sends moments ("since"), never ages, so that it has nothing to send while nothing happens;
// the counting is done here, once a second, by the proxy's time of day.  That may be set while it runs, and the browser's too;
// what is drawn goes by the proxy's other clock, which goes one way only, and between events by the browser's such clock.

import { say } from "./dom.js";
import { span } from "./words.js";

const opened = () => performance.now() / 1000; // seconds since this page was opened
let day = 0, steady = 0; // what the proxy's two clocks said when that was 0

/** Learn what time it is for the proxy: the time of day, and the seconds of its clock. */
export function setClock(iso, seconds) {
  day = Date.parse(iso) / 1000 - opened();
  steady = seconds - opened();
}

/** The time of the proxy's clock, in seconds. */
export const now = () => steady + opened();

export const secondsSince = (iso) => day + opened() - Date.parse(iso) / 1000;

/** The time of day at a time of the proxy's clock. */
export const clock = (seconds) =>
  new Date((seconds - steady + day) * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** Bring all times on the page up to date. */
export function tick() {
  for (const node of document.querySelectorAll("time[data-age]")) {
    const seconds = secondsSince(node.dateTime);
    const ago = seconds < 2 ? "just now" : `${span(seconds)} ago`;
    say(node, node.dataset.age === "ago" ? ago : span(seconds));
    if (!node.title) node.title = new Date(node.dateTime).toLocaleString();
  }
}
