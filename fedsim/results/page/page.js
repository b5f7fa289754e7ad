// The page's own parts: curves of each comparison, tables that are sorted, clients that are chosen.

const data = JSON.parse(document.getElementById("data").textContent);
const AXES = [
  { key: "round", title: "round", whole: true },
  { key: "bytes", title: "MB up and down" },
  { key: "seconds", title: "seconds" },
];

// The curves of a topic, such as scores; contenders that are switched off are so in all topics of a part.
class Charts {
  constructor(figure, part, hidden) {
    const topic = part.topics[figure.dataset.topic];
    Object.assign(this, { part, hidden, topic, measure: Object.keys(topic)[0] });
    const axes = figure.dataset.topic === "scores" ? AXES : AXES.slice(0, 1);
    this.panels = axes.map((axis) => new Panel(axis));
    const measures = choice("Measure", Object.entries(topic), (measure) => { this.measure = measure; this.draw(); });
    const legend = make("div", { class: "legend" }, ...part.names.map((name, place) => this.button(name, place)));
    figure.append(make("div", { class: "controls" }, measures, legend),
      make("div", { class: "panels" }, ...this.panels.map((panel) => panel.svg)));
    this.legend = legend;
    this.draw();
  }

  button(name, place) {
    const button = make("button", { type: "button", "aria-pressed": "true" }, swatch(place), name);
    button.addEventListener("click", () => this.hidden.toggle(place));
    button.addEventListener("pointerenter", () => this.panels.forEach((panel) => panel.emphasise(name)));
    button.addEventListener("pointerleave", () => this.panels.forEach((panel) => panel.emphasise(null)));
    return button;
  }

  draw() {
    [...this.legend.children].forEach((button, place) => button.setAttribute("aria-pressed", !this.hidden.has(place)));
    const curves = this.part.curves[this.measure].filter((curve) => !this.hidden.has(curve.name));
    for (const panel of this.panels) {
      panel.draw(curves.map((curve) => this.series(curve, panel.axis.key)), this.topic[this.measure]);
    }
  }

  series(curve, key) {
    const points = curve.mean.map((y, place) => ({
      x: curve[key][place], y, spread: curve.spread[place], seeds: curve.seeds[place],
    }));
    return { title: this.part.names[curve.name], place: curve.name, points: points.filter((p) => p.x !== null && p.y !== null) };
  }
}

// Which contenders of a part are switched off.
class Hidden {
  constructor() { Object.assign(this, { places: new Set(), charts: [] }); }
  has(place) { return this.places.has(place); }
  toggle(place) {
    if (!this.places.delete(place)) this.places.add(place);
    this.charts.forEach((charts) => charts.draw());
  }
}

// Sort a table by a column, numbers from the largest down first; empty places stay at the end.
function sort(head) {
  const table = head.closest("table"), column = head.cellIndex;
  const first = head.classList.contains("number") ? "descending" : "ascending";
  const other = first === "descending" ? "ascending" : "descending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  for (const cell of head.parentNode.cells) cell.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const numeric = head.classList.contains("number");
  const value = (row) => {
    const cell = row.cells[column];
    if (numeric) return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
    return cell.textContent.trim();
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
  };
  const rows = [...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b)));
  table.tBodies[0].append(...rows);
}

// The clients of one run: a table, and the curves of those that are chosen over all others.
class Clients {
  constructor(box, runs) {
    Object.assign(this, { box, runs, run: runs[0], chosen: [] });
    this.panel = new Panel({ key: "round", title: "round", whole: true });
    const names = runs.map((run, place) => [String(place), run.run]);
    this.select = choice("Run", names, (place) => { this.run = runs[Number(place)]; this.start(); });
    this.below = make("div");
    box.append(make("div", { class: "controls" }, this.select), this.below);
    this.start();
  }

