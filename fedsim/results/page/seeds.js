// The scores behind a table: a row per contender, a point per seed, and a line where a seed is with each contender.

const ROW = 30, ROOM = 34;

class Seeds {
  constructor(figure, names, { metric, seeds, scores }) {
    Object.assign(this, { names, metric, seeds, scores });
    this.svg = make("svg:svg", { role: "img", "aria-label": `${metric} by contender and seed` });
    figure.append(this.svg, make("figcaption", { class: "soft" },
      `${metric} of the test: a point per seed, a bar at the mean; a line joins the runs of one seed.`));
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => tip.hide());
    new ResizeObserver(() => this.draw()).observe(this.svg);
    this.draw();
  }

  draw() {
    this.width = Math.max(200, this.svg.clientWidth);
    const left = Math.min(220, this.width * 0.34), height = this.names.length * ROW + ROOM;
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    this.svg.style.height = `${height}px`;
    const known = this.scores.flat().filter((value) => value !== null);
    const room = (Math.max(...known) - Math.min(...known)) * 0.05 || 0.01;
    const low = Math.min(...known) - room, high = Math.max(...known) + room;
    this.x = (value) => left + ((value - low) / (high - low)) * (this.width - left - RIGHT);
    this.y = (place) => ROW / 2 + place * ROW + 4;
    this.svg.replaceChildren();
    for (const value of ticks(low, high, Math.min(6, (this.width - left) / 70))) {
      if (value < low || value > high) continue;
      this.svg.append(make("svg:path", { class: "axis", d: `M${this.x(value)} 4V${height - ROOM + 4}` }),
        make("svg:text", { x: this.x(value), y: height - ROOM + 20, "text-anchor": "middle" }, shown(value)));
    }
    this.seeds.forEach((_, at) => this.drawSeed(at));
    this.names.forEach((name, place) => this.drawRow(name, place, left));
  }

  drawSeed(at) {
    const places = this.scores.map((row, place) => [row[at], place]).filter(([value]) => value !== null);
    if (!places.length) return;
    const d = `M${places.map(([value, place]) => `${this.x(value)} ${this.y(place)}`).join("L")}`;
    this.svg.append(make("svg:path", { class: "muted", d }));
  }

  drawRow(name, place, left) {
    const y = this.y(place), { colour, marker } = style(place);
    const letters = Math.floor((left - 12) / 6.6);
    const text = name.length > letters ? `${name.slice(0, letters - 1)}\u2026` : name;
    this.svg.append(make("svg:text", { class: "name", x: left - 12, y: y + 4, "text-anchor": "end" }, text));
    const own = this.scores[place].filter((value) => value !== null);
    if (!own.length) return;
    const mean = own.reduce((sum, value) => sum + value, 0) / own.length;
    this.svg.append(make("svg:path", { class: `line s${colour}`, d: `M${this.x(mean)} ${y - 10}v20` }),
      ...own.map((value) => make("svg:path", { class: `f${colour} seed`, d: marker, transform: `translate(${this.x(value)} ${y})` })));
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const place = Math.max(0, Math.min(this.names.length - 1, Math.floor((event.clientY - box.top - 4) / ROW)));
    const rows = this.seeds.map((seed, at) => make("p", {}, make("span", {}, `seed ${seed}`), make("b", {}, shown(this.scores[place][at]))));
    tip.show(event.clientX, event.clientY, [make("p", {}, swatch(place), this.names[place]), ...rows]);
  }
}

