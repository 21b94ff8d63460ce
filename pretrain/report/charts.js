// The curves of a report page: drawn as SVG from the numbers in the page, and answering to pointer and keys.

const COLOURS = 6; // of curves, in the style sheet
const DASHES = ["", "7 4", "9 3 2 3", "2 3"]; // the next one when the colours are used up
const FEW_POINTS = 30; // lines of fewer points have these marked
const TIP_ROWS = 8; // curves that a tip tells of, the nearest
const MARGIN = {left: 58, right: 18, top: 10, bottom: 26}; // around a plot, in pixels

function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Numbers and axes.

const compact = new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: 3});
const UNITS = [[1, "s"], [60, "min"], [3600, "h"], [86400, "d"]]; // of times

function onAxis(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e4) return compact.format(value);
  return size < 1e-4 ? value.toExponential().replace("e-", "e−") : String(Number(value.toPrecision(6)));
}

function exactly(value) {
  const size = Math.abs(value);
  if (size >= 1e4) return value.toLocaleString("en", {maximumFractionDigits: 0});
  return size < 1e-3 && size > 0 ? value.toExponential(3).replace("e-", "e−") : String(Number(value.toPrecision(5)));
}

function placeOn(axis, value) {
  if (axis === "step") return `step ${value.toLocaleString("en")}`;
  if (axis === "tokens") return `${value.toLocaleString("en")} tokens`;
  const whole = Math.round(value);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return parts.map((part, place) => String(part).padStart(place ? 2 : 1, "0")).join(":");
}

function linearTicks([low, high], wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((times) => times * power >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const ticks = Array.from({length: 3 * wanted}, (_, place) => Number(((first + place) * step).toPrecision(12)));
  return ticks.filter((tick) => tick <= high + step * 1e-9);
}

function logarithmicTicks([low, high]) {
  for (const factors of [[1, 1.5, 2, 3, 4, 5, 6, 8], [1, 2, 5], [1]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
      ticks.push(...factors.map((factor) => Number((factor * 10 ** power).toPrecision(3))));
    }
    const inside = ticks.filter((tick) => tick >= low && tick <= high);
    if (inside.length <= 9) return inside.length > 1 ? inside : linearTicks([low, high], 4);
  }
  return [low, high];
}

function scale([low, high], [from, to], logarithmic) {
  const at = logarithmic ? Math.log : Number;
  const factor = (to - from) / (at(high) - at(low));
  return (value) => from + (at(value) - at(low)) * factor;
}

function widened([low, high], logarithmic) {
  if (logarithmic) return low === high ? [low / 1.5, high * 1.5] : [low * (low / high) ** 0.04, high * (high / low) ** 0.04];
  const room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 0.1;
  return [low - room, high + room];
}

// Charts: one figure has several over the same axis, and what is chosen counts for all of them.

function setUpCharts(figure) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const view = {axis: data.axis, axes: data.axes, logarithmic: true, smooth: true, hidden: new Set(), range: null};
  const panels = data.charts.map((chart) => panelOf(chart, view, () => draw()));
  const draw = () => {
    reset.hidden = view.range === null;
    panels.forEach((panel) => panel.draw());
  };
  const reset = element("button", {type: "button"}, "Whole range");
  reset.addEventListener("click", () => {
    view.range = null;
    draw();
  });
  const curves = data.charts.flatMap((chart) => chart.curves);
  const controls = element("div", {class: "controls"}, axisChoice(view, draw));
  if (data.charts.some((chart) => chart.logarithmic)) controls.append(checkbox("logarithmic", view, draw));
  if (curves.some((curve) => curve.smooth.y.length)) controls.append(checkbox("smooth", view, draw));
  controls.append(reset);
  const grid = element("div", {class: "grid"}, ...panels.map((panel) => panel.element));
  figure.prepend(controls, legend(curves, view, grid, draw), grid);
  new ResizeObserver(draw).observe(grid);
}

function axisChoice(view, draw) {
  const select = element("select", {"aria-label": "horizontal axis"});
  for (const [axis, name] of Object.entries(view.axes)) select.append(element("option", {value: axis}, name));
  select.value = view.axis;
  select.addEventListener("change", () => {
    view.axis = select.value;
    view.range = null;
    draw();
  });
  return element("label", {}, "over ", select);
}

