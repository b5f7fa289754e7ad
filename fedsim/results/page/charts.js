"use strict";
// Curves with a band, a legend and what is shown under the pointer. All text goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 260, LEFT = 46, RIGHT = 12, TOP = 26, BOTTOM = 36;
const COLOURS = 8, MOST_MARKERS = 40;
const DASHES = ["", "6 4", "2 3", "8 3 2 3"];
// Markers keep curves apart in grey print: paths around the origin.
const MARKERS = ["M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0", "M-3 -3h6v6h-6z", "M0 -4l4 4l-4 4l-4 -4z", "M0 -4l4 7h-8z",
  "M0 4l4 -7h-8z", "M-4 -1h3v-3h2v3h3v2h-3v3h-2v-3h-3z", "M0 -4l4 3l-2 5h-4l-2 -5z", "M-2 -4h4l2 4l-2 4h-4l-2 -4z"];

function make(name, attributes = {}, ...inside) {
  const node = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...inside);
  return node;
}

function shown(value, digits = 4) {
  if (value === null || value === undefined) return "-";
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
  return Math.abs(value) < 0.001 ? value.toExponential(2) : String(Number(value.toPrecision(digits)));
}

// Round numbers from low to high, about `count` of them; whole ones alone where only these mean something.
function ticks(low, high, count, whole) {
  const raw = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  let step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let place = Math.ceil(low / step - 1e-9); place * step <= high + step * 1e-9; place += 1) found.push(place * step);
  return found.map((value) => Number(value.toPrecision(12)));
}

function style(place) {
  return { colour: place % COLOURS, dash: DASHES[Math.floor(place / COLOURS) % DASHES.length], marker: MARKERS[place % 8] };
}

function swatch(place) {
  const { colour, dash, marker } = style(place);
  return make("svg:svg", { class: "swatch", viewBox: "0 0 26 12", "aria-hidden": "true" },
    make("svg:path", { class: `line s${colour}`, d: "M0 6H26", "stroke-dasharray": dash }),
    make("svg:path", { class: `f${colour}`, d: marker, transform: "translate(13 6)" }));
}

