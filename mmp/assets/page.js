"use strict";
// Draws what page.py has put into the page: filters, charts, the table, and what is known of one configuration.
// Text from result files is set as text; Plotly takes a little markup, so what it is given goes through plain().

const report = JSON.parse(document.getElementById("data").textContent);
const CHOSEN = {kind: "Kind", sweep: "Sweep", signal: "Signal", strategy: "Strategy"};
for (const what of report.settings) CHOSEN[what] = what[0].toUpperCase() + what.slice(1);
const AXES = {
  sparsity: {label: "sparsity (% of prunable weights)", value: one => 100 * one.sparsity},
  megabytes: {label: "size (MB of kept weights and masks)", value: one => one.megabytes},
};
const MEASURES = {
  test: {label: "test accuracy (%)", value: run => 100 * run.test, dense: run => 100 * run.dense_test},
  validation: {label: "validation accuracy (%)", value: run => 100 * run.validation, dense: run => 100 * run.dense_validation},
  drop: {label: "drop (points of test accuracy)", value: run => run.drop, dense: () => 0},
  pruned_test: {label: "test accuracy before fine-tuning (%)", value: run => 100 * (run.reconstructed_test ?? run.pruned_test), dense: run => 100 * run.dense_test},
};
const state = {group: 0, x: "sparsity", y: "test", hidden: {}, selected: null, sort: {column: "sparsity %", up: true}};
let shown = [];

// --- small things

const by = id => document.getElementById(id);
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
const plain = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const unique = values => [...new Set(values)];
const fixed = (value, digits = 2) => value === null || value === undefined ? "" : value.toFixed(digits);
const signed = value => `${value > -0.005 ? "+" : ""}${value.toFixed(2).replace(/^-(0\.00)$/, "$1")}`;

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

// --- what is shown: configurations that pass the filters, as means over the seeds that do

function summarised(configuration) {
  const hidden = state.hidden.seed ?? new Set();
  const runs = configuration.runs.filter(run => !hidden.has(String(run.seed)));
  if (!runs.length) return null;
  const average = what => mean(runs.map(run => run[what]));
  const resolved = runs.map(run => run.reconstructed_test).filter(value => value !== null);
  return {
    ...configuration, runs,
    sparsity: average("sparsity"), sparsity_all: average("sparsity_all"), megabytes: average("megabytes"),
    validation: average("validation"), test: average("test"), drop: average("drop"), pruned_test: average("pruned_test"),
    resolved: resolved.length ? mean(resolved) : null, epochs: average("epochs"), seconds: average("seconds"),
    validation_drop: mean(runs.map(run => run.dense_validation - run.validation)),
    spread: deviation(runs.map(run => run.drop)),
    choices: unique(runs.map(run => run.choice).filter(choice => choice)).join(" "),
  };
}

function markFront(configurations) {
  for (const sweep of unique(configurations.map(one => one.sweep))) {
    let least = Infinity, sparsest = -Infinity;
    const members = configurations.filter(one => one.sweep === sweep);
    // Means are equal for configurations with the same masks; sums of floats are not, quite.
    members.forEach(one => { one.loss = Math.round(1e7 * one.validation_drop); one.gain = Math.round(1e7 * one.sparsity); });
    members.sort((a, b) => b.gain - a.gain || a.loss - b.loss);
    for (const one of members) {
      one.efficient = one.loss < least || (one.loss === least && one.gain === sparsest);
      if (one.efficient) { least = one.loss; sparsest = one.gain; }
    }
  }
}

function choose() {
  const passes = one => Object.keys(CHOSEN).every(what => !state.hidden[what]?.has(String(one[what])));
  shown = report.groups[state.group].configurations.filter(passes).map(summarised).filter(one => one);
  markFront(shown);
}

function draw() {
  choose();
  const runs = shown.reduce((sum, one) => sum + one.runs.length, 0);
  const all = report.groups[state.group].configurations;
  by("shown").textContent = `${shown.length} of ${all.length} configurations, ${runs} runs shown.`;
  drawTable();
  drawDetail();
  if (window.Plotly) drawCharts();
}

function select(index) {
  state.selected = index;
  history.replaceState(null, "", `#${state.group}-${index}`);
  drawTable();
  drawDetail();
  drawPareto();
}

