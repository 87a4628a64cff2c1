"use strict";
// The charts of the page, drawn by Plotly. page.js decides which configurations are shown and which one is selected.
// Plotly interprets some markup, so text from result files is escaped by plain().

const PAPER = {width: 680, height: 900};  // the size of a printed chart in pixels; fits A4 and Letter
const GREY = "rgba(128, 128, 128, .2)";
const DASHES = ["solid", "dash", "dot", "dashdot"];
const SYMBOLS = ["circle", "square", "triangle-up", "star", "hexagon", "cross", "pentagon"];
let printing = false;

// --- helpers of all charts

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const title = text => ({text, standoff: 8});
const plain = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = text => text.length > 40 ? `${text.slice(0, 39)}…` : text;
const capital = text => text[0].toUpperCase() + text.slice(1);
const wrapped = text => (text.match(/.{1,60}/gsu) ?? []).map(plain).join("<br>");
const layerName = name => plain(name.replace(/\.weight$/, ""));

function plot(id, label, traces, layout) {
  const coarse = matchMedia("(pointer: coarse)").matches;
  const grid = {gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true};
  Plotly.react(id, traces, {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: {color: colour("text"), size: 12},
    margin: {l: 50, r: 12, t: 10, b: 45},
    hoverlabel: {align: "left"},
    dragmode: coarse ? false : "zoom",  // scrolling with a finger must not zoom the chart
    legend: {orientation: "h", yref: "container", y: 0, yanchor: "bottom", font: {size: 11}},
    autosize: true,  // also restores the width after printing
    ...(printing ? {width: PAPER.width} : {}),
    ...layout,
    xaxis: {...grid, ...layout.xaxis},
    yaxis: {...grid, ...layout.yaxis},
  }, {
    displaylogo: false,
    displayModeBar: coarse ? false : "hover",
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  });
  by(id).style.minHeight = `${layout.height}px`;  // when the window is resized, Plotly makes the height relative
  by(id).setAttribute("role", "group");
  by(id).setAttribute("aria-label", label);
}

function showText(id, text) {
  by(id).replaceChildren(make("p", {textContent: text}));
}

function denseLine(y, name) {
  const line = {dash: "dash", width: 1, color: colour("faint")};
  return {type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line, name, showlegend: true};
}

function band(y, half, name, look) {
  const box = {type: "rect", xref: "paper", x0: 0, x1: 1, y0: y - half, y1: y + half};
  return {...box, name, showlegend: true, layer: "below", ...look};
}

// The height of a chart with a row for each layer. On paper it is at most a page, and only every nth name is shown.
function layerRows(count, each, rest) {
  const wanted = rest + each * count;
  const height = printing ? Math.min(wanted, PAPER.height) : wanted;
  const names = {type: "category", autorange: "reversed", tickfont: {size: 10}};
  return {height, yaxis: {...names, tickmode: "linear", tick0: 0, dtick: Math.ceil(wanted / height)}};
}

function hover(one) {
  const spread = one.spread === null ? "" : ` ± ${fixed(one.spread)}`;
  const seeds = one.runs.length > 1 ? counted(one.runs.length, "seed") : `seed ${one.runs[0].seed}`;
  return [
    `<b>${wrapped(fullName(one))}</b>`,
    `${words().share} ${fixed(100 * one.reduction)} %, ${fixed(one.megabytes)} MB`,
    ...(one.multiply_adds === null ? [] : [`multiply-adds left ${fixed(100 * one.multiply_adds)} %`]),
    `test ${fixed(100 * one.test)} %, drop ${signed(one.drop)}${spread} points`,
    `validation ${fixed(100 * one.validation)} %, ${seeds}`,
    ...(one.twins.length ? [wrapped(`same masks as ${one.twins.join(", ")}`)] : []),
  ].join("<br>");
}

// --- charts of all shown configurations

function drawOverview() {
  drawPareto();
  drawLatency();
  drawEffect();
  drawHeat();
}

