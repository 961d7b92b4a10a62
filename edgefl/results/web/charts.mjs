// Draws the charts of a page from the values inside it, as SVG. No dependency, no network, and no text becomes markup.
//
// A run is {name, target, charts: [{key, title, unit, against: [axis], lines: [{name, round, bytes, seconds, value}]}]};
// edgefl/results/curves.py writes it. Charts of one key are drawn over each other, whatever runs they are of.

const WIDTH = 420, HEIGHT = 240;
const PLOT = { left: 54, right: 408, top: 12, bottom: 206 };  // the same in every chart: axes are aligned
const COLOURS = 12;
const MARKED = 40;  // points of a line that are drawn as dots
const DECADES = 3;  // values that span more have a logarithmic axis
const AXES = { round: ["round", "number"], bytes: ["bytes on the wire, up and down", "bytes"], seconds: ["time", "seconds"] };

// --- numbers -----------------------------------------------------------------------------------------------------

/** In what a unit is shown where the greatest value is `most`: [how much one is, its sign]. */
export function measure(unit, most) {
  if (unit === "share") return [0.01, " %"];
  if (unit === "bytes") {
    const power = Math.min(4, Math.max(0, Math.floor(Math.log2(Math.max(1, most)) / 10)));
    return [1024 ** power, " " + ["B", "KiB", "MiB", "GiB", "TiB"][power]];
  }
  if (unit === "seconds") return most >= 7200 ? [3600, " h"] : most >= 300 ? [60, " min"] : [1, " s"];
  return [1, ""];
}

/** Round numbers from `low` to `high`, about `count` of them, the ends among them or outside. */
export function ticks(low, high, count = 5) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.999);
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Powers of ten around `low` to `high`, both above 0; every second or third where there are many. */
export function decades(low, high) {
  const first = Math.floor(Math.log10(low) + 1e-9), last = Math.ceil(Math.log10(high) - 1e-9);
  const step = Math.max(1, Math.ceil((last - first) / 6));
  return Array.from({ length: Math.ceil((last - first) / step) + 1 }, (_, i) => Number(`1e${first + i * step}`));
}

/** A number as people write it: four digits that count, no more. */
export function written(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e7) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  if (size >= 1000) return Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, ",");
  return String(Number(value.toPrecision(4)));
}

/** A value with its unit: "97.22 %", "1.5 MiB". */
export function shown(value, unit, most = Math.abs(value)) {
  const [one, sign] = measure(unit, most);
  return written(value / one) + sign;
}

/** The axis for values from `low` to `high`: {from, to, at, place}, place(value) being 0 to 1. */
export function axisOf(low, high, unit, { logarithmic = false, count = 5, whole = false } = {}) {
  if (logarithmic) {
    const at = decades(low, high);
    const [from, to] = [at[0], at[at.length - 1]];
    return { from, to, at, place: (value) => Math.log(value / from) / Math.log(to / from) };
  }
  const [one] = measure(unit, Math.max(Math.abs(low), Math.abs(high)));
  let at = ticks(low / one, high > low ? high / one : low / one + 1, count).map((tick) => tick * one);
  if (whole || (unit === "bytes" && one === 1)) at = at.filter(Number.isInteger);
  const [from, to] = [at[0], at[at.length - 1]];
  return { from, to, at, place: (value) => (value - from) / (to - from) };
}

/** The index of the number nearest to `x` in a sorted list; -1 of an empty one. */
export function nearest(sorted, x) {
  let [low, high] = [0, sorted.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= x) low = middle; else high = middle;
  }
  return high >= 0 && Math.abs(sorted[high] - x) < Math.abs(sorted[low] - x) ? high : Math.min(low, high);
}

/** The charts of some runs over each other: [{title, unit, axis, target, dashed, lines}], a line
 * being {name, colour, run, x, y}.
 *
 * Runs are told apart by their dashes; where each has one line only, by its colour too. */