// --- filters

function drawFilters() {
  const axes = by("axes"), boxes = by("filter-boxes");
  axes.replaceChildren();
  boxes.replaceChildren();
  const pick = (label, id, options, current, act) => {
    const box = make("select", {id, onchange: event => { act(event.target.value); draw(); }});
    for (const [value, text] of options) box.append(make("option", {value, textContent: text, selected: value === String(current)}));
    axes.append(make("label", {}, `${label} `, box));
  };
  if (report.groups.length > 1) {
    const options = report.groups.map((group, i) => [String(i), group.title]);
    pick("Model and data", "group", options, state.group, value => {
      Object.assign(state, {group: Number(value), hidden: {}, selected: null});
      drawFilters();
      drawOtherTables();
    });
  }
  pick("Up", "measure", Object.entries(MEASURES).map(([key, one]) => [key, one.label]), state.y, value => { state.y = value; });
  pick("Across", "axis", Object.entries(AXES).map(([key, one]) => [key, one.label]), state.x, value => { state.x = value; });
  const {configurations} = report.groups[state.group];
  for (const [what, label] of [...Object.entries(CHOSEN), ["seed", "Seed"]]) {
    const values = unique(configurations.flatMap(one => what === "seed" ? one.runs.map(run => run.seed) : [one[what]])).map(String).sort(compared);
    if (values.length < 2) continue;
    const hidden = state.hidden[what] ??= new Set();
    const labels = values.map(value => make("label", {}, make("input", {
      type: "checkbox", name: what, value, checked: !hidden.has(value),
      onchange: event => { hidden[event.target.checked ? "delete" : "add"](value); draw(); },
    }), ` ${value || "none"}`));
    const every = make("button", {type: "button", textContent: "all or none", onclick: () => {
      const all = labels.every(label => label.firstChild.checked);
      labels.forEach(label => { label.firstChild.checked = !all; hidden[all ? "add" : "delete"](label.firstChild.value); });
      draw();
    }});
    boxes.append(make("fieldset", {id: `filter-${what}`}, make("legend", {textContent: label}), ...labels, ...(values.length > 2 ? [every] : [])));
  }
}

// --- tables

function columns() {
  const {configurations} = report.groups[state.group];
  const some = test => configurations.some(test);
  const varies = what => unique(configurations.map(one => one[what])).length > 1;
  const words = (heading, value) => ({heading, value, words: true});
  const number = (heading, value, show = fixed) => ({heading, value, show});
  const severalSeeds = some(one => one.runs.length > 1);
  return [
    ...(varies("sweep") ? [words("sweep", one => one.sweep)] : []),
    words("configuration", one => one.name),
    ...report.settings.filter(varies).map(what => words(what, one => one[what])),
    number("sparsity %", one => 100 * one.sparsity),
    number("of all %", one => 100 * one.sparsity_all),
    number("MB", one => one.megabytes),
    number("val %", one => 100 * one.validation),
    number("test %", one => 100 * one.test),
    number("drop", one => one.drop, signed),
    ...(severalSeeds ? [number("sd", one => one.spread), number("seeds", one => one.runs.length, String)] : []),
    number("masked %", one => 100 * one.pruned_test),
    ...(some(one => one.runs.some(run => run.reconstructed_test !== null)) ? [number("re-solved %", one => one.resolved === null ? null : 100 * one.resolved)] : []),
    number("epochs", one => one.epochs, value => String(Math.round(100 * value) / 100)),
    ...(some(one => one.runs.some(run => run.choice)) ? [words("chosen", one => one.choices)] : []),
    number("s", one => one.seconds, value => value.toFixed(1)),
    words("front", one => one.efficient ? "*" : ""),
    ...(some(one => one.twins.length) ? [words("same masks as", one => one.twins.join(", "))] : []),
  ];
}

function compared(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (a === null || b === null) return (a === null) - (b === null);
  return String(a).localeCompare(String(b), "en", {numeric: true});
}

function headings(list, sort, act) {
  return make("tr", {}, ...list.map(({heading, words}) => {
    const cell = make("th", {scope: "col", className: words ? "words" : ""}, make("button", {type: "button", textContent: heading, onclick: () => act(heading)}));
    if (heading === sort.column) cell.setAttribute("aria-sort", sort.up ? "ascending" : "descending");
    return cell;
  }));
}

