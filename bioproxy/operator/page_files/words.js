// Numbers, units and codes as human-readable text.

const whole = new Intl.NumberFormat("en");

export const count = (number) => (number === null || number === undefined ? "–" : whole.format(number));

export const plural = (number, one, more) => `${count(number)} ${number === 1 ? one : more}`;

/** A duration in seconds: "85 ms", "1.2 s", "34 s", "5 min", "2 h 10 min", "3 d". */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds === 0) return "0 s";
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  return span(seconds);
}

/** The same in whole units, for durations that are updated every second. */
export function span(seconds) {
  const all = Math.max(0, Math.floor(seconds));
  if (all < 120) return `${all} s`;
  const minutes = Math.floor(all / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d`;
}

export const milliseconds = (ms) => duration(ms === null || ms === undefined ? null : ms / 1000);

/** What being warm is worth: "cold 34 s, now 0.4 s"; `null` where that is not known, or not worth telling. */
export function worth({ cold_s, now_s }) {
  if (cold_s === null || cold_s < TOLD) return null;
  return `cold ${seconds(cold_s)}${now_s === null ? "" : `, now ${seconds(now_s)}`}`;
}

/** What a request has saved: "would have taken 12.4 s, took 0.4 s"; `null` where that is not worth telling. */
export function saving({ saved_s, total_ms, restore_ms }) {
  if (saved_s === null || saved_s < TOLD || total_ms === null) return null;
  // Without bioproxy nothing would have been restored from a file either.
  const without = saved_s + (total_ms - (restore_ms ?? 0)) / 1000;
  return `would have taken ${seconds(without)}, took ${seconds(total_ms / 1000)}`;
}

const TOLD = 0.1; // seconds; less than that nobody feels

/** Seconds to be compared with others: with one decimal place, unless they are very few or very many. */
const seconds = (number) => (number >= 0.095 && number < 99.95 ? `${number.toFixed(1)} s` : duration(number));

export const percent = (share) => `${Math.round(share * 100)} %`;

const UNITS = ["B", "KB", "MB", "GB", "TB", "PB"]; // each is 1024 times the one before, as in the settings

/** A number of bytes as number and unit: ["1.4", "GB"]. */
function inUnits(bytes) {
  let unit = 0;
  while (bytes >= 1023.95 && unit < UNITS.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return [unit ? bytes.toFixed(1) : String(Math.round(bytes)), UNITS[unit]];
}

/** A size: "310.2 MB". */
export const size = (bytes) => inUnits(bytes).join(" ");

/** A size and its limit: "1.4 of 8.0 GB", "310.2 MB of 8.0 GB". */
export function sizeOf(bytes, limit) {
  const [number, unit] = inUnits(bytes), most = inUnits(limit);
  return `${number}${unit === most[1] ? "" : ` ${unit}`} of ${most.join(" ")}`;
}

/** The file name of a path. */
export const fileName = (path) => (path ?? "").split(/[\\/]/).pop() || path;

/** Whether the llama.cpp that bioproxy starts itself is on its way, and nothing is wrong with it. */
export const isStarting = ({ up, child }) => !up && child !== null && child.trouble === null && child.state !== "running";

/** Why a request was cold, by the code in `miss`. */
export const MISSES = {
  "first": "first use",
  "warming": "its warm-up was not finished",
  "no-file": "its slot file is missing",
  "other-model": "its slot file was made with another model",
  "content-changed": "the template's text changed",
  "shape-changed": "another system message or other tools",
  "slot-taken": "another request used the slot, and there is no slot file",
  "ineffective": "nothing was reused",
};

export const CACHES = { hot: "hot", restored: "restored", cold: "cold" };

export const STATES = { warm: "warm", warming: "warming", cold: "cold", error: "error" };

/** The meaning of an HTTP status, in words; 499 and 0 are bioproxy's own. */
export function statusWord(status) {
  if (status === 499) return "client disconnected";
  if (status === 502) return "llama-server failed";
  if (status === 503) return "unavailable";
  if (status === 504) return "llama-server unresponsive";
  if (status === 0) return "no answer";
  return status >= 500 ? "error" : status >= 400 ? "refused" : "";
}
