"use strict";
// The state of the page: its data from page.py, the filters, and the selected configuration. This script also starts
// everything; charts.js, tables.js and detail.js draw. Text from result files is set as text, never as markup.

const report = JSON.parse(document.getElementById("data").textContent);
const FILTERS = {kind: "Kind", sweep: "Sweep", signal: "Signal", strategy: "Strategy"};
for (const what of report.settings) FILTERS[what] = what[0].toUpperCase() + what.slice(1);
// The words and horizontal axes of a group: of single weights that are pruned, or of whole channels that are removed.
const KINDS = {
  weights: {
    overview: "Accuracy against sparsity", heat: "Sparsity of each layer",
    layers: "Sparsity and allowed range of each layer", share: "sparsity", layer: "layer", unit: "weights",
    sparser: "is at least as sparse", sort: "sparsity %",
    axes: {
      reduction: {label: "sparsity (% of prunable weights)", value: one => 100 * one.sparsity},
      megabytes: {label: "size (MB of kept weights and masks)", value: one => one.megabytes},
    },
  },
  channels: {
    overview: "Accuracy against removed parameters", heat: "Removed channels of each group",
    layers: "Removed channels and allowed range of each group", share: "removed", layer: "group",
    unit: "sets of channels", sparser: "removes at least as many parameters", sort: "removed %",
    axes: {
      reduction: {label: "parameters removed (% of all parameters)", value: one => 100 * one.reduction},
      multiply_adds: {label: "multiply-adds left (% of the dense model's)", value: one => percentOf(one.multiply_adds)},
      megabytes: {label: "size (MB of the smaller network)", value: one => one.megabytes},
    },
  },
};
const MEASURES = {
  test: {
    label: "test accuracy (%)", split: "test", finetunedOnTest: true,
    value: run => 100 * run.test, dense: run => 100 * run.dense_test,
  },
  validation: {
    label: "validation accuracy (%)", split: "validation",
    value: run => 100 * run.validation, dense: run => 100 * run.dense_validation,
  },
  drop: {
    label: "drop (points of test accuracy)", split: "test", finetunedOnTest: true,
    value: run => run.drop, dense: () => 0,
  },
  pruned_test: {
    label: "test accuracy before fine-tuning (%)", split: "test",
    value: run => 100 * (run.reconstructed_test ?? run.pruned_test), dense: run => 100 * run.dense_test,
  },
};
// `selected` is the ID of a configuration; `hidden` has for each filter the set of values that it hides.
const state = {
  group: 0, x: "reduction", y: "test", hidden: {}, selected: null, sort: {column: "sparsity %", up: true},
};
let shown = [];
const words = () => KINDS[report.groups[state.group].prunes];

// --- helpers

const by = id => document.getElementById(id);
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
const unique = values => [...new Set(values)];
const fixed = (value, digits = 2) => value === null || value === undefined ? "" : value.toFixed(digits);
const percentOf = fraction => fraction === null ? null : 100 * fraction;
const signed = value => `${value > -0.005 ? "+" : ""}${value.toFixed(2).replace(/^-(0\.00)$/, "$1")}`;
const counted = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

function deviation(values) {
  if (values.length < 2) return null;
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
}

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value; else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// --- the shown configurations: those that pass the filters, as means over the seeds that pass

function summarised(configuration) {
  const hidden = state.hidden.seed ?? new Set();
  const runs = configuration.runs.filter(run => !hidden.has(String(run.seed)));
  if (!runs.length) return null;
  const means = {};
  for (const what of ["sparsity", "sparsity_all", "reduction", "megabytes", "validation", "test", "drop", "pruned_test",
    "epochs", "seconds"]) means[what] = mean(runs.map(run => run[what]));
  const known = what => {
    const values = runs.map(run => run[what]).filter(value => value !== null);
    return values.length ? mean(values) : null;
  };
  return {
    ...configuration, ...means, runs,
    resolved: known("reconstructed_test"),
    multiply_adds: known("multiply_adds"),
    validation_drop: mean(runs.map(run => run.dense_validation - run.validation)),
    spread: deviation(runs.map(run => run.drop)),
    choices: unique(runs.map(run => run.choice).filter(choice => choice)).join(" "),
  };
}

// Marks as efficient those of which no other has at least their gain and at most their loss, and is better in one.
function markEfficient(points) {
  let least = Infinity, largest = -Infinity;
  for (const one of [...points].sort((a, b) => b.gain - a.gain || a.loss - b.loss)) {
    one.efficient = one.loss < least || (one.loss === least && one.gain === largest);
    if (one.efficient) { least = one.loss; largest = one.gain; }
  }
}

// With fewer seeds, chance matters more, so only configurations with the most seeds of a sweep can be efficient.
function markFront(configurations) {
  for (const sweep of unique(configurations.map(one => one.sweep))) {
    const members = configurations.filter(one => one.sweep === sweep);
    const most = Math.max(...members.map(one => one.runs.length));
    for (const one of members) {
      one.efficient = false;
      one.fewerSeeds = one.runs.length < most;
      // Rounded, because sums of floats depend on their order: equal masks must give equal means.
      one.loss = Math.round(1e7 * one.validation_drop);
      one.gain = Math.round(1e7 * one.reduction);
    }
    markEfficient(members.filter(one => !one.fewerSeeds));
  }
}

function applyFilters() {
  const passes = one => Object.keys(FILTERS).every(what => !state.hidden[what]?.has(String(one[what])));
  shown = report.groups[state.group].configurations.filter(passes).map(summarised).filter(one => one);
  markFront(shown);
}

const selected = () => shown.find(one => one.id === state.selected);