function drawPareto() {
  const measure = MEASURES[state.y], axis = words().axes[state.x];
  const meanOf = one => mean(one.runs.map(measure.value));
  const markers = (members, rest) => (
    {x: members.map(axis.value), y: members.map(meanOf), mode: "markers", hoverinfo: "skip", ...rest}
  );
  const traces = [
    markers(shown.filter(one => one.efficient), {
      name: "Pareto-efficient on validation",
      marker: {symbol: "circle-open", size: 17, color: colour("text"), line: {width: 1.5}},
    }),
  ];
  for (const sweep of unique(shown.map(one => one.sweep))) {
    for (const signal of unique(shown.map(one => one.signal)).sort()) {
      const members = shown.filter(one => one.signal === signal && one.sweep === sweep);
      if (!members.length) continue;
      const spreads = members.map(one => deviation(one.runs.map(measure.value)) ?? 0);
      const symbol = one => (one.kind === "baseline" ? "diamond" : "circle") + (sweep === "A" ? "-open" : "");
      traces.push(markers(members, {
        name: plain(short(sweep ? `${sweep}: ${signal}` : signal)),
        text: members.map(hover),
        hoverinfo: "text",
        customdata: members.map(one => one.id),
        error_y: {array: spreads, visible: spreads.some(spread => spread > 0), thickness: 1, width: 2},
        marker: {color: report.colours[signal], size: 9, symbol: members.map(symbol)},
      }));
    }
  }
  traces.push(markers(shown.filter(one => one.id === state.selected), {
    showlegend: false,
    marker: {symbol: "cross-thin", size: 26, line: {width: 2, color: colour("accent")}},
  }));
  const label = `${measure.label} against ${axis.label} of ${counted(shown.length, "configuration")}`;
  plot("pareto", `${label}; the table below has the numbers`, traces, {
    height: printing ? 460 : by("pareto").clientHeight || 460,
    shapes: shown.length ? denseAndNoise(measure) : [],
    xaxis: {title: title(axis.label)},
    yaxis: {title: title(measure.label), autorange: state.y === "drop" ? "reversed" : true},
  });
  selectOnClick("pareto");
  by("pareto-note").textContent = noteOnPareto();
}

function selectOnClick(chart) {
  by(chart).removeAllListeners("plotly_click");
  by(chart).on("plotly_click", ({points}) => {
    if (points[0].customdata === undefined) return;
    select(points[0].customdata);
    if (matchMedia("(max-width: 800px)").matches) by("detail").scrollIntoView();
  });
}

function denseAndNoise(measure) {
  const {noise} = report.groups[state.group];
  const dense = mean(shown.flatMap(one => one.runs.map(measure.dense)));
  const filled = {fillcolor: GREY, line: {width: 0}};
  const shapes = [band(dense, 100 * noise[measure.split], "± one standard error", filled)];
  if (measure.finetunedOnTest && noise.seeds !== null) {
    const dotted = {dash: "dot", width: 1.5, color: colour("seeds")};
    const look = {fillcolor: "rgba(0,0,0,0)", line: dotted};
    shapes.push(band(dense, noise.seeds, "± standard deviation over seeds (median)", look));
  }
  return [...shapes, denseLine(dense, state.y === "drop" ? "dense" : `dense (${fixed(dense)})`)];
}

function noteOnPareto() {
  const some = test => shown.some(test);
  return [
    `Rings mark Pareto-efficient configurations: no other one shown ${words().sparser} and is at least as accurate on`,
    "validation, and better in one of the two. Test accuracy is only reported, never used to choose.",
    some(one => one.fewerSeeds) && "Configurations with fewer seeds than others get no ring.",
    some(one => one.runs.length > 1) && "Error bars are standard deviations over seeds.",
    some(one => one.kind === "baseline") && "Diamonds are baselines.",
    some(one => one.sweep) && "Open symbols belong to sweep A.",
  ].filter(sentence => sentence).join(" ");
}

function drawEffect() {
  const stems = {x: [], y: []};
  for (const one of shown) {
    stems.x.push(100 * one.reduction, 100 * one.reduction, null);
    stems.y.push(100 * one.pruned_test, 100 * one.test, null);
  }
  const colours = shown.map(one => report.colours[one.signal]);
  const text = shown.map(hover);
  const markers = (name, value, marker) => ({
    name, marker, text, mode: "markers", hoverinfo: "text+y",
    x: shown.map(one => 100 * one.reduction),
    y: shown.map(one => one[value] === null ? null : 100 * one[value]),
  });
  const traces = [
    {...stems, mode: "lines", line: {width: 1, color: "rgba(128,128,128,.5)"}, hoverinfo: "skip", showlegend: false},
    markers("masked", "pruned_test", {symbol: "x-thin", size: 7, line: {width: 1.5, color: colours}}),
    markers("re-solved", "resolved", {symbol: "diamond-open", size: 8, color: colours}),
    markers("fine-tuned", "test", {size: 8, color: colours}),
  ].filter(trace => trace.name !== "re-solved" || shown.some(one => one.resolved !== null));
  const {label} = words().axes.reduction;
  plot("effect", `Test accuracy before and after fine-tuning, against ${label}; the table has the numbers`, traces, {
    height: 380, xaxis: {title: title(label)}, yaxis: {title: title("test accuracy (%)")},
  });
}