function checkbox(key, view, draw) {
  const box = element("input", {type: "checkbox"});
  box.checked = view[key];
  box.addEventListener("change", () => {
    view[key] = box.checked;
    draw();
  });
  return element("label", {}, box, ` ${key}`);
}

function legend(curves, view, grid, draw) {
  const groups = new Map(curves.map((curve) => [curve.group, curve]));
  for (const curve of curves.filter((curve) => curve.line)) groups.set(curve.group, curve);
  const list = element("div", {class: "legend"});
  for (const [group, curve] of groups) {
    const button = element("button", {type: "button", "aria-pressed": "true", title: group}, swatch(curve), element("bdi", {}, group));
    button.addEventListener("click", () => {
      view.hidden.delete(group) || view.hidden.add(group);
      button.ariaPressed = String(!view.hidden.has(group));
      draw();
    });
    const light = (lit) => grid.querySelectorAll("[data-group]").forEach((curve) => curve.classList.toggle("dim", lit && curve.dataset.group !== group));
    button.addEventListener("pointerenter", () => light(true));
    button.addEventListener("pointerleave", () => light(false));
    list.append(button);
  }
  list.hidden = groups.size < 2;
  return list;
}

const colour = (curve) => `var(--curve-${curve.look % COLOURS})`;
const dash = (curve) => DASHES[Math.floor(curve.look / COLOURS) % DASHES.length];

function swatch(curve) {
  const mark = curve.line
    ? drawn("path", {d: "M0 5H20", "stroke-dasharray": dash(curve), "stroke-width": 2.5})
    : drawn("circle", {cx: 10, cy: 5, r: 4, class: "dot"});
  const svg = drawn("svg", {width: 20, height: 10, "aria-hidden": "true"}, mark);
  svg.style.setProperty("--colour", colour(curve));
  return svg;
}

function panelOf(chart, view, redraw) {
  const svg = drawn("svg", {tabindex: 0, role: "img"});
  const tip = element("div", {class: "tip", "aria-live": "polite"});
  tip.hidden = true;
  const panel = element("div", {class: "panel"}, element("h3", {}, chart.title), svg, tip);
  const state = {chart, view, svg, tip, panel, curves: [], x: null, y: null, width: 0, height: 0, at: null};
  svg.setAttribute("aria-label", `${chart.title}. ${chart.curves.map(inWords).join(" ")} Arrow keys go from point to point.`);
  svg.addEventListener("keydown", (event) => moveByKey(state, event));
  svg.addEventListener("blur", () => hideTip(state));
  followPointer(state, redraw);
  return {element: panel, draw: () => drawPanel(state)};
}

function inWords(curve) {
  const values = curve.y.filter((value) => value !== null);
  return values.length ? `${curve.name}: from ${exactly(values[0])} to ${exactly(values.at(-1))}.` : "";
}