export function figures(runs) {
  const keys = [...new Set(runs.flatMap((run) => run.charts.map((chart) => chart.key)))];
  return keys.flatMap((key) => {
    const found = runs.map((run) => run.charts.find((chart) => chart.key === key));
    const first = found.find(Boolean);
    const names = [...new Set(found.flatMap((chart) => (chart ? chart.lines.map((line) => line.name) : [])))];
    const alone = names.length === 1 && names[0] === "";
    const targets = key === "accuracy" ? runs.map((run) => run.target) : [];
    return first.against.map((axis) => ({
      title: first.title,
      unit: first.unit,
      axis,
      target: targets.find((target) => target !== null && target !== undefined) ?? null,
      dashed: !alone && runs.length > 1 ? runs[1].name : "",
      lines: found.flatMap((chart, run) => (chart ? chart.lines : []).map((line) => ({
        name: alone ? (runs.length > 1 ? runs[run].name : "") : line.name + (run ? ", dashed" : ""),
        colour: (alone ? run : names.indexOf(line.name)) % COLOURS,
        run,
        x: line[axis],
        y: line.value,
      }))),
    }));
  });
}

/** The axes of a figure. `most`: the greatest x of all figures of this axis, so that they are aligned. */
export function axes(figure, most) {
  const values = figure.lines.flatMap((line) => line.y);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const logarithmic = figure.unit === "number" && low > 0 && high / low > 10 ** DECADES;
  const x = axisOf(0, most, AXES[figure.axis][1], { count: 6, whole: figure.axis === "round" });
  const y = figure.unit === "share" ? axisOf(0, 1, "share")
    : axisOf(logarithmic ? low : Math.min(0, low), high, figure.unit, { logarithmic });
  return { x, y };
}

/** The greatest x of the figures of each axis. */
export function reach(all) {
  const most = {};
  for (const { axis, lines } of all) {
    for (const { x } of lines) most[axis] = Math.max(most[axis] ?? 0, x[x.length - 1] ?? 0);
  }
  return most;
}

// --- drawing -----------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

function element(name, className = "", text = null) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== null) made.textContent = text;
  return made;
}

const across = (axis, value) => PLOT.left + axis.place(value) * (PLOT.right - PLOT.left);
const up = (axis, value) => PLOT.bottom - axis.place(value) * (PLOT.bottom - PLOT.top);
const point = (value) => Number(value.toFixed(2));

/** Draw the charts of `runs` into `container`, in place of what is there. */
export function draw(container, runs) {
  const all = figures(runs);
  const most = reach(all);
  const drawn = [];
  const show = (axis, x, here) => drawn.forEach((one) => one.show(one.axis === axis ? x : null, one === here));
  for (const figure of all) drawn.push(drawFigure(figure, most[figure.axis], show));
  container.replaceChildren(...drawn.map((one) => one.node));
}