function drawHeat() {
  const columns = shown
    .map(one => ({name: short(fullName(one)), one, layers: new Map(layersOf(one).map(layer => [layer.name, layer]))}))
    .filter(column => column.layers.size);
  const layers = unique(columns.flatMap(column => [...column.layers.keys()]));
  const percent = (column, layer) => column.layers.has(layer) ? 100 * column.layers.get(layer).sparsity : null;
  const places = columns.map((column, i) => i);
  const named = 16 * columns.length <= (printing ? PAPER.width : by("heat").clientWidth);
  const longest = named ? Math.max(0, ...columns.map(column => column.name.length)) : 0;
  const counts = `${counted(layers.length, words().layer)} in ${counted(columns.length, "configuration")}`;
  const label = `${capital(words().share)}: ${counts}`;
  const heads = columns.map(column => `<b>${wrapped(fullName(column.one))}</b>`);
  plot("heat", label, [{
    type: "heatmap", zmin: 0, zmax: 100, colorscale: "Viridis", reversescale: true, hoverinfo: "text",
    x: places,
    y: layers.map(layerName),
    z: layers.map(layer => columns.map(column => percent(column, layer))),
    text: layers.map(layer => columns.map(
      (column, i) => `${heads[i]}<br>${plain(layer)}<br>${words().share} ${fixed(percent(column, layer))} %`,
    )),
    colorbar: {title: {text: "%"}, thickness: 12, lenmode: "pixels", len: 130, y: 1, yanchor: "top"},
  }], {
    ...layerRows(layers.length, 17, Math.max(170, 60 + 5 * longest)),
    xaxis: {
      tickmode: "array", tickvals: named ? places : [], ticktext: columns.map(column => plain(column.name)),
      tickangle: -60, tickfont: {size: 10},
    },
  });
}

// --- charts of the selected configuration

function drawSelected() {
  const one = selected();
  if (!one) return;
  drawLayers(one);
  drawCurve(one);
}

function drawLayers(one) {
  const layers = layersOf(one);
  if (!layers.length) {
    showText("layers", "The result files contain no layers.");
    return;
  }
  const text = layers.map(layer => [
    `<b>${layerName(layer.name)}</b>`,
    `${plain(layer.role)}, ${layer.total.toLocaleString("en")} ${words().unit}`,
    `${words().share} ${fixed(100 * layer.sparsity)} %`
      + (layer.runs > 1 ? `, mean over ${counted(layer.runs, "seed")}` : ""),
    `range ${fixed(100 * layer.lo, 0)} to ${fixed(100 * layer.hi, 0)} %${layer.differs ? " over all seeds" : ""}`,
  ].join("<br>"));
  const common = {type: "bar", orientation: "h", text, hoverinfo: "text", textposition: "none"};
  const y = layers.map(layer => layerName(layer.name));
  plot("layers", `${capital(words().share)}: ${counted(layers.length, words().layer)} against their ranges`, [
    {
      ...common, y, name: "range", width: .85,
      base: layers.map(layer => 100 * layer.lo),
      x: layers.map(layer => 100 * (layer.hi - layer.lo)),
      marker: {color: GREY, line: {color: colour("faint"), width: 1}},
    },
    {
      ...common, y, name: words().share, width: .4,
      x: layers.map(layer => 100 * layer.sparsity),
      marker: {color: report.colours[one.signal]},
    },
  ], {
    ...layerRows(layers.length, 19, 90),
    barmode: "overlay", showlegend: false, xaxis: {range: [0, 100], title: title("%")},
  });
}

function drawCurve(one) {
  const runs = one.runs.filter(run => run.history.length);
  if (!runs.length) {
    showText("curve", one.epochs ? "The result files contain no metrics of epochs." : "Not fine-tuned.");
    return;
  }
  const longest = Math.max(...runs.map(run => run.history.length));
  const dense = 100 * mean(runs.map(run => run.dense_validation));
  plot("curve", `Validation accuracy of ${counted(runs.length, "run")}, epoch by epoch`, runs.map((run, i) => ({
    name: `seed ${run.seed}`, mode: "lines+markers", hoverinfo: "text",
    x: run.history.map(epoch => epoch[0] + 1),
    y: run.history.map(epoch => percentOf(epoch[3])),
    line: {dash: DASHES[i % DASHES.length], color: report.colours[one.signal]},
    marker: {symbol: SYMBOLS[i % SYMBOLS.length], size: 8},
    text: run.history.map(([epoch, training, validation, accuracy, sparsity]) => [
      `seed ${run.seed}, epoch ${epoch + 1}`,
      `validation ${fixed(percentOf(accuracy))} %, loss ${fixed(validation, 3)}`,
      `training loss ${fixed(training, 3)}`,
      ...(sparsity === null ? [] : [`sparsity ${fixed(percentOf(sparsity))} %`]),
    ].join("<br>")),
  })), {
    height: 280,
    shapes: [denseLine(dense, `dense (${fixed(dense)})`)],
    showlegend: true,
    xaxis: {
      title: title("epoch"), dtick: longest > 12 ? undefined : 1, range: longest === 1 ? [.5, 1.5] : undefined,
    },
    yaxis: {title: title("validation accuracy (%)")},
  });
}

// --- printing: dark on white, as wide as a page

function drawForPaper(begins) {
  if (!window.Plotly) return;
  printing = begins;
  document.documentElement.classList.toggle("paper", begins);
  drawOverview();
  drawSelected();
}