function drawPanel(state) {
  const {chart, view, svg, panel} = state;
  state.width = panel.clientWidth;
  state.height = Math.max(190, Math.min(300, Math.round(state.width * 0.52)));
  state.curves = chart.curves.filter((curve) => !view.hidden.has(curve.group));
  hideTip(state);
  svg.setAttribute("viewBox", `0 0 ${state.width} ${state.height}`);
  svg.setAttribute("height", state.height);
  svg.replaceChildren();
  const across = view.range ?? extent(chart.curves.flatMap((curve) => curve.x[view.axis]));
  const inside = (x) => across && x >= across[0] && x <= across[1];
  const values = extent(state.curves.flatMap((curve) => curve.y.filter((_, place) => inside(curve.x[view.axis][place]))));
  if (!values) {
    svg.append(drawn("text", {x: state.width / 2, y: state.height / 2, "text-anchor": "middle"}, "no values"));
    state.x = null;
    return;
  }
  const logarithmic = chart.logarithmic && view.logarithmic;
  const domain = widened(values, logarithmic);
  if (chart.fromZero && values[0] >= 0) domain[0] = 0;
  const wide = view.range ?? (across[0] === across[1] ? widened(across, false) : across);
  state.x = scale(wide, [MARGIN.left, state.width - MARGIN.right], false);
  state.y = scale(domain, [state.height - MARGIN.bottom, MARGIN.top], logarithmic);
  state.domain = wide;
  drawAxes(state, wide, domain, logarithmic);
  const {left, right, top, bottom} = MARGIN;
  const [width, height] = [state.width - left - right, state.height - top - bottom];
  const box = [left - 6, top - 6, width + 12, height + 12]; // dots on the edge stay whole
  const plot = drawn("svg", {x: box[0], y: box[1], width: box[2], height: box[3], viewBox: box.join(" "), class: "curves"});
  state.curves.forEach((curve) => plot.append(drawCurve(state, curve)));
  state.cursor = drawn("g", {class: "cursor"});
  svg.append(plot, state.cursor);
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value !== null && value < low) low = value;
    if (value !== null && value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

function drawAxes(state, wide, domain, logarithmic) {
  const {svg, width, height, view} = state;
  const grid = drawn("g", {class: "axes"});
  for (const tick of logarithmic ? logarithmicTicks(domain) : linearTicks(domain, 5)) {
    const y = state.y(tick);
    grid.append(drawn("path", {d: `M${MARGIN.left} ${y}H${width - MARGIN.right}`}));
    grid.append(drawn("text", {x: MARGIN.left - 8, y: y + 4, "text-anchor": "end"}, onAxis(tick)));
  }
  const [size, unit] = view.axis === "seconds" ? UNITS.findLast(([size]) => wide[1] >= 2 * size) ?? UNITS[0] : [1, ""];
  for (const tick of linearTicks(wide.map((end) => end / size), Math.max(4, Math.round(width / 100)))) {
    const x = state.x(tick * size);
    grid.append(drawn("path", {d: `M${x} ${height - MARGIN.bottom}v5`, class: "tick"}));
    grid.append(drawn("text", {x, y: height - 6, "text-anchor": "middle"}, `${onAxis(tick)}${unit && ` ${unit}`}`));
  }
  grid.append(drawn("path", {d: `M${MARGIN.left} ${height - MARGIN.bottom}H${width - MARGIN.right}`, class: "tick"}));
  svg.append(grid);
}

function drawCurve(state, curve) {
  const group = drawn("g", {"data-group": curve.group, "stroke-dasharray": dash(curve)});
  group.style.setProperty("--colour", colour(curve));
  const smooth = state.view.smooth && curve.smooth.y.length > 0;
  if (curve.line) {
    group.append(drawn("path", {d: pathOf(state, curve), class: smooth ? "raw" : "line"}));
    if (smooth) group.append(drawn("path", {d: pathOf(state, curve.smooth), class: "line"}));
  }
  const known = places(state, curve);
  if (curve.dots || known.length < FEW_POINTS) {
    known.forEach(([x, y]) => group.append(drawn("circle", {cx: x, cy: y, r: curve.line ? 3 : 4, class: "dot"})));
  }
  const [x, y] = curve.ring === null ? [] : place(state, curve, curve.ring) ?? [];
  if (x !== undefined) group.append(drawn("circle", {cx: x, cy: y, r: 8, class: "ring"}));
  return group;
}

function place(state, curve, index) {
  const value = curve.y[index];
  const there = value !== null && !(state.chart.logarithmic && state.view.logarithmic && value <= 0);
  return there ? [state.x(curve.x[state.view.axis][index]), state.y(value)] : null;
}

function places(state, curve) {
  return curve.y.map((_, index) => place(state, curve, index)).filter((point) => point !== null);
}

function pathOf(state, curve) {
  let [path, pen] = ["", "M"];
  curve.y.forEach((_, index) => {
    const point = place(state, curve, index);
    path += point ? `${pen}${point[0].toFixed(1)} ${point[1].toFixed(1)}` : "";
    pen = point ? "L" : "M";
  });
  return path;
}

// The tip: the nearest point, and beside it those of other curves.

function nearest(state, curve, x) {
  let best = null;
  curve.y.forEach((_, index) => {
    const point = place(state, curve, index);
    if (point && (best === null || Math.abs(point[0] - x) < Math.abs(best.point[0] - x))) best = {curve, index, point};
  });
  return best;
}

function showTip(state, at) {
  const {view, tip, cursor} = state;
  const [x, y] = at.point;
  const others = state.curves.map((curve) => (curve === at.curve ? at : nearest(state, curve, x))).filter(Boolean);
  const distance = (one) => (one === at ? -1 : Math.hypot(one.point[0] - x, one.point[1] - y));
  const close = others.sort((a, b) => distance(a) - distance(b));
  const rows = close.slice(0, TIP_ROWS).map(({curve, index}) => element("tr", {}, element("td", {}, swatch(curve)),
    element("td", {}, element("bdi", {}, curve.name)),
    element("td", {class: "number"}, exactly(curve.y[index])),
    element("td", {}, placeOn(view.axis, curve.x[view.axis][index]))));
  tip.replaceChildren(element("table", {}, element("tbody", {}, ...rows)));
  tip.hidden = false;
  const left = x > state.width / 2 ? x - tip.offsetWidth - 16 : x + 16;
  tip.style.left = `${Math.max(0, Math.min(left, state.width - tip.offsetWidth))}px`;
  tip.style.top = `${state.svg.getBoundingClientRect().top - state.panel.getBoundingClientRect().top + MARGIN.top}px`;
  const marks = close.slice(0, TIP_ROWS).map(({curve, point}) => {
    const mark = drawn("circle", {cx: point[0], cy: point[1], r: curve === at.curve ? 6 : 4, class: "dot"});
    mark.style.setProperty("--colour", colour(curve));
    return mark;
  });
  cursor.replaceChildren(drawn("path", {d: `M${x} ${MARGIN.top}V${state.height - MARGIN.bottom}`}), ...marks);
  state.at = at;
}

function hideTip(state) {
  state.tip.hidden = true;
  state.cursor?.replaceChildren();
  state.at = null;
}

function followPointer(state, redraw) {
  const {svg} = state;
  let from = null; // where a stretch to enlarge begins
  const local = (event) => {
    const box = svg.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  svg.addEventListener("pointerdown", (event) => {
    if (state.x && event.pointerType !== "touch") from = local(event)[0];
  });
  svg.addEventListener("pointermove", (event) => {
    if (!state.x) return;
    const [x, y] = local(event);
    const found = state.curves.map((curve) => nearest(state, curve, x)).filter(Boolean);
    const distance = ({point}) => Math.hypot((point[0] - x) * 3, point[1] - y); // along the axis first
    if (found.length) showTip(state, found.reduce((a, b) => (distance(b) < distance(a) ? b : a)));
    if (from !== null) state.cursor.append(drawn("rect", {x: Math.min(from, x), y: MARGIN.top, width: Math.abs(x - from), height: state.height - MARGIN.top - MARGIN.bottom}));
  });
  svg.addEventListener("pointerup", (event) => {
    const ends = [from, local(event)[0]].sort((a, b) => a - b);
    if (from !== null && ends[1] - ends[0] > 8) {
      const [low, high] = state.domain;
      const share = (x) => Math.min(1, Math.max(0, (x - MARGIN.left) / (state.width - MARGIN.left - MARGIN.right)));
      state.view.range = ends.map((x) => low + share(x) * (high - low));
      redraw();
    }
    from = null;
  });
  svg.addEventListener("pointerleave", () => {
    from = null;
    hideTip(state);
  });
  svg.addEventListener("dblclick", () => {
    state.view.range = null;
    redraw();
  });
}

function moveByKey(state, event) {
  if (event.key === "Escape") return hideTip(state);
  const curves = state.x ? state.curves.filter((curve) => places(state, curve).length) : [];
  const steps = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity, ArrowUp: 0, ArrowDown: 0};
  if (!curves.length || !(event.key in steps)) return undefined;
  event.preventDefault();
  const turn = {ArrowUp: -1, ArrowDown: 1}[event.key] ?? 0;
  const curve = curves.at((Math.max(0, curves.indexOf(state.at?.curve)) + turn) % curves.length);
  const points = curve.y.map((_, index) => ({curve, index, point: place(state, curve, index)})).filter(({point}) => point);
  const last = points.length - 1;
  if (!state.at) return showTip(state, points[event.key === "Home" ? 0 : last]);
  if (turn) return showTip(state, nearest(state, curve, state.at.point[0]));
  const now = points.findIndex(({index}) => index === state.at.index);
  return showTip(state, points[Math.min(last, Math.max(0, now + steps[event.key]))]);
}

document.querySelectorAll("figure.charts").forEach(setUpCharts);