function drawFigure(figure, most, show) {
  const { x, y } = axes(figure, most);
  const node = element("figure", "chart");
  const picture = frame(x, y, AXES[figure.axis], figure.unit);
  const by = figure.axis === "round" ? "" : figure.axis === "bytes" ? " by bytes" : " by time";
  node.append(element("figcaption", "", figure.title + by));
  if (figure.target !== null) drawTarget(picture, y, figure.target);
  for (const line of figure.lines) drawLine(picture, line, x, y);
  picture.setAttribute("role", "img");
  picture.setAttribute("tabindex", "0");
  picture.setAttribute("aria-label", described(figure));
  const cursor = svg("line", { class: "cursor", y1: PLOT.top, y2: PLOT.bottom, x1: 0, x2: 0, visibility: "hidden" });
  picture.append(cursor);
  const tip = element("div", "tip");
  tip.setAttribute("aria-live", "polite");
  tip.hidden = true;
  const inside = element("div", "plot");
  inside.append(picture, tip);
  node.append(inside);
  if (figure.lines.length > 1 || figure.lines[0].name) node.append(legend(figure));
  node.append(valuesOf(figure));

  const places = [...new Set(figure.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const one = {
    node,
    axis: figure.axis,
    show(value, here) {
      cursor.setAttribute("visibility", value === null ? "hidden" : "visible");
      tip.hidden = value === null || !here;
      if (value === null) return;
      const at = across(x, value);
      cursor.setAttribute("x1", at);
      cursor.setAttribute("x2", at);
      if (!here) return;
      fillTip(tip, figure, value);
      const right = at > WIDTH / 2;
      tip.style.left = right ? "" : `${(100 * at) / WIDTH + 2}%`;
      tip.style.right = right ? `${100 - (100 * at) / WIDTH + 2}%` : "";
    },
  };
  let current = null;
  const go = (value) => { current = value; show(figure.axis, value, one); };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const share = (((event.clientX - box.left) / box.width) * WIDTH - PLOT.left) / (PLOT.right - PLOT.left);
    go(places[nearest(places, x.from + share * (x.to - x.from))]);
  });
  picture.addEventListener("pointerleave", () => go(null));
  picture.addEventListener("blur", () => go(null));
  picture.addEventListener("keydown", (event) => {
    const last = places.length - 1, now = current === null ? -1 : nearest(places, current);
    const next = { ArrowRight: now + 1, ArrowLeft: now < 0 ? last : now - 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") go(null);
    if (next === undefined) return;
    event.preventDefault();
    go(places[Math.min(last, Math.max(0, next))]);
  });
  return one;
}

/** An empty chart: its grid, ticks and words. */
function frame(x, y, [title, xUnit], yUnit) {
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}` });
  for (const value of y ? y.at : []) {
    const at = point(up(y, value));
    picture.append(svg("line", { class: "grid", x1: PLOT.left, x2: PLOT.right, y1: at, y2: at }));
    picture.append(svg("text", { x: PLOT.left - 6, y: at + 4, "text-anchor": "end" }, shown(value, yUnit, y.to)));
  }
  for (const value of x.at) {
    const at = point(across(x, value));
    picture.append(svg("line", { class: "tick", x1: at, x2: at, y1: PLOT.bottom, y2: PLOT.bottom + 4 }));
    const words = written(value / measure(xUnit, x.to)[0]);
    picture.append(svg("text", { x: at, y: PLOT.bottom + 16, "text-anchor": "middle" }, words));
  }
  picture.append(svg("line", { class: "axis", x1: PLOT.left, x2: PLOT.right, y1: PLOT.bottom, y2: PLOT.bottom }));
  const sign = measure(xUnit, x.to)[1].trim();
  const words = sign ? `${title} (${sign})` : title;
  picture.append(svg("text", { class: "title", x: PLOT.right, y: HEIGHT - 3, "text-anchor": "end" }, words));
  return picture;
}

function drawTarget(picture, y, target) {
  const at = point(up(y, target));
  picture.append(svg("line", { class: "target", x1: PLOT.left, x2: PLOT.right, y1: at, y2: at }));
  const words = `target ${shown(target, "share")}`;
  picture.append(svg("text", { class: "aim", x: PLOT.right, y: at + 13, "text-anchor": "end" }, words));
}

function drawLine(picture, line, x, y) {
  const points = line.x.map((value, i) => `${point(across(x, value))},${point(up(y, line.y[i]))}`);
  const kind = `c${line.colour} run${Math.min(1, line.run)}`;
  picture.append(svg("polyline", { class: `line ${kind}`, points: points.join(" ") }));
  if (points.length > MARKED) return;
  for (const each of points) {
    const [cx, cy] = each.split(",");
    picture.append(svg("circle", { class: `dot ${kind}`, cx, cy, r: 2 }));
  }
}

function legend({ lines, dashed }) {
  const list = element("ul", "legend");
  const solid = new Set(lines.filter((line) => line.run === 0).map((line) => line.colour));
  for (const line of lines) {
    if (dashed && line.run > 0 && solid.has(line.colour)) continue;
    const item = element("li");
    const key = svg("svg", { viewBox: "0 0 20 8", "aria-hidden": "true" });
    key.append(svg("line", { class: `line c${line.colour} run${Math.min(1, line.run)}`, x1: 0, x2: 20, y1: 4, y2: 4 }));
    item.append(key, dashed ? line.name.replace(/, dashed$/, "") : line.name);
    list.append(item);
  }
  if (dashed) list.append(element("li", "", `dashed: ${dashed}`));
  return list;
}

function fillTip(tip, figure, value) {
  tip.replaceChildren(element("b", "", placeWords(figure.axis, value)));
  for (const line of figure.lines) {
    const i = nearest(line.x, value);
    if (i < 0 || (line.x[i] !== value && figure.lines.length === 1)) continue;
    const row = element("div", `c${line.colour}`);
    const name = line.x[i] === value ? line.name : `${line.name} (${placeWords(figure.axis, line.x[i])})`;
    row.append(element("span", "", name), element("span", "value", shown(line.y[i], figure.unit)));
    tip.append(row);
  }
}

function placeWords(axis, value) {
  return axis === "round" ? `round ${written(value)}` : shown(value, axis);
}

/** A chart for who does not see it. */
function described(figure) {
  const words = figure.lines.slice(0, COLOURS).map(({ name, x, y }) => {
    const last = y.length - 1;
    const from = `${shown(y[0], figure.unit)} at ${placeWords(figure.axis, x[0])}`;
    return `${name ? `${name}: ` : ""}from ${from} to ${shown(y[last], figure.unit)} at ${placeWords(figure.axis, x[last])}`;
  });
  return `${figure.title}, ${words.join("; ")}`;
}

/** The values of a chart as a table, made when somebody asks for it. */
function valuesOf(figure) {
  const details = element("details", "values");
  details.append(element("summary", "", "values"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.childElementCount > 1) return;
    const table = element("table");
    for (const line of figure.lines) {
      if (line.name) table.createTHead().insertRow().append(headed(line.name, 2));
      line.x.forEach((x, i) => {
        const row = table.insertRow();
        row.append(headed(placeWords(figure.axis, x), 1));
        row.insertCell().textContent = shown(line.y[i], figure.unit);
      });
    }
    const scroll = element("div", "scroll");
    scroll.append(table);
    details.append(scroll);
  });
  return details;
}

function headed(words, columns) {
  const cell = element("th", "", words);
  cell.colSpan = columns;
  return cell;
}

/** A time line: `lanes` are [{name, seconds, words}], one row of dots each. */
export function drawLanes(container, lanes) {
  if (!lanes.length) return;
  const most = Math.max(...lanes.flatMap((lane) => lane.seconds));
  const x = axisOf(0, most, "seconds", { count: 6 });
  const height = 20 * lanes.length;
  const node = element("figure", "chart lanes");
  const left = 110, right = 860;
  const picture = svg("svg", { viewBox: `0 0 880 ${height + 44}`, role: "img" });
  const names = lanes.map((lane) => `${lane.name}: ${lane.seconds.length}`).join(", ");
  picture.setAttribute("aria-label", `What happened when: ${names}. The table below has it in words.`);
  const at = (seconds) => point(left + x.place(seconds) * (right - left));
  const [one, sign] = measure("seconds", x.to);
  for (const value of x.at) {
    picture.append(svg("line", { class: "grid", x1: at(value), x2: at(value), y1: 4, y2: height + 8 }));
    picture.append(svg("text", { x: at(value), y: height + 24, "text-anchor": "middle" }, written(value / one)));
  }
  picture.append(svg("text", { class: "title", x: right, y: height + 40, "text-anchor": "end" }, `time (${sign.trim()})`));
  const tip = element("div", "tip");
  tip.hidden = true;
  lanes.forEach((lane, row) => {
    const y = 18 + 20 * row;
    picture.append(svg("text", { x: left - 10, y: y + 4, "text-anchor": "end" }, lane.name));
    lane.seconds.forEach((seconds, i) => {
      const dot = svg("circle", { class: `dot c${row % COLOURS}`, cx: at(seconds), cy: y, r: 4.5 });
      dot.addEventListener("pointerenter", () => {
        tip.replaceChildren(element("b", "", `${lane.name}, after ${shown(seconds, "seconds")}`), element("div", "", lane.words[i]));
        tip.hidden = false;
        const here = at(seconds) / 880;
        tip.style.left = here > 0.5 ? "" : `${100 * here + 2}%`;
        tip.style.right = here > 0.5 ? `${102 - 100 * here}%` : "";
      });
      dot.addEventListener("pointerleave", () => { tip.hidden = true; });
      picture.append(dot);
    });
  });
  const inside = element("div", "plot");
  inside.append(picture, tip);
  node.append(inside);
  container.replaceChildren(node);
}

/** Draw what the page holds. */
function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const charts = document.getElementById("charts");
  if (!data.choose) {
    if (charts) draw(charts, data.runs);
    const events = document.getElementById("events");
    if (events) drawLanes(events, data.events);
    return;
  }
  const lists = [0, 1].map((i) => document.getElementById(`run-${i}`));
  if (!charts || !lists.every(Boolean)) return;
  const compare = () => draw(charts, lists.map((list) => data.runs[Number(list.value)]));
  lists.forEach((list) => list.addEventListener("change", compare));
  compare();
}

if (typeof document !== "undefined") start();