  start() {
    const { measures, classes, clients, listed, of } = this.run;
    this.chosen = [clients.reduce((a, b) => (b[1] > a[1] ? b : a))[0]];
    if (!(this.measure in measures)) this.measure = Object.keys(measures)[0];
    const parts = [];
    if (classes.length) {
      parts.push(make("div", { class: "legend" }, ...classes.map((name, place) => make("span", {},
        make("svg:svg", { class: "swatch", viewBox: "0 0 26 12" }, make("svg:rect", { width: 26, height: 12, class: tone(place) })),
        name))));
    }
    const source = listed < of ? `the ${listed} in partition.json, of ${of} in all` : of;
    if (clients.length < of) parts.push(make("p", { class: "soft" }, `The ${clients.length} clients with most images, of ${source}.`));
    parts.push(make("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Clients" }, this.table()));
    if (this.measure) {
      this.keys = make("div", { class: "legend" });
      const select = choice("Measure", Object.entries(measures), (measure) => { this.measure = measure; this.draw(); });
      select.lastChild.value = this.measure;
      parts.push(make("figure", {}, make("div", { class: "controls" }, select, this.keys),
        make("div", { class: "panels" }, this.panel.svg)));
    }
    this.below.replaceChildren(...parts);
    this.draw();
  }

  table() {
    const { measures, clients, classes } = this.run;
    const most = Math.max(1, ...clients.map(([, images]) => images));
    const columns = this.run.columns.map((key) => [key, measures[key]]);
    const heads = [["client", "number"], ["images", "number"], ...(classes.length ? [["classes", ""]] : []),
      ...columns.map(([, title]) => [title, "number"])];
    const head = make("tr", {}, ...heads.map(([text, kind]) => make("th", { scope: "col", class: kind },
      text === "classes" ? text : make("button", { type: "button" }, text))));
    const body = clients.map(([client, images, counts]) => {
      const pick = make("button", { type: "button", class: "pick", "aria-label": `client ${client}` }, String(client));
      pick.addEventListener("click", () => this.choose(client));
      const share = classes.length ? [make("td", {}, shares(counts, classes, most))] : [];
      return make("tr", { "data-client": client }, make("th", { scope: "row", class: "number", "data-value": client }, pick),
        number(images), ...share, ...columns.map(([key]) => number(this.last(key, client))));
    });
    return make("table", { class: "sortable" }, make("thead", {}, head), make("tbody", {}, ...body));
  }

  last(measure, client) {
    const curve = this.run.curves[measure][client];
    return curve ? curve[1][curve[1].length - 1] : null;
  }

  choose(client) {
    this.chosen = this.chosen.includes(client) ? this.chosen.filter((one) => one !== client) : [...this.chosen, client];
    this.draw();
  }

  draw() {
    for (const row of this.below.querySelectorAll("tbody tr")) {
      const isChosen = this.chosen.includes(Number(row.dataset.client));
      row.classList.toggle("chosen", isChosen);
      row.querySelector(".pick").setAttribute("aria-pressed", isChosen);
    }
    if (!this.measure) return;
    const curves = this.run.curves[this.measure];
    const series = Object.entries(curves).map(([client, [rounds, values]]) => {
      const place = this.chosen.indexOf(Number(client));
      const points = rounds.map((x, at) => ({ x, y: values[at] })).filter((p) => p.y !== null);
      return { title: `client ${client}`, place: Math.max(0, place), muted: place < 0, points };
    });
    series.sort((a, b) => Number(b.muted) - Number(a.muted));
    this.keys.replaceChildren(...this.chosen.map((client, place) => make("span", {}, swatch(place), `client ${client}`)));
    this.panel.draw(series, this.run.measures[this.measure]);
  }
}

function number(value) {
  const cell = make("td", { class: "number" }, shown(value));
  if (value !== null) cell.dataset.value = value;
  return cell;
}

function tone(place) {
  return `f${place % COLOURS}${Math.floor(place / COLOURS) % 2 ? " light" : ""}`;
}

// A bar as long as the client has images, of one piece per class.
function shares(counts, classes, most) {
  const bar = make("svg:svg", { class: "share", viewBox: "0 0 176 14", preserveAspectRatio: "none", role: "img" });
  const words = counts.map((count, place) => `${classes[place]}: ${count}`).join(", ");
  bar.append(make("svg:title", {}, words));
  let left = 0;
  counts.forEach((count, place) => {
    const width = (count / most) * 176;
    if (count) bar.append(make("svg:rect", { x: left, width, height: 14, class: tone(place) }));
    left += width;
  });
  return bar;
}

const parts = data.parts.map((part) => ({ part, hidden: new Hidden() }));
for (const figure of document.querySelectorAll("figure.charts")) {
  const { part, hidden } = parts[Number(figure.dataset.part)];
  hidden.charts.push(new Charts(figure, part, hidden));
}
for (const figure of document.querySelectorAll("figure.seeds")) {
  const { part } = parts[Number(figure.dataset.part)];
  new Seeds(figure, part.names, part.seeds[Number(figure.dataset.table)]);
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("thead th button");
  if (button) sort(button.closest("th"));
});
const view = document.getElementById("client-view");
if (view) new Clients(view, data.clients.runs);

// Print has all that is folded up.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach((one) => { one.open = true; });
});
addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));
