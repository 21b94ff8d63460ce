// What a report page does beyond being read: themes, tables that sort and filter, samples by step. Curves are in charts.js.
"use strict";

const MANY_ROWS = 10; // tables with more can be filtered

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Themes: the system's, until the button chooses the other one.

function setUpTheme(button) {
  const root = document.documentElement;
  const dark = () => (root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  try {
    root.style.colorScheme = localStorage.getItem("theme") ?? "";
  } catch { /* a page from a file may have no storage */ }
  button.hidden = false;
  button.addEventListener("click", () => {
    root.style.colorScheme = dark() ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.style.colorScheme);
    } catch { /* as above */ }
  });
}

// Tables: a click on a column sorts by it, upwards, then downwards, then as it was; unknown values stay last.

function setUpTable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = element("button", {type: "button"}, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = {ascending: "descending", descending: null}[head.ariaSort ?? ""];
      const order = next === undefined ? "ascending" : next;
      heads.forEach((other) => (other.ariaSort = null));
      head.ariaSort = order;
      const sign = order === "descending" ? -1 : 1;
      body.append(...(order ? [...original].sort((a, b) => compared(a.cells[column], b.cells[column], sign)) : original));
    });
  });
  if (original.length > MANY_ROWS) setUpFilter(table, original);
}

function compared(a, b, sign) {
  const [x, y] = [a, b].map((cell) => ("value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent));
  const [noX, noY] = [x, y].map((value) => value === "–" || Number.isNaN(value));
  if (noX || noY) return noX - noY;
  if (typeof x === "number" && typeof y === "number") return sign * (x - y);
  return sign * String(x).localeCompare(String(y), "en", {numeric: true});
}

function setUpFilter(table, rows) {
  const label = `Filter ${rows.length} rows`;
  const input = element("input", {type: "search", placeholder: label, "aria-label": label});
  const found = element("output");
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    found.textContent = wanted ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
  });
  table.parentElement.before(element("div", {class: "filter"}, input, found));
}

// Samples: one step at a time, the last one first.

function setUpSamples(samples) {
  const steps = [...samples.children];
  if (steps.length < 2) return;
  const slider = element("input", {type: "range", min: 0, max: steps.length - 1, value: steps.length - 1});
  const shown = element("output");
  const show = () => {
    steps.forEach((step, place) => (step.hidden = place !== slider.valueAsNumber));
    shown.textContent = steps[slider.valueAsNumber].firstChild.textContent;
    slider.setAttribute("aria-valuetext", shown.textContent);
  };
  slider.addEventListener("input", show);
  samples.before(element("label", {class: "slider"}, "Samples over the steps", slider, shown));
  samples.classList.add("one");
  show();
}

setUpTheme(document.getElementById("theme"));
document.querySelectorAll("table.data").forEach(setUpTable);
document.querySelectorAll(".samples").forEach(setUpSamples);
