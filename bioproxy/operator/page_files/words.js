// Numbers and codes as a person wants to read them.

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

/** The same without fractions, for what is counted while one looks. */
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

export const percent = (share) => `${Math.round(share * 100)} %`;

/** The last part of a path. */
export const fileName = (path) => (path ?? "").split(/[\\/]/).pop() || path;

/** Why a request was cold. */
export const MISSES = {
  "first": "asked for the first time",
  "no-file": "its slot file is gone",
  "other-model": "its file is of another model",
  "content-changed": "the template's text changed",
  "shape-changed": "another system message, or other tools",
  "slot-taken": "others took the slot, and there is no file",
  "ineffective": "restoring does not help with this model",
};

export const CACHES = { hot: "hot", restored: "restored", cold: "cold" };

export const STATES = { warm: "warm", warming: "warming", cold: "cold", error: "error" };

/** What a status means beyond its number. */
export function statusWord(status) {
  if (status === 499) return "client hung up";
  if (status === 502) return "llama-server failed";
  if (status === 503) return "unavailable";
  if (status === 504) return "no sign of life";
  if (status === 0) return "no answer";
  return status >= 500 ? "error" : status >= 400 ? "refused" : "";
}
