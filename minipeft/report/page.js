// What report.html does when it is looked at: the plots, and the table that sorts. Plotly stands above this in the page.
"use strict";

const run = JSON.parse(document.getElementById("run").textContent);
const config = { responsive: true, displayModeBar: false };
const font = { family: "system-ui, sans-serif", size: 13, color: "#222" };

function layout(more) {
  const base = { font, paper_bgcolor: "#fff", plot_bgcolor: "#fff", margin: { l: 70, r: 20, t: 20, b: 60 }, height: 440 };
  return { ...base, ...more };
}

function axis(title, more) {
  return { title: { text: title }, gridcolor: "#e4e4e4", zeroline: false, ...more };
}

// The score against what the reader chose; a curve a family, a point a setting.
function drawScore(choice) {
  const traces = run.curves.map((curve) => {
    const cells = curve.cells.map((i) => run.cells[i]).filter((cell) => !choice.log || cell.costs[choice.key] > 0);
    cells.sort((a, b) => a.costs[choice.key] - b.costs[choice.key]);
    return {
      name: curve.name,
      x: cells.map((cell) => cell.costs[choice.key]),
      y: cells.map((cell) => cell.score),
      error_y: { type: "data", array: cells.map((cell) => cell.spread), visible: cells.some((cell) => cell.spread), thickness: 1 },
      text: cells.map((cell) => cell.short),
      customdata: cells.map((cell) => cell.hover),
      hovertemplate: "%{customdata}<extra></extra>",
      mode: "lines+markers+text",
      textposition: "top center",
      textfont: { color: curve.ink, size: 11 },
      marker: { symbol: curve.symbol, color: curve.colour, size: 11, line: { color: "#fff", width: 1 } },
      line: { color: curve.colour, dash: curve.dash, width: 1.6 },
      cliponaxis: false,
    };
  });
  const look = { type: choice.log ? "log" : "linear", dtick: choice.log ? 1 : undefined, rangemode: choice.log ? "normal" : "tozero" };
  Plotly.react("score", traces, layout({
    xaxis: axis(choice.title, look),
    yaxis: axis(run.score.title),
    legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
    hovermode: "closest",
  }), config);
}

function drawLosses() {
  const traces = run.cells.filter((cell) => cell.steps.length).map((cell) => ({
    name: cell.label,
    x: cell.steps,
    y: cell.losses,
    mode: "lines",
    line: { color: cell.colour, dash: cell.dash, width: 1.6 },
    opacity: cell.strength,
    hovertemplate: "%{fullData.name}<br>step %{x}: loss %{y:.3f}<extra></extra>",
  }));
  Plotly.newPlot("losses", traces, layout({ xaxis: axis("Step"), yaxis: axis("Training loss (cross-entropy)"), hovermode: "closest" }), config);
}

// A column a cell, a row a layer from the words at the bottom up to the head; blank where nothing is trained.
function drawGradients() {
  const z = run.layers.map((layer) => run.cells.map((cell) => (cell.gradients[layer] > 0 ? Math.log10(cell.gradients[layer]) : null)));
  const text = run.layers.map((layer) => run.cells.map((cell) =>
    layer in cell.gradients ? `${cell.label}, ${layer}: ${cell.gradients[layer]?.toPrecision(3)}` : ""));
  const known = z.flat().filter((value) => value !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const ticks = [low, (low + high) / 2, high]; // the colours follow the logarithm
  Plotly.newPlot("gradients", [{
    type: "heatmap",
    x: run.cells.map((cell) => cell.label),
    y: run.layers,
    z,
    text,
    hoverongaps: false,
    hovertemplate: "%{text}<extra></extra>",
    colorscale: "Cividis",
    xgap: 2,
    ygap: 2,
    colorbar: { title: { text: "norm" }, tickvals: ticks, ticktext: ticks.map((power) => (10 ** power).toPrecision(2)) },
  }], layout({ xaxis: axis("", { showgrid: false }), yaxis: axis("", { showgrid: false }), margin: { l: 90, r: 20, t: 20, b: 120 } }), config);
}

// A click on a heading sorts by its column; another click turns the order round. Cells hold their number in data-value.
function makeSortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  const value = (row, place) => {
    const cell = row.cells[place];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  headings.forEach((heading, place) => heading.querySelector("button").addEventListener("click", () => {
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : Number.isNaN(a) - Number.isNaN(b) || a - b);
    const rows = [...table.tBodies[0].rows].sort((a, b) => sign * compare(value(a, place), value(b, place)));
    table.tBodies[0].append(...rows);
  }));
}

const select = document.getElementById("axis");
run.axes.forEach((choice, i) => select.add(new Option(choice.name, i)));
select.addEventListener("change", () => drawScore(run.axes[select.value]));
drawScore(run.axes[0]);
drawLosses();
if (run.layers.length) drawGradients();
makeSortable(document.querySelector("table.numbers"));
