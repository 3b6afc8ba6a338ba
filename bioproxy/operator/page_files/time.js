// Ages and durations.  bioproxy sends moments ("since"), never ages, so that it has nothing to send while nothing happens.
// Ages are computed here, once a second, with bioproxy's time of day.  The time of day of both machines may be set at any
// time, so plots use bioproxy's monotonic clock, and between two events the browser's monotonic clock.

import { say } from "./dom.js";
import { span } from "./words.js";

const opened = () => performance.now() / 1000; // seconds since this page was opened
let day = 0, steady = 0; // bioproxy's two clocks, in seconds, when the page was opened

/** Set both clocks from an event: bioproxy's time of day, and the seconds of its monotonic clock. */
export function setClock(iso, seconds) {
  day = Date.parse(iso) / 1000 - opened();
  steady = seconds - opened();
}

/** bioproxy's monotonic clock now, in seconds. */
export const now = () => steady + opened();

export const secondsSince = (iso) => day + opened() - Date.parse(iso) / 1000;

/** The time of day at a time of bioproxy's monotonic clock. */
export const clock = (seconds) =>
  new Date((seconds - steady + day) * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** Update all ages on the page. */
export function tick() {
  for (const node of document.querySelectorAll("time[data-age]")) {
    const seconds = secondsSince(node.dateTime);
    const ago = seconds < 2 ? "just now" : `${span(seconds)} ago`;
    say(node, node.dataset.age === "ago" ? ago : span(seconds));
    if (!node.title) node.title = new Date(node.dateTime).toLocaleString();
  }
}
