"use strict";
// The tables of the page. A click or a key on a heading sorts a table by this column; the heading keeps the focus.
// A column has a heading, value(row) to sort by, text(row) to show, and `words`: true for words, false for numbers.

function compared(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", {numeric: true});
}

// Draws a table into `box`. `sort` is {column, up}; it keeps the user's choice between two drawings.
// `content(row, column)` may return an element for a cell of words; `mark(row, line)` may set attributes of a row.
function drawSorted(box, columns, rows, sort, {content = () => null, mark = () => {}} = {}) {
  const column = columns.find(({heading}) => heading === sort.column);
  const keys = new Map(column ? rows.map(row => [row, column.value(row)]) : []);
  const empty = row => keys.get(row) === null;  // always sorted last
  const order = (a, b) => empty(a) - empty(b) || (sort.up ? 1 : -1) * compared(keys.get(a), keys.get(b));
  const sortBy = heading => {
    Object.assign(sort, {column: heading, up: heading === sort.column ? !sort.up : true});
    drawSorted(box, columns, rows, sort, {content, mark});
    box.querySelector("th[aria-sort] button").focus();
  };
  const head = make("tr", {}, ...columns.map(({heading, words}) => {
    const button = make("button", {type: "button", textContent: heading, onclick: () => sortBy(heading)});
    const cell = make("th", {scope: "col", className: words ? "words" : ""}, button);
    if (heading === sort.column) cell.setAttribute("aria-sort", sort.up ? "ascending" : "descending");
    return cell;
  }));
  const body = (column ? [...rows].sort(order) : rows).map(row => {
    const line = make("tr", {}, ...columns.map(each => (each.words
      ? make("td", {className: "words"}, content(row, each) ?? make("span", {textContent: each.text(row)}))
      : make("td", {textContent: each.text(row)})
    )));
    mark(row, line);
    return line;
  });
  box.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

// --- the table of the shown configurations

function columnsOf({configurations, varying, prunes}) {
  const several = configurations.some(one => one.runs.length > 1);
  const some = test => configurations.some(one => one.runs.some(test));
  const words = (heading, value) => ({heading, value, text: value, words: true});
  const number = (heading, value, show = fixed) => (
    {heading, value, text: one => value(one) === null ? "" : show(value(one))}
  );
  const percent = (heading, what) => number(heading, one => percentOf(one[what]));
  return [
    ...(configurations.some(one => one.sweep) ? [words("sweep", one => one.sweep)] : []),
    words("configuration", one => one.name),
    ...varying.map(what => words(what, one => one[what])),
    ...(prunes === "channels" ? [percent("removed %", "reduction"), percent("MACs %", "multiply_adds")]
      : [percent("sparsity %", "sparsity"), percent("of all %", "sparsity_all")]),
    number("MB", one => one.megabytes),
    percent("val %", "validation"),
    percent("test %", "test"),
    number("drop", one => one.drop, signed),
    ...(several ? [number("sd", one => one.spread), number("seeds", one => one.runs.length, String)] : []),
    percent("masked %", "pruned_test"),
    ...(some(run => run.reconstructed_test !== null) ? [percent("re-solved %", "resolved")] : []),
    number("epochs", one => one.epochs, value => String(Math.round(100 * value) / 100)),
    ...(some(run => run.choice) ? [words("fine-tuning", one => one.choices)] : []),
    number("seconds", one => one.seconds, value => value.toFixed(1)),
    words("front", one => one.efficient ? "*" : ""),
    ...(configurations.some(one => one.twins.length) ? [words("same masks as", one => one.twins.join(", "))] : []),
  ];
}

function drawTable() {
  const choose = one => {
    select(one.id);
    by("detail-title").focus();
  };
  drawSorted(by("table"), columnsOf(report.groups[state.group]), shown, state.sort, {
    content: (one, {heading}) => heading === "configuration"
      ? make("button", {type: "button", textContent: one.name, onclick: () => choose(one)})
      : null,
    mark: (one, line) => {
      if (one.id === state.selected) line.setAttribute("aria-current", "true");
    },
  });
}

// --- tables whose cells Python has formatted

function drawOtherTables() {
  const number = text => Number.isNaN(parseFloat(text)) ? null : parseFloat(text);
  by("tables").replaceChildren(...report.groups[state.group].tables.map(table => {
    const columns = table.headings.map((heading, i) => {
      const words = table.words.includes(heading);
      return {heading, words, text: row => row[i], value: row => words ? row[i] : number(row[i])};
    });
    const box = make("div", {className: "wide", tabIndex: 0, role: "region", "aria-label": table.title});
    drawSorted(box, columns, table.rows, {column: null, up: true});
    return make("section", {}, make("h3", {textContent: table.title}), box);
  }));
}