function drawTable() {
  const list = columns();
  const sorted = list.find(column => column.heading === state.sort.column) ?? list[1];
  const rows = shown.map(one => ({one, key: sorted.value(one)}));
  rows.sort((a, b) => (state.sort.up ? 1 : -1) * compared(a.key, b.key) || a.one.index - b.one.index);
  const act = heading => {
    state.sort = {column: heading, up: heading === state.sort.column ? !state.sort.up : true};
    drawTable();
    by("table").querySelector("th[aria-sort] button")?.focus();
  };
  const body = make("tbody");
  for (const {one} of rows) {
    const row = make("tr", {}, ...list.map(({heading, value, show = String, words}) => {
      const content = value(one);
      if (heading === "configuration") return make("td", {className: "words"}, make("button", {type: "button", textContent: content, onclick: () => { select(one.index); by("detail-title").focus(); }}));
      return make("td", {className: words ? "words" : "", textContent: content === null ? "" : show(content)});
    }));
    if (one.index === state.selected) row.setAttribute("aria-current", "true");
    body.append(row);
  }
  by("table").replaceChildren(make("table", {}, make("thead", {}, headings(list, state.sort, act)), body));
}

function drawOtherTables() {
  const place = by("tables");
  place.replaceChildren();
  for (const {title, headings: names, rows, words} of report.groups[state.group].tables) {
    const sort = {column: null, up: true};
    const list = names.map(heading => ({heading, words: words.includes(heading)}));
    const box = make("div", {className: "wide", tabIndex: 0, role: "region", "aria-label": title});
    const fill = () => {
      const column = names.indexOf(sort.column);
      const key = row => isNaN(parseFloat(row[column])) ? row[column] : parseFloat(row[column]);
      const ordered = column < 0 ? rows : [...rows].sort((a, b) => (sort.up ? 1 : -1) * compared(key(a), key(b)));
      const act = heading => { sort.up = sort.column === heading ? !sort.up : true; sort.column = heading; fill(); };
      const lines = ordered.map(row => make("tr", {}, ...row.map((cell, i) => make("td", {className: list[i].words ? "words" : "", textContent: cell}))));
      box.replaceChildren(make("table", {}, make("thead", {}, headings(list, sort, act)), make("tbody", {}, ...lines)));
    };
    fill();
    place.append(make("section", {}, make("h3", {textContent: title}), box));
  }
}

// --- one configuration

function drawDetail() {
  const one = shown.find(candidate => candidate.index === state.selected);
  const body = by("detail-body");
  if (!one) {
    by("detail-title").textContent = "Choose a configuration";
    body.replaceChildren(make("p", {textContent: "Click a point or a name in the table."}));
    return;
  }
  by("detail-title").textContent = (one.sweep ? `${one.sweep}: ` : "") + one.name + (one.efficient ? ", Pareto-efficient" : "");
  const run = one.runs[0];
  const seeds = one.runs.length > 1 ? ` (${one.runs.length} seeds)` : ` (seed ${run.seed})`;
  const facts = {
    Sparsity: `${fixed(100 * one.sparsity)} % of prunable weights, ${fixed(100 * one.sparsity_all)} % of all`,
    Size: `${fixed(one.megabytes)} MB of kept weights and masks; dense ${fixed(run.dense_megabytes)} MB`,
    Test: `${fixed(100 * one.test)} %${seeds}; dense ${fixed(100 * mean(one.runs.map(r => r.dense_test)))} %`,
    Drop: `${signed(one.drop)} points` + (one.spread === null ? "" : ` ± ${fixed(one.spread)} (standard deviation)`),
    Validation: `${fixed(100 * one.validation)} %`,
    "Before fine-tuning": `${fixed(100 * one.pruned_test)} % masked` + (one.resolved === null ? "" : `, ${fixed(100 * one.resolved)} % re-solved`),
    "Same masks": one.twins.join(", "),
    Settings: report.settings.map(what => one[what] && `${what} ${one[what]}`).filter(text => text).join(", "),
  };
  const list = make("dl");
  for (const [term, text] of Object.entries(facts)) if (text) list.append(make("dt", {textContent: term}), make("dd", {textContent: text}));
  const commands = one.runs.map(r => r.command).join("\n");
  const copy = make("button", {type: "button", className: "copy", textContent: "Copy", onclick: () => navigator.clipboard?.writeText(commands)});
  const files = one.runs.map(r => `${r.folder}/model.safetensors`).join("\n");
  body.replaceChildren(
    list,
    make("h4", {textContent: "Run it again"}), make("pre", {id: "command", textContent: commands}), copy,
    make("h4", {textContent: "Weights, below the sweep's folder"}), make("pre", {textContent: files}),
    make("h4", {textContent: "Layers: sparsity, and the range it may lie in"}), make("div", {id: "layers", className: "chart"}),
    make("h4", {textContent: "Training"}), make("div", {id: "curve", className: "chart"}),
  );
  if (window.Plotly) { drawLayers(one); drawCurve(one); }
}

