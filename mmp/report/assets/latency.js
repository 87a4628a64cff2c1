"use strict";
// The chart of measured latencies: a point for each exported file of the shown runs. Without one, there is no chart.

const SYMBOLS_OF_TARGETS = ["circle", "square", "pentagon", "triangle-up", "cross", "star"];
const MOST_NAMES = 14;  // labels that fit into the chart

function latencyText({target, latency, lower, upper}) {
  return `${target} ${fixed(latency)}${lower < upper ? ` (quartiles ${fixed(lower)} to ${fixed(upper)})` : ""}`;
}

function measuredPoints() {
  return shown.flatMap(one => one.runs.flatMap(run => run.timings.map(timing => ({
    one, run, timing, gain: -timing.latency, loss: run.dense_validation - run.validation,
  }))));
}

function drawLatency() {
  const measure = MEASURES[state.y];
  const points = measuredPoints();
  showLatency(points.length > 0);
  if (!points.length) return;
  const targets = unique(points.map(({timing}) => timing.target)).sort();
  for (const target of targets) markEfficient(points.filter(({timing}) => timing.target === target));
  const markers = (members, rest) => ({
    x: members.map(({timing}) => timing.latency), y: members.map(({run}) => measure.value(run)), ...rest,
  });
  const traces = [markers(points.filter(point => point.efficient), {
    name: "Pareto-efficient on validation", mode: "markers", hoverinfo: "skip",
    marker: {symbol: "circle-open", size: 17, color: colour("text"), line: {width: 1.5}},
  })];
  const named = points.length <= MOST_NAMES;
  targets.forEach((target, i) => {
    for (const signal of unique(points.map(({one}) => one.signal)).sort()) {
      const members = points.filter(({one, timing}) => one.signal === signal && timing.target === target);
      if (!members.length) continue;
      traces.push(markers(members, {
        name: plain(short(`${target}: ${signal}`)),
        mode: named ? "markers+text" : "markers",
        text: members.map(({one}) => plain(short(one.strategy))),
        textposition: "top center",
        textfont: {size: 10},
        hovertext: members.map(hoverOnLatency),
        hoverinfo: "text",
        customdata: members.map(({one}) => one.id),
        error_x: {
          symmetric: false, thickness: 1, width: 2,
          array: members.map(({timing}) => timing.upper - timing.latency),
          arrayminus: members.map(({timing}) => timing.latency - timing.lower),
        },
        marker: {
          color: report.colours[signal], size: 9, symbol: SYMBOLS_OF_TARGETS[i % SYMBOLS_OF_TARGETS.length],
        },
      }));
    }
  });
  traces.push(markers(points.filter(({one}) => one.id === state.selected), {
    showlegend: false, mode: "markers", hoverinfo: "skip",
    marker: {symbol: "cross-thin", size: 26, line: {width: 2, color: colour("accent")}},
  }));
  const label = "latency of one image (share of the dense model's)";
  const dense = mean(points.map(({run}) => measure.dense(run)));
  const subject = `${measure.label} against ${label} of ${counted(points.length, "file")}`;
  plot("latency", `${subject}; a table has the numbers`, traces, {
    height: 400,
    shapes: [denseLine(dense, state.y === "drop" ? "dense" : `dense (${fixed(dense)})`)],
    xaxis: {title: title(label)},
    yaxis: {title: title(measure.label), autorange: state.y === "drop" ? "reversed" : true},
  });
  selectOnClick("latency");
  by("latency-note").textContent = noteOnLatency(points);
}

function showLatency(wanted) {
  if (wanted === (by("latency") !== null)) return;
  if (!wanted) Plotly.purge("latency");
  by("latency-section").replaceChildren(...(wanted ? [
    make("h3", {textContent: "Accuracy against measured latency"}),
    make("div", {id: "latency", className: "chart"}),
    make("p", {id: "latency-note", className: "note"}),
  ] : []));
}

function hoverOnLatency({one, run, timing}) {
  return [
    `<b>${wrapped(fullName(one))}</b>`,
    `seed ${run.seed}, ${plain(latencyText(timing))}`,
    `test ${fixed(100 * run.test)} %, drop ${signed(run.drop)} points`,
    ...(timing.place ? [wrapped(timing.place)] : []),
  ].join("<br>");
}

function noteOnLatency(points) {
  const places = unique(points.map(({timing}) => timing.place).filter(place => place)).sort();
  return [
    "One point for each exported file that was timed; bars are quartiles. Rings mark files of one target of which no",
    "other is at least as fast and at least as accurate on validation, and better in one of the two.",
    places.length && `Measured in ${places.join("; ")}.`,
  ].filter(sentence => sentence).join(" ");
}