// What belongs to a position of the pointer, beside it and inside the window.
const tip = {
  box: document.getElementById("tip"),
  show(x, y, rows) {
    this.box.replaceChildren(...rows);
    this.box.hidden = false;
    const { width, height } = this.box.getBoundingClientRect();
    const left = x + 16 + width > innerWidth - 8 ? x - 16 - width : x + 16;
    const top = Math.max(8, Math.min(y - height / 2, innerHeight - height - 8));
    this.box.style.left = `${scrollX + Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
    this.box.style.top = `${scrollY + top}px`;
  },
  hide() { this.box.hidden = true; },
};

// One panel. `axis`: {key, title, whole}; series: [{title, place, muted, points: [{x, y, spread, seeds}]}].
class Panel {
  constructor(axis) {
    this.axis = axis;
    this.svg = make("svg:svg", { tabindex: "0", role: "img" });
    this.svg.addEventListener("pointermove", (event) => this.point(event.clientX));
    this.svg.addEventListener("pointerdown", (event) => this.point(event.clientX));
    for (const kind of ["pointerleave", "blur"]) this.svg.addEventListener(kind, () => this.leave());
    this.svg.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.series && this.draw(this.series, this.title)).observe(this.svg);
  }

  draw(series, title) {
    this.series = series.filter((one) => one.points.length);
    this.title = title;
    this.width = Math.max(200, this.svg.clientWidth);
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.svg.setAttribute("aria-label", `${title} over ${this.axis.title}; arrow keys show values`);
    this.svg.replaceChildren();
    this.hover = make("svg:g");
    const points = this.series.flatMap((one) => one.points);
    if (!points.length) {
      this.svg.append(make("svg:text", { x: this.width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "nothing to draw"));
      return;
    }
    this.scale(points);
    this.drawAxes();
    for (const one of this.series) this.drawBand(one);
    for (const one of this.series) this.drawLine(one);
    this.svg.append(this.hover);
  }

  scale(points) {
    const xs = points.map((p) => p.x);
    const ys = points.flatMap((p) => [p.y - (p.spread || 0), p.y + (p.spread || 0)]);
    let [low, high] = [Math.min(...ys), Math.max(...ys)];
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    const positive = low >= 0;
    [low, high] = [low - room, high + room];
    if (positive) low = Math.max(0, low);
    let [first, last] = [Math.min(...xs), Math.max(...xs)];
    if (!this.axis.whole) first = 0;
    if (first === last) [first, last] = [first - 0.5, last + 0.5];
    const across = this.width - LEFT - RIGHT, down = HEIGHT - TOP - BOTTOM;
    this.range = { first, last, low, high };
    this.x = (value) => LEFT + ((value - first) / (last - first)) * across;
    this.y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * down;
  }

  drawAxes() {
    const { first, last, low, high } = this.range;
    for (const value of ticks(low, high, 4)) {
      const y = this.y(value);
      this.svg.append(make("svg:path", { class: "axis", d: `M${LEFT} ${y}H${this.width - RIGHT}` }),
        make("svg:text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, shown(value)));
    }
    for (const value of ticks(first, last, Math.min(8, this.width / 55), this.axis.whole)) {
      this.svg.append(make("svg:text", { x: this.x(value), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, shown(value)));
    }
    this.svg.append(make("svg:text", { x: LEFT, y: 14 }, this.title),
      make("svg:text", { x: this.width - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, this.axis.title));
  }

  drawBand(one) {
    const points = one.points.filter((p) => p.spread !== null && p.spread !== undefined);
    if (one.muted || points.length < 2) return;
    const above = points.map((p) => `${this.x(p.x)} ${this.y(p.y + p.spread)}`);
    const below = points.map((p) => `${this.x(p.x)} ${this.y(p.y - p.spread)}`).reverse();
    this.svg.append(make("svg:path", { class: `band f${style(one.place).colour}`, d: `M${[...above, ...below].join("L")}Z` }));
  }

  drawLine(one) {
    const d = `M${one.points.map((p) => `${this.x(p.x)} ${this.y(p.y)}`).join("L")}`;
    if (one.muted) {
      this.svg.append(make("svg:path", { class: "muted", d }));
      return;
    }
    const { colour, dash, marker } = style(one.place);
    const group = make("svg:g", { class: "curve", "data-name": one.title });
    group.append(make("svg:path", { class: `line s${colour}`, d, "stroke-dasharray": dash }));
    if (one.points.length <= MOST_MARKERS) {
      group.append(...one.points.map((p) => make("svg:path",
        { class: `f${colour}`, d: marker, transform: `translate(${this.x(p.x)} ${this.y(p.y)})` })));
    }
    this.svg.append(group);
  }

  // Show of each curve the point that is nearest to a place on the screen.
  point(clientX) {
    const named = this.series.filter((one) => !one.muted);
    if (!named.length || !this.x) return;
    const box = this.svg.getBoundingClientRect();
    const at = ((clientX - box.left) / box.width) * this.width;
    const distance = (p) => Math.abs(this.x(p.x) - at);
    const found = named.map((one) => ({ one, p: one.points.reduce((a, b) => (distance(b) < distance(a) ? b : a)) }));
    const nearest = found.reduce((a, b) => (distance(b.p) < distance(a.p) ? b : a)).p;
    this.at = nearest.x;
    const together = found.every(({ p }) => p.x === nearest.x);
    this.hover.replaceChildren(make("svg:path", { class: "guide", d: `M${this.x(nearest.x)} ${TOP}V${HEIGHT - BOTTOM}` }),
      ...found.map(({ one, p }) => make("svg:circle",
        { class: `f${style(one.place).colour}`, cx: this.x(p.x), cy: this.y(p.y), r: 5 })));
    const seeds = [...new Set(found.map(({ p }) => p.seeds))];
    const where = together ? `${this.axis.title} ${shown(nearest.x)}` : `near ${shown(nearest.x)} ${this.axis.title}`;
    const head = make("p", {}, where + (seeds.length === 1 && seeds[0] > 1 ? `, ${seeds[0]} seeds` : ""));
    const rows = found.sort((a, b) => b.p.y - a.p.y).map(({ one, p }) => make("p", {}, swatch(one.place),
      make("span", {}, one.title), make("b", {}, this.words(p, together, seeds.length > 1))));
    tip.show(box.left + (this.x(nearest.x) / this.width) * box.width, box.top + box.height / 2, [head, ...rows]);
  }

  words(p, together, hasSeeds) {
    const spread = p.spread === null || p.spread === undefined ? "" : ` ± ${shown(p.spread, 2)}`;
    return shown(p.y) + spread + (hasSeeds ? ` (${p.seeds} seeds)` : "") + (together ? "" : ` at ${shown(p.x)}`);
  }

  step(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !this.x) return;
    event.preventDefault();
    const places = [...new Set(this.series.filter((one) => !one.muted).flatMap((one) => one.points.map((p) => p.x)))];
    places.sort((a, b) => a - b);
    const now = places.indexOf(this.at);
    const next = now < 0 ? 0 : Math.max(0, Math.min(places.length - 1, now + by));
    const box = this.svg.getBoundingClientRect();
    this.point(box.left + (this.x(places[next]) / this.width) * box.width);
  }

  leave() {
    this.at = undefined;
    this.hover.replaceChildren();
    tip.hide();
  }

  emphasise(name) {
    for (const curve of this.svg.querySelectorAll(".curve")) {
      curve.classList.toggle("dim", name !== null && curve.dataset.name !== name);
    }
  }
}

function choice(title, options, chosen) {
  const select = make("select", {}, ...options.map(([value, text]) => make("option", { value }, text)));
  select.addEventListener("change", () => chosen(select.value));
  return make("label", {}, make("span", {}, title), select);
}