// --- charts

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim(); }

function plot(id, label, traces, layout) {
  const grid = {gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true};
  const axes = {xaxis: {...grid, ...layout.xaxis}, yaxis: {...grid, ...layout.yaxis}};
  Plotly.react(id, traces, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: colour("text"), size: 12},
    margin: {l: 50, r: 12, t: 10, b: 45}, hoverlabel: {align: "left"},
    // A finger that scrolls the page must not zoom a chart.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    legend: {orientation: "h", y: -0.18, font: {size: 11}}, ...layout, ...axes,
  }, {displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]});
  const element = by(id);
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", label);
}

function title(text) { return {text, standoff: 8}; }

function hover(one) {
  const lines = [
    `<b>${plain(one.sweep ? `${one.sweep}: ${one.name}` : one.name)}</b>`,
    `sparsity ${fixed(100 * one.sparsity)} %, ${fixed(one.megabytes)} MB`,
    `test ${fixed(100 * one.test)} %, drop ${signed(one.drop)}${one.spread === null ? "" : ` ± ${fixed(one.spread)}`} points`,
    `validation ${fixed(100 * one.validation)} %, ${one.runs.length > 1 ? `${one.runs.length} seeds` : `seed ${one.runs[0].seed}`}`,
  ];
  if (one.twins.length) lines.push(`same masks as ${plain(one.twins.join(", "))}`);
  return lines.join("<br>");
}

function drawPareto() {
  const measure = MEASURES[state.y], axis = AXES[state.x];
  const y = one => mean(one.runs.map(measure.value));
  const xs = shown.map(axis.value);
  const traces = [];
  if (shown.length) {
    const ends = [Math.min(...xs), Math.max(...xs)];
    const dense = mean(shown.flatMap(one => one.runs.map(measure.dense)));
    const noise = 100 * report.groups[state.group].noise[state.y === "validation" ? "validation" : "test"];
    traces.push({x: [...ends, ...[...ends].reverse()], y: [dense - noise, dense - noise, dense + noise, dense + noise], fill: "toself", fillcolor: "rgba(128,128,128,.18)", line: {width: 0}, mode: "lines", hoverinfo: "skip", name: "± one standard error"});
    traces.push({x: ends, y: [dense, dense], mode: "lines", line: {dash: "dash", width: 1, color: colour("faint")}, name: "dense", hoverinfo: "name+y"});
  }
  const front = shown.filter(one => one.efficient);
  traces.push({x: front.map(axis.value), y: front.map(y), mode: "markers", name: "efficient on validation", hoverinfo: "skip", marker: {symbol: "circle-open", size: 17, color: colour("text"), line: {width: 1.5}}});
  for (const sweep of unique(shown.map(one => one.sweep))) {
    for (const signal of unique(shown.map(one => one.signal)).sort()) {
      const members = shown.filter(one => one.signal === signal && one.sweep === sweep);
      if (!members.length) continue;
      const spreads = members.map(one => deviation(one.runs.map(measure.value)) ?? 0);
      traces.push({
        x: members.map(axis.value), y: members.map(y), mode: "markers", name: plain(sweep ? `${sweep}: ${signal}` : signal),
        text: members.map(hover), hoverinfo: "text", customdata: members.map(one => one.index),
        error_y: {array: spreads, visible: spreads.some(spread => spread > 0), thickness: 1, width: 2},
        marker: {color: report.colours[signal], size: 9, symbol: members.map(one => (one.kind === "baseline" ? "diamond" : "circle") + (sweep === "A" ? "-open" : ""))},
      });
    }
  }
  const chosen = shown.filter(one => one.index === state.selected);
  traces.push({x: chosen.map(axis.value), y: chosen.map(y), mode: "markers", hoverinfo: "skip", showlegend: false, marker: {symbol: "cross-thin", size: 26, line: {width: 2, color: colour("accent")}}});
  plot("pareto", `${measure.label} against ${axis.label} of ${shown.length} configurations; the table below has the numbers`, traces, {
    xaxis: {title: title(axis.label)}, yaxis: {title: title(measure.label), autorange: state.y === "drop" ? "reversed" : true}, height: by("pareto").clientHeight || 460,
  });
  const element = by("pareto");
  element.removeAllListeners("plotly_click");
  element.on("plotly_click", ({points}) => { 
    if (points[0].customdata === undefined) return;
    select(points[0].customdata);
    if (matchMedia("(max-width: 800px)").matches) by("detail").scrollIntoView();
  });
  by("pareto-note").textContent = "Rings mark what is efficient among what is shown: none of it is as sparse and loses as little on validation accuracy, on which choices are made. "
    + "Bars are standard deviations over seeds; diamonds are baselines" + (shown.some(one => one.sweep) ? "; open symbols are sweep A." : ".");
}

