"use strict";
// What is known of the configuration that is chosen: numbers, commands, files, and two charts.

function drawDetail() {
  const one = chosen();
  for (const chart of by("detail-body").querySelectorAll(".js-plotly-plot")) Plotly.purge(chart);
  by("detail-title").textContent = one ? `${fullName(one)}${one.efficient ? ", Pareto-efficient" : ""}`
    : "Choose a configuration";
  if (!one) {
    by("detail-body").replaceChildren(make("p", {textContent: insteadOfDetail()}));
    return;
  }
  const commands = make("pre", {id: "command", textContent: one.runs.map(run => run.command).join("\n")});
  const copied = make("span", {id: "copied", role: "status"});
  const heading = textContent => make("h4", {textContent});
  by("detail-body").replaceChildren(
    factsOf(one),
    heading("Run it again"),
    commands,
    make("p", {className: "copy"},
      make("button", {type: "button", textContent: "Copy", onclick: () => copy(commands, copied)}), " ", copied),
    heading("Export it"),
    make("pre", {id: "export", textContent: one.runs.map(run => run.export).join("\n")}),
    heading("Layers: sparsity, and the range it may lie in"),
    make("div", {id: "layers", className: "chart"}),
    heading("Training"),
    make("div", {id: "curve", className: "chart"}),
  );
  if (window.Plotly) drawChosen();
}

function insteadOfDetail() {
  const known = report.groups[state.group].configurations.find(one => one.id === state.selected);
  if (known) return `Filters leave out ${fullName(known)}.`;
  if (state.selected) return "The address names a configuration that this report does not have.";
  return "Click a point or a name in the table.";
}

function factsOf(one) {
  const [run] = one.runs;
  const seeds = one.runs.length > 1 ? counted(one.runs.length, "seed") : `seed ${run.seed}`;
  const dense = mean(one.runs.map(each => each.dense_test));
  const settings = report.settings.filter(what => one[what]).map(what => (
    what === "other" ? one.other : `${what} ${one[what]}`
  ));
  const facts = {
    Sparsity: `${fixed(100 * one.sparsity)} % of prunable weights, ${fixed(100 * one.sparsity_all)} % of all`,
    Size: `${fixed(one.megabytes)} MB of kept weights and masks; dense ${fixed(run.dense_megabytes)} MB`,
    Test: `${fixed(100 * one.test)} % (${seeds}); dense ${fixed(100 * dense)} %`,
    Drop: `${signed(one.drop)} points${one.spread === null ? "" : ` ± ${fixed(one.spread)} (standard deviation)`}`,
    Validation: `${fixed(100 * one.validation)} %`,
    "Before fine-tuning": `${fixed(100 * one.pruned_test)} % masked`
      + (one.resolved === null ? "" : `, ${fixed(100 * one.resolved)} % re-solved`),
    "Same masks": one.twins.join(", "),
    Settings: settings.join(", "),
  };
  const told = Object.entries(facts).filter(([, text]) => text);
  return make("dl", {}, ...told.flatMap(([term, text]) => [
    make("dt", {textContent: term}), make("dd", {textContent: text}),
  ]));
}

async function copy(element, status) {
  status.textContent = "";
  try {
    await navigator.clipboard.writeText(element.textContent);
    status.textContent = "Copied.";
  } catch {  // no clipboard here, or none allowed
    getSelection().selectAllChildren(element);
    status.textContent = "Selected; Ctrl+C or ⌘C copies it.";
  }
}
