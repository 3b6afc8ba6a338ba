// Four plots of the last hour, drawn by uPlot (vendor/uplot), and the same numbers as a table.
//
// A point is [time, queue, ttft, cached, computed, saved], see `Point` in bioproxy/operator/history.py: seconds, requests,
// seconds, tokens, tokens, seconds.  A quiet period has points only at its two ends, so lines connect over gaps.

import { byId, el, say } from "./dom.js";
import { clock, now } from "./time.js";
import { count, duration, percent } from "./words.js";

const HOUR = 3600, SHORTEST = 180, HEIGHT = 104; // seconds, seconds, pixels
const share = (point) => (point[3] + point[4] ? point[3] / (point[3] + point[4]) : null);
const { stepped, linear } = uPlot.paths;
const last = (values) => values.findLast((value) => value !== null) ?? null;
const most = (values) => Math.max(0, ...values.filter((value) => value !== null));

const PLOTS = [
  { title: "Waiting requests", colour: "--plot-queue", value: (point) => point[1], path: stepped({ align: -1 }), fill: true,
    least: 4, format: (value) => count(value), whole: true,
    sum: (values) => `now ${count(last(values) ?? 0)}, most ${count(most(values))}` },
  { title: "Time to first token", colour: "--plot-ttft", value: (point) => point[2], path: linear(), dots: true,
    least: 0.1, format: duration, sum: (values) => (last(values) === null ? "no answers yet" : `last ${duration(last(values))}, longest ${duration(most(values))}`) },
  { title: "Prompt tokens from cache", colour: "--plot-share", value: share, path: linear(), dots: true,
    least: 1, format: percent, sum: (values, points) => {
      const [cached, computed] = [3, 4].map((index) => points.reduce((total, point) => total + point[index], 0));
      return cached + computed ? `${percent(cached / (cached + computed))} of ${count(cached + computed)}` : "no prompts yet";
    } },
  { title: "Computing time saved", colour: "--plot-saved", value: (point) => point[5], path: linear(), fill: true,
    least: 1, format: duration, sum: (values) => `${duration(last(values) ?? 0)} in total` },
];

let points = [], drawn = [], moved = 0;

/** Show new points; `waiting` is the number of waiting requests now. */
export function showPlots(history, waiting) {
  points = history;
  if (!drawn.length) drawn = PLOTS.map(figure);
  draw(waiting);
  if (byId("numbers").open) table();
}

/** Move the time axis, every five seconds. */
export function movePlots(waiting) {
  if (drawn.length && now() - moved >= 5) draw(waiting);
}

function draw(waiting) {
  moved = now();
  // The total saved has not changed since the last point: otherwise there would be a newer point.
  const shown = points.length ? [...points, [moved, waiting, null, 0, 0, points.at(-1)[5]]] : [];
  const times = shown.map((point) => point[0]);
  for (const { spec, plot, caption, box } of drawn) {
    const values = shown.map(spec.value);
    const text = spec.sum(values, shown);
    say(caption, text);
    box.setAttribute("aria-label", `${spec.title}: ${text}`);
    plot.setData([times, values]);
  }
}

/** The period shown: the last hour, or less while there is less data, but at least three minutes. */
function range() {
  const end = now(), first = points[0]?.[0] ?? end;
  return [Math.max(end - HOUR, Math.min(first, end - SHORTEST)), end];
}

function figure(spec) {
  const caption = el("span", { class: "now" });
  const box = el("div", { class: "plot", role: "img" });
  byId("plot-list").append(el("figure", {}, el("figcaption", {}, el("span", {}, spec.title), caption), box));
  const colour = (name) => () => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = { stroke: colour("--muted"), font: "11px system-ui, sans-serif", ticks: { show: false } };
  const options = {
    width: box.clientWidth || 300, height: HEIGHT, legend: { show: false }, padding: [8, 18, 0, 0],
    cursor: { show: false },
    scales: { x: { range }, y: { range: (_, low, high) => [0, Math.max(spec.least, (high ?? 0) * 1.05)] } },
    axes: [
      { ...axis, size: 20, gap: 3, grid: { show: false }, space: 50, incrs: [60, 300, 600, 900, 1800],
        values: (plot, splits) => splits.map((at) => (plot.valToPos(at, "x") < 14 ? "" : clock(at))) },
      { ...axis, size: 52, gap: 6, grid: { stroke: colour("--line"), width: 1 }, space: 34,
        incrs: spec.whole ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] : undefined,
        values: (_, splits) => splits.map((value) => spec.format(value)) },
    ],
    series: [{}, {
      stroke: colour(spec.colour), width: 2, spanGaps: true, paths: spec.path,
      fill: spec.fill ? colour(`${spec.colour}-fill`) : undefined,
      points: spec.dots ? { show: true, size: 5, fill: colour(spec.colour) } : { show: false },
    }],
  };
  const plot = new uPlot(options, [[], []], box);
  new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height: HEIGHT })).observe(box);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.redraw());
  return { spec, plot, caption, box };
}

function table() {
  byId("number-rows").replaceChildren(...points.toReversed().slice(0, 200).map((point) =>
    el("tr", {}, el("th", { scope: "row" }, clock(point[0])), ...PLOTS.map(({ value, format }) => {
      const found = value(point);
      return el("td", {}, found === null ? "–" : format(found));
    }))));
}

byId("numbers").addEventListener("toggle", () => { if (byId("numbers").open) table(); });