function drawLayers(one) {
  const run = one.runs[0], layers = report.groups[state.group].ranges[run.ranges];
  const names = layers.map(layer => plain(layer.name.replace(/\.weight$/, "")));
  const text = layers.map((layer, i) => `<b>${names[i]}</b><br>${plain(layer.role)}, ${layer.total.toLocaleString("en")} weights<br>sparsity ${fixed(100 * run.layers[i])} % in [${fixed(100 * layer.lo, 0)}, ${fixed(100 * layer.hi, 0)}] %`);
  const common = {type: "bar", orientation: "h", y: names, text, hoverinfo: "text", textposition: "none"};
  plot("layers", `Sparsity of ${layers.length} layers against their ranges`, [
    {...common, name: "range", base: layers.map(layer => 100 * layer.lo), x: layers.map(layer => 100 * (layer.hi - layer.lo)), marker: {color: "rgba(128,128,128,.28)", line: {color: colour("faint"), width: 1}}, width: .85},
    {...common, name: "sparsity", x: run.layers.map(value => 100 * value), marker: {color: report.colours[one.signal]}, width: .4},
  ], {barmode: "overlay", height: 90 + 19 * layers.length, xaxis: {range: [0, 100], title: title("%")}, yaxis: {autorange: "reversed", tickfont: {size: 10}, tickmode: "linear"}, showlegend: false});
}

function drawCurve(one) {
  const dashes = ["solid", "dash", "dot", "dashdot"];
  const curves = one.runs.filter(run => run.history.length);
  if (!curves.length) {
    by("curve").replaceChildren(make("p", {textContent: one.epochs ? "No metrics of epochs in the result files." : "Not trained after pruning."}));
    by("curve").style.minHeight = 0;
    return;
  }
  plot("curve", `Validation accuracy of ${curves.length} runs, epoch by epoch`, [
    ...curves.map((run, i) => ({
      x: run.history.map(epoch => epoch[0] + 1), y: run.history.map(epoch => epoch[3] === null ? null : 100 * epoch[3]), name: `seed ${run.seed}`, mode: "lines+markers",
      line: {dash: dashes[i % dashes.length], color: report.colours[one.signal]}, hoverinfo: "text",
      text: run.history.map(epoch => `seed ${run.seed}, epoch ${epoch[0] + 1}<br>validation ${fixed(100 * epoch[3])} %, loss ${fixed(epoch[2], 3)}<br>training loss ${fixed(epoch[1], 3)}<br>sparsity ${fixed(100 * epoch[4])} %`),
    })),
    {x: [1, Math.max(...curves.map(run => run.history.length))], y: Array(2).fill(100 * mean(curves.map(run => run.dense_validation))), name: "dense", mode: "lines", line: {dash: "dash", width: 1, color: colour("faint")}, hoverinfo: "name+y"},
  ], {height: 280, xaxis: {title: title("epoch"), dtick: curves[0].history.length > 12 ? undefined : 1}, yaxis: {title: title("validation accuracy (%)")}});
}

