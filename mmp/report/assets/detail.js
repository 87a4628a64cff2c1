"use strict";
// The selected configuration: its numbers, its commands, and two charts.

function drawDetail() {
  const one = selected();
  for (const chart of by("detail-body").querySelectorAll(".js-plotly-plot")) Plotly.purge(chart);
  by("detail-title").textContent = one ? `${fullName(one)}${one.efficient ? ", Pareto-efficient" : ""}`
    : "Select a configuration";
  if (!one) {
    by("detail-body").replaceChildren(make("p", {textContent: insteadOfDetail()}));
    return;
  }
  const commands = make("pre", {id: "command", textContent: one.runs.map(run => run.command).join("\n")});
  const copied = make("span", {id: "copied", role: "status"});
  const heading = textContent => make("h4", {textContent});
  by("detail-body").replaceChildren(
    factsOf(one),
    heading("Run again"),
    commands,
    make("p", {className: "copy"},
      make("button", {type: "button", textContent: "Copy", onclick: () => copy(commands, copied)}), " ", copied),
    heading("Export to ONNX"),
    make("pre", {id: "export", textContent: one.runs.map(run => run.export).join("\n")}),
    heading(words().layers),
    make("div", {id: "layers", className: "chart"}),
    heading("Fine-tuning"),
    make("div", {id: "curve", className: "chart"}),
  );
  if (window.Plotly) drawSelected();
}

function insteadOfDetail() {
  const known = report.groups[state.group].configurations.find(one => one.id === state.selected);
  if (known) return `The filters hide ${fullName(known)}.`;
  if (state.selected) return "This report does not have the configuration in the address of the page.";
  return "Click a point in the chart or a name in the table.";
}

function factsOf(one) {
  const [run] = one.runs;
  const seeds = one.runs.length > 1 ? counted(one.runs.length, "seed") : `seed ${run.seed}`;
  const dense = mean(one.runs.map(each => each.dense_test));
  const settings = report.settings.filter(what => one[what]).map(what => (
    what === "other" ? one.other : `${what} ${one[what]}`
  ));
  const channels = report.groups[state.group].prunes === "channels";
  const facts = {
    ...(channels ? {
      Removed: `${fixed(100 * one.reduction)} % of all parameters`,
      "Multiply-adds": one.multiply_adds === null ? "" : `${fixed(100 * one.multiply_adds)} % of the dense model's`,
    } : {
      Sparsity: `${fixed(100 * one.sparsity)} % of prunable weights, `
        + `${fixed(100 * one.sparsity_all)} % of all parameters`,
    }),
    Size: `${fixed(one.megabytes)} MB for ${channels ? "the smaller network" : "kept weights and masks"}; `
      + `dense model ${fixed(run.dense_megabytes)} MB`,
    Latency: one.runs.flatMap(each => each.timings.map(latencyText)).join("; "),
    "Test accuracy": `${fixed(100 * one.test)} % (${seeds}); dense model ${fixed(100 * dense)} %`,
    Drop: `${signed(one.drop)} points${one.spread === null ? "" : ` ± ${fixed(one.spread)} (standard deviation)`}`,
    "Validation accuracy": `${fixed(100 * one.validation)} %`,
    "Test before fine-tuning": `${fixed(100 * one.pruned_test)} % masked`
      + (one.resolved === null ? "" : `, ${fixed(100 * one.resolved)} % re-solved`),
    "Same masks as": one.twins.join(", "),
    Settings: settings.join(", "),
  };
  const known = Object.entries(facts).filter(([, text]) => text);
  return make("dl", {}, ...known.flatMap(([term, text]) => [
    make("dt", {textContent: term}), make("dd", {textContent: text}),
  ]));
}

async function copy(element, status) {
  status.textContent = "";
  try {
    await navigator.clipboard.writeText(element.textContent);
    status.textContent = "Copied.";
  } catch {  // the clipboard is missing or not allowed
    getSelection().selectAllChildren(element);
    status.textContent = "Selected: press Ctrl+C or ⌘C to copy.";
  }
}