// The name, after the sweep, and with the settings that vary on this page but not within the configuration's sweep.
function fullName(one) {
  const settings = report.groups[state.group].varying
    .filter(what => one[what])
    .map(what => what === "other" ? one.other : `${what}=${one[what]}`)
    .filter(setting => !one.name.includes(setting));
  return [one.sweep && `${one.sweep}:`, one.name, ...settings].filter(text => text).join(" ");
}

// Each layer with its mean sparsity over runs; if ranges differ between seeds, the range covers all of them.
function layersOf(one) {
  const found = new Map();
  for (const run of one.runs.filter(each => each.layers.length)) {
    report.groups[state.group].ranges[run.ranges].forEach((layer, i) => {
      const known = found.get(layer.name) ?? {...layer, differs: false, values: []};
      known.differs ||= known.lo !== layer.lo || known.hi !== layer.hi;
      known.lo = Math.min(known.lo, layer.lo);
      known.hi = Math.max(known.hi, layer.hi);
      known.values.push(run.layers[i]);
      found.set(layer.name, known);
    });
  }
  return [...found.values()].map(layer => ({...layer, sparsity: mean(layer.values), runs: layer.values.length}));
}

function draw() {
  applyFilters();
  const runs = shown.reduce((sum, one) => sum + one.runs.length, 0);
  const all = report.groups[state.group].configurations.length;
  by("shown").textContent = `${shown.length} of ${counted(all, "configuration")}, ${counted(runs, "run")} shown.`;
  drawTable();
  drawDetail();
  if (window.Plotly) drawOverview();
}

// --- the address holds the ID of the selected configuration, which stays the same when the report has more runs

function select(id) {
  state.selected = id;
  history.replaceState(null, "", `#${id}`);
  drawTable();
  drawDetail();
  if (window.Plotly) { drawPareto(); drawLatency(); }
}

function enter(group) {
  Object.assign(state, {group, hidden: {}, selected: null});
  if (!(state.x in words().axes)) state.x = "reduction";
  if (Object.values(KINDS).some(({sort}) => sort === state.sort.column)) state.sort.column = words().sort;
  for (const kind of Object.keys(KINDS)) by(`note-${kind}`).hidden = report.groups[group].prunes !== kind;
  by("pareto-title").textContent = words().overview;
  by("heat-title").textContent = words().heat;
}

function followAddress() {
  const id = location.hash.slice(1);
  const has = group => group.configurations.some(one => one.id === id);
  const group = has(report.groups[state.group]) ? state.group : report.groups.findIndex(has);
  if (group >= 0 && group !== state.group) enter(group);
  state.selected = id;
  applyFilters();
  if (group >= 0 && !selected()) state.hidden = {};
  drawAll();
}

function drawAll() {
  drawFilters();
  drawOtherTables();
  draw();
}

// --- filters

function drawFilters() {
  const pick = (label, id, options, current, act) => {
    const choices = options.map(([value, textContent]) => (
      make("option", {value, textContent, selected: value === String(current)})
    ));
    const box = make("select", {id, onchange: event => act(event.target.value)}, ...choices);
    return make("label", {}, `${label} `, box);
  };
  const labels = of => Object.entries(of).map(([key, one]) => [key, one.label]);
  const groups = report.groups.map((group, i) => [String(i), group.title]);
  const pickGroup = value => {
    enter(Number(value));
    history.replaceState(null, "", "#");
    drawAll();
    by("group").focus();
  };
  by("axes").replaceChildren(
    ...(groups.length > 1 ? [pick("Model and data", "group", groups, state.group, pickGroup)] : []),
    pick("Vertical axis", "measure", labels(MEASURES), state.y, value => { state.y = value; draw(); }),
    pick("Horizontal axis", "axis", labels(words().axes), state.x, value => { state.x = value; draw(); }),
  );
  const {configurations} = report.groups[state.group];
  by("filter-boxes").replaceChildren(
    ...Object.entries(FILTERS).map(([what, label]) => filterBox(what, label, configurations.map(one => one[what]))),
    filterBox("seed", "Seed", configurations.flatMap(one => one.runs.map(run => run.seed))),
  );
}

// A checkbox for each value; nothing if there is only one value.
function filterBox(what, label, all) {
  const values = unique(all.map(String)).sort(compared);
  if (values.length < 2) return "";
  const hidden = state.hidden[what] ??= new Set();
  const set = (box, checked) => {
    box.checked = checked;
    hidden[checked ? "delete" : "add"](box.value);
  };
  const boxes = values.map(value => make("input", {
    type: "checkbox", name: what, value, checked: !hidden.has(value),
    onchange: event => { set(event.target, event.target.checked); draw(); },
  }));
  const allOrNone = make("button", {type: "button", textContent: "all / none", onclick: () => {
    const none = boxes.every(box => box.checked);
    for (const box of boxes) set(box, !none);
    draw();
  }});
  return make(
    "fieldset", {id: `filter-${what}`},
    make("legend", {textContent: label}),
    ...boxes.map(box => make("label", {}, box, ` ${box.value || "none"}`)),
    ...(values.length > 2 ? [allOrNone] : []),
  );
}

// --- start: text and tables at once, charts as soon as Plotly, which follows this script, is loaded

for (const group of report.groups) {
  group.varying = report.settings.filter(what => unique(group.configurations.map(one => one[what])).length > 1);
}
if (report.groups.length) {
  by("explorer").hidden = false;
  by("choices").open = matchMedia("(min-width: 800px)").matches;
  enter(0);
  followAddress();
  addEventListener("hashchange", followAddress);
  document.addEventListener("DOMContentLoaded", () => {
    drawPareto();
    setTimeout(() => { drawLatency(); drawEffect(); drawHeat(); drawSelected(); });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawOverview(); drawSelected(); });
  addEventListener("beforeprint", () => drawForPaper(true));
  addEventListener("afterprint", () => drawForPaper(false));
}
