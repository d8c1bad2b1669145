// Draws what /stream and /curves.json say. Peers write some of the texts, so nothing here ever becomes HTML:
// elements are made one by one and texts are set as text.
"use strict";

const CURVES_EVERY_MS = 4000;
const SVG = "http://www.w3.org/2000/svg";
const CHARTS = [
  { id: "chart-loss", series: [["loss", "training"], ["test_loss", "held-out"]], format: number },
  { id: "chart-accuracy", series: [["test_accuracy", "accuracy"]], format: percent },
  { id: "chart-distance", series: [["disagreement", "furthest neighbour"]], format: scientific, logarithmic: true },
  { id: "chart-bytes", series: [["bytes_sent", "sent"]], format: bytes, fromZero: true },
];
const WARNINGS = new Set(["missed", "disconnected", "refused", "dropped", "slowed", "stranger"]);

let curves = {};
let latest = null;
let stream = null;
let fetchedRound = null;

// ---- formats

function number(x) { return x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x >= 0.1 || x === 0 ? x.toFixed(2) : scientific(x); }
function percent(x) { return `${(100 * x).toFixed(1)} %`; }
function scientific(x) { return x === 0 ? "0" : x >= 0.01 && x < 1000 ? String(Number(x.toPrecision(2))) : x.toExponential(0); }
function bytes(x) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (x >= 999.5 && unit < units.length - 1) { x /= 1000; unit += 1; }
  return `${unit === 0 || x >= 100 ? x.toFixed(0) : x.toFixed(1)} ${units[unit]}`;
}
function duration(s) {
  if (s < 60) return `${Math.round(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}
function count(x) { return x.toLocaleString("en").replaceAll(",", "\u202f"); }

// ---- elements

function byId(id) { return document.getElementById(id); }
function text(id, value) { byId(id).textContent = value; }
function html(tag, attributes, ...children) { return fill(document.createElement(tag), attributes, children); }
function svg(tag, attributes, ...children) { return fill(document.createElementNS(SVG, tag), attributes, children); }
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// ---- the snapshot

function show(status) {
  latest = status;
  document.title = `${status.agent} · ${status.state} ${status.round}/${status.rounds}`;
  text("agent", status.agent);
  text("subtitle", `${status.network} · ${status.algorithm} on a ${status.topology} of ${status.agents.length}` +
    ` · ${count(status.parameters)} parameters · ${count(status.samples)} samples here`);
  phase(status.state, status.state);
  const share = status.rounds ? status.round / status.rounds : 0;
  byId("done").style.width = `${100 * share}%`;
  byId("bar").setAttribute("aria-valuemax", status.rounds);
  byId("bar").setAttribute("aria-valuenow", status.round);
  text("rounds", `round ${count(status.round)} of ${count(status.rounds)}`);
  const going = status.state === "training" && status.remaining_s !== null;
  text("remaining", going ? `about ${duration(status.remaining_s)} left` : `running for ${duration(status.uptime_s)}`);
  byId("insecure").hidden = status.security.mode === "mutual TLS";
  tiles(status);
  graph(status);
  links(status);
  events(status);
  text("version", `p2pqg ${status.version} · run ${status.run} · start ${status.incarnation} of this agent` +
    ` · running for ${duration(status.uptime_s)}`);
}

function phase(name, shown) {
  byId("phase").className = `pill ${name}`;
  text("phase", shown);
}

function tiles(status) {
  const value = (name, format) => (name in status.latest ? format(status.latest[name]) : "–");
  const live = status.links.filter((link) => link.state === "live").length;
  const shown = [
    ["loss", value("loss", number), "test_loss" in status.latest ? `held-out ${value("test_loss", number)}` : ""],
    ["accuracy", value("test_accuracy", percent), "on held-out data"],
    ["consensus distance", value("disagreement", scientific), "to the furthest neighbour"],
    ["neighbours", `${live} of ${status.links.length}`, live < status.links.length ? "some are missing" : "all there"],
    ["round", value("round_s", (s) => (s < 1 ? `${(1000 * s).toFixed(0)} ms` : `${s.toFixed(1)} s`)), "duration of the last"],
    ["sent", bytes(status.bytes_sent), `received ${bytes(status.bytes_received)}`],
  ];
  if (status.privacy) {
    const { epsilon, delta, budget } = status.privacy;
    shown.push(["privacy spent", `ε ${epsilon.toPrecision(3)}`,
      `${budget === null ? "no limit" : `of ${budget}`}, δ ${delta.toExponential(0)}`]);
  }
  byId("tiles").replaceChildren(...shown.map(([name, large, small]) =>
    html("dl", { class: "tile" }, html("dt", {}, name), html("dd", {}, large, html("small", {}, small)))));
}

function grade(link) {
  if (link.state !== "live") return "gone";
  return link.quality === null || link.quality >= 0.95 ? "good" : "weak";
}

function graph(status) {
  const n = status.agents.length, width = 420, height = 300, radius = { x: 160, y: 112 };
  const own = status.agents.indexOf(status.agent);
  const place = new Map(status.agents.map((name, i) => {
    const angle = -Math.PI / 2 + (2 * Math.PI * (i - own)) / n;
    return [name, { x: width / 2 + radius.x * Math.cos(angle), y: height / 2 + radius.y * Math.sin(angle) }];
  }));
  const byPeer = new Map(status.links.map((link) => [link.peer, link]));
  const lines = [], labels = [], nodes = [];
  for (const [a, b] of status.edges) {
    const link = a === status.agent ? byPeer.get(b) : b === status.agent ? byPeer.get(a) : undefined;
    const from = place.get(a), to = place.get(b);
    if (!from || !to) continue;
    const line = svg("line", { class: `link ${link ? grade(link) : "far"}`, x1: from.x, y1: from.y, x2: to.x, y2: to.y });
    line.append(svg("title", {}, `${a} – ${b}${link ? `: ${described(link)}` : ""}`));
    lines.push(line);
    if (link && status.links.length <= 8) {
      const what = link.state !== "live" ? link.state : link.round_trip_s === null ? "" : milliseconds(link.round_trip_s);
      const side = from.x + to.x < width - 1 ? -1 : 1, length = Math.hypot(to.x - from.x, to.y - from.y);
      labels.push(svg("text", { class: "rate", "text-anchor": side < 0 ? "end" : "start",
        x: (from.x + to.x) / 2 + (side * 8 * Math.abs(to.y - from.y)) / length,
        y: (from.y + to.y) / 2 - (8 * Math.abs(to.x - from.x)) / length }, what));
    }
  }
  for (const [name, { x, y }] of place) {
    const near = byPeer.has(name), self = name === status.agent;
    const circle = svg("circle", { class: `node ${self ? "self" : near ? "near" : ""}`, cx: x, cy: y, r: n > 32 ? 5 : 8 });
    circle.append(svg("title", {}, name));
    nodes.push(circle);
    if (self || near || n <= 16) {
      const below = y > height / 2 + 1;
      const short = name.length > 16 ? `${name.slice(0, 15)}…` : name;
      nodes.push(svg("text", { class: `name ${self || near ? "" : "other"}`, x, y: below ? y + 24 : y - 15 }, short));
    }
  }
  const picture = byId("graph");
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const live = status.links.filter((link) => link.state === "live").map((link) => link.peer);
  picture.setAttribute("aria-label", `${status.agent} exchanges with ${live.join(", ") || "nobody"}`);
  picture.replaceChildren(...lines, ...labels, ...nodes);
}

function milliseconds(s) { return s < 0.01 ? `${(1000 * s).toFixed(1)} ms` : `${(1000 * s).toFixed(0)} ms`; }

function described(link) {
  const quality = link.quality === null ? "" : `, in ${percent(link.quality)} of the recent rounds`;
  return `${link.state}${quality}${link.reason ? `, ${link.reason}` : ""}`;
}

function links(status) {
  const rows = [];
  for (const link of status.links) {
    const cells = [link.quality === null ? "–" : percent(link.quality), count(link.missed),
      link.round_trip_s === null ? "–" : milliseconds(link.round_trip_s), link.round === null ? "–" : count(link.round),
      bytes(link.bytes_sent), bytes(link.bytes_received)];
    rows.push(html("tr", {}, html("td", {}, link.peer),
      html("td", {}, html("span", { class: `state ${grade(link)}` }, link.state)),
      ...cells.map((cell) => html("td", { class: "number" }, cell))));
    const why = [link.reason, link.leaked ? `${link.leaked} exchanges may be half lost` : ""].filter(Boolean).join("; ");
    if (why) rows.push(html("tr", { class: "why" }, html("td", { colspan: 8 }, why)));
  }
  byId("links").replaceChildren(...rows);
}

function events(status) {
  const shown = status.events.filter((event) => event.event !== "checkpoint").reverse();
  byId("events").replaceChildren(...shown.map(({ event, at_s, details, times }) => {
    const words = Object.entries(details).map(([name, value]) => `${name} ${value}`).join(" · ");
    return html("li", {}, html("time", {}, ago(status.uptime_s - at_s)),
      html("span", { class: `state ${WARNINGS.has(event) ? "weak" : ""}` }, event), html("span", { class: "details" }, words, times > 1 ? html("span", { class: "times" }, ` (${count(times)} times)`) : ""));
  }));
}

function ago(s) { return s < 2 ? "just now" : s < 60 ? `${Math.round(s)} s ago` : s < 3600 ? `${Math.floor(s / 60)} min ago` : `${duration(s)}`; }

// ---- curves

function ticks(low, high, logarithmic) {
  if (logarithmic) {
    const decades = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += 1) decades.push(10 ** e);
    const step = Math.ceil(decades.length / 5);
    return decades.filter((_, i) => i % step === 0);
  }
  const rough = (high - low) / 4 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let k = Math.floor(low / step); k * step <= high + step * 0.999; k += 1) found.push(k * step);
  return found;
}

function chart({ id, series, format, logarithmic = false, fromZero = false }) {
  const card = byId(id);
  const lines = series.map(([name, label], i) => ({ label, style: ["one", "two"][i], ...(curves[name] || { round: [], value: [] }) }))
    .map((line) => (logarithmic ? positive(line) : line)).filter((line) => line.round.length);
  card.querySelectorAll("svg, .legend, .tip, .empty").forEach((old) => old.remove());
  if (!lines.length) {
    card.append(html("p", { class: "empty" }, "nothing measured yet"));
    return;
  }
  const width = card.clientWidth - 32, height = 176, left = 52, right = 12, top = 8, bottom = 22;
  const values = lines.flatMap((line) => line.value), rounds = lines.flatMap((line) => line.round);
  const marks = ticks(fromZero ? 0 : Math.min(...values), Math.max(...values), logarithmic);
  const [low, high] = [marks[0], marks[marks.length - 1]].map((v) => (logarithmic ? Math.log10(v) : v));
  const [first, last] = [Math.min(...rounds), Math.max(...rounds)];
  const x = (round) => left + ((width - left - right) * (round - first)) / (last - first || 1);
  const y = (value) => height - bottom - ((height - top - bottom) * ((logarithmic ? Math.log10(value) : value) - low)) / (high - low || 1);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": lines.map((line) => `${line.label}: last ${format(line.value.at(-1))}`).join(", ") });
  for (const mark of marks) {
    picture.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(mark), y2: y(mark) }),
      svg("text", { class: "axis", x: left - 6, y: y(mark) + 4, "text-anchor": "end" }, format(mark).replace(/\.0+(?=\D|$)/, "")));
  }
  for (const [round, anchor] of first === last ? [[first, "start"]] : [[first, "start"], [last, "end"]]) {
    picture.append(svg("text", { class: "axis", x: x(round), y: height - 5, "text-anchor": anchor }, `round ${count(round)}`));
  }
  for (const line of lines) {
    const points = line.round.map((round, i) => `${x(round).toFixed(1)},${y(line.value[i]).toFixed(1)}`);
    picture.append(svg("polyline", { class: `curve ${line.style}`, points: points.join(" ") }));
    if (points.length === 1) picture.append(svg("circle", { class: `dot ${line.style}`, cx: x(line.round[0]), cy: y(line.value[0]), r: 5 }));
  }
  const tip = html("div", { class: "tip", hidden: "" }), pointer = svg("g", {});
  picture.append(pointer);
  const point = (event) => {
    const at = first + ((event.clientX - picture.getBoundingClientRect().left - left) * (last - first)) / (width - left - right);
    const nearest = lines.map((line) => ({ line, i: closest(line.round, at) }));
    const round = nearest.map(({ line, i }) => line.round[i]).sort((a, b) => Math.abs(a - at) - Math.abs(b - at))[0];
    pointer.replaceChildren(svg("line", { class: "cross", x1: x(round), x2: x(round), y1: top, y2: height - bottom }),
      ...nearest.map(({ line, i }) => svg("circle", { class: `dot ${line.style}`, cx: x(line.round[i]), cy: y(line.value[i]), r: 4.5 })));
    tip.replaceChildren(`round ${count(round)} `, ...nearest.flatMap(({ line, i }) => [` · ${line.label} `, html("b", {}, format(line.value[i]))]));
    tip.hidden = false;
    tip.style.left = `${Math.max(8, Math.min(x(round) - tip.offsetWidth / 2 + 16, card.clientWidth - tip.offsetWidth - 8))}px`;
  };
  picture.addEventListener("pointermove", point);
  picture.addEventListener("pointerdown", point);
  picture.addEventListener("pointerleave", () => { pointer.replaceChildren(); tip.hidden = true; });
  card.append(picture, tip);
  if (series.length > 1) {
    card.append(html("ul", { class: "legend" }, ...lines.map((line) => html("li", {},
      svg("svg", { viewBox: "0 0 24 8" }, svg("line", { class: `curve ${line.style}`, x1: 1, y1: 4, x2: 23, y2: 4 })), line.label))));
  }
}

function positive(line) {
  const kept = line.value.map((value, i) => [line.round[i], value]).filter(([, value]) => value > 0);
  return { ...line, round: kept.map(([round]) => round), value: kept.map(([, value]) => value) };
}

function closest(sorted, at) {
  let best = 0;
  for (let i = 1; i < sorted.length; i += 1) if (Math.abs(sorted[i] - at) < Math.abs(sorted[best] - at)) best = i;
  return best;
}

async function refreshCurves() {
  const hovered = document.querySelector(".tip:not([hidden])");
  if (hovered || !latest || (latest.round === fetchedRound && latest.state !== "agreeing")) return;
  const asked = latest.round;
  const answer = await fetch("curves.json");
  if (!answer.ok) return;
  curves = await answer.json();
  fetchedRound = asked;
  CHARTS.forEach(chart);
}

// ---- connection: open while somebody looks

function watch() {
  if (document.hidden) {
    stream?.close();
    stream = null;
    return;
  }
  if (stream && stream.readyState !== EventSource.CLOSED) return;
  stream = new EventSource("stream");
  stream.onmessage = (message) => {
    const before = latest;
    byId("offline").hidden = true;
    show(JSON.parse(message.data));
    if (!before || before.state !== latest.state) refreshCurves().catch(() => {});
  };
  stream.onerror = () => {
    byId("offline").hidden = false;
    phase("unreachable", "not reachable");
  };
}

document.addEventListener("visibilitychange", watch);
window.addEventListener("resize", () => CHARTS.forEach(chart));
setInterval(() => { watch(); refreshCurves().catch(() => {}); }, CURVES_EVERY_MS);
CHARTS.forEach(chart);
watch();