function drawEffect() {
  const lines = {x: [], y: []};
  for (const one of shown) {
    lines.x.push(100 * one.sparsity, 100 * one.sparsity, null);
    lines.y.push(100 * one.pruned_test, 100 * one.test, null);
  }
  const x = shown.map(one => 100 * one.sparsity), common = {x, mode: "markers", text: shown.map(hover), hoverinfo: "text+y"};
  const colours = shown.map(one => report.colours[one.signal]);
  const resolved = shown.some(one => one.resolved !== null);
  plot("effect", "Test accuracy before and after fine-tuning, against sparsity; the table has the numbers", [
    {...lines, mode: "lines", line: {width: 1, color: "rgba(128,128,128,.5)"}, hoverinfo: "skip", showlegend: false},
    {...common, y: shown.map(one => 100 * one.pruned_test), name: "masked", marker: {symbol: "x-thin", size: 7, line: {width: 1.5, color: colours}}},
    ...(resolved ? [{...common, y: shown.map(one => one.resolved === null ? null : 100 * one.resolved), name: "re-solved", marker: {symbol: "diamond-open", size: 8, color: colours}}] : []),
    {...common, y: shown.map(one => 100 * one.test), name: "fine-tuned", marker: {size: 8, color: colours}},
  ], {height: 380, xaxis: {title: title("sparsity (% of prunable weights)")}, yaxis: {title: title("test accuracy (%)")}});
}

function drawHeat() {
  const members = shown.filter(one => one.runs[0].layers.length);
  const {ranges} = report.groups[state.group];
  const layers = unique(members.flatMap(one => ranges[one.runs[0].ranges].map(layer => layer.name)));
  const columnsOf = members.map(one => new Map(ranges[one.runs[0].ranges].map((layer, i) => [layer.name, 100 * mean(one.runs.map(run => run.layers[i]))])));
  const names = members.map(one => plain([one.sweep, one.name, ...report.settings.filter(what => unique(members.map(m => m[what])).length > 1).map(what => one[what])].filter(text => text).join(" ")));
  plot("heat", `Sparsity of ${layers.length} layers in ${members.length} configurations`, [{
    type: "heatmap", x: members.map((one, i) => i), y: layers.map(name => plain(name.replace(/\.weight$/, ""))), zmin: 0, zmax: 100, colorscale: "Viridis", reversescale: true,
    z: layers.map(name => columnsOf.map(column => column.get(name) ?? null)),
    text: layers.map(name => members.map((one, i) => `<b>${names[i]}</b><br>${plain(name)}<br>sparsity ${fixed(columnsOf[i].get(name))} %`)), hoverinfo: "text",
    colorbar: {title: {text: "%"}, thickness: 12, lenmode: "pixels", len: 130, y: 1, yanchor: "top"},
  }], {
    height: 170 + 17 * layers.length,
    xaxis: {tickmode: "array", tickvals: members.length > 60 ? [] : members.map((one, i) => i), ticktext: names, tickangle: -60, tickfont: {size: 10}},
    yaxis: {autorange: "reversed", tickfont: {size: 10}, tickmode: "linear"},
  });
}

function drawCharts() {
  drawPareto();
  drawEffect();
  drawHeat();
  const one = shown.find(candidate => candidate.index === state.selected);
  if (one) { drawLayers(one); drawCurve(one); }
}

// --- begin: text and tables at once, charts when the library below this script is there

for (const group of report.groups) group.configurations.forEach((one, index) => { one.index = index; });
const linked = location.hash.match(/^#(\d+)-(\d+)$/);
if (linked && report.groups[linked[1]]?.configurations[linked[2]]) Object.assign(state, {group: Number(linked[1]), selected: Number(linked[2])});
if (report.groups.length) {
  by("explorer").hidden = false;
  by("choices").open = matchMedia("(min-width: 800px)").matches;
  drawFilters();
  drawOtherTables();
  draw();
  document.addEventListener("DOMContentLoaded", () => { drawPareto(); setTimeout(drawCharts); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
  addEventListener("beforeprint", drawCharts);
  addEventListener("afterprint", drawCharts);
}
