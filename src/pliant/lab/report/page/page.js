"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const shown = data.curves.map(() => true);
  const plots = [];
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const color = i => css(`--curve-${i}`);
  const number = value => value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toLocaleString("en");
  const short = tick => tick === null ? null : Math.abs(tick) < 1e4 ? String(Number(tick.toPrecision(6))) : new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 }).format(tick);
  document.documentElement.classList.add("scripted");

  function options(figure, width) {
    const axis = { stroke: () => css("--soft"), grid: { stroke: () => css("--line"), width: 1 }, ticks: { stroke: () => css("--line") } };
    const series = [{ label: data.place }], bands = [];
    data.curves.forEach((curve, i) => {
      const line = { label: curve.name, show: shown[i], stroke: () => color(i), width: 2, dash: curve.dash, points: { show: figure.x.length < 3 }, spanGaps: true };
      const edge = { show: shown[i], stroke: "transparent", width: 0, points: { show: false }, spanGaps: true };
      series.push(line, { ...edge }, { ...edge });
      bands.push({ series: [3 * i + 3, 3 * i + 2], fill: () => color(i) + "2e" });
    });
    return {
      width, height: Math.max(220, Math.min(420, width * 0.5)), series, bands,
      legend: { show: false }, scales: { x: { time: false } }, cursor: { y: false },
      axes: [{ ...axis, label: data.place, labelSize: 20, labelGap: -4, size: 34, values: (_, ticks) => ticks.map(short) }, { ...axis, size: 60, values: (_, ticks) => ticks.map(short) }], padding: [8, 24, 0, 0],
      hooks: { setCursor: [plot => tell(figure, plot.cursor.idx)] },
    };
  }

  function tell(figure, at) {
    figure.at = at;
    figure.output.textContent = at === null || at === undefined ? "" : `${data.place} ${number(figure.x[at])}: ` +
      data.curves.map((curve, i) => shown[i] && figure.y[3 * i][at] !== null ?
        `${curve.name} ${number(figure.y[3 * i][at])} [${number(figure.y[3 * i + 1][at])}, ${number(figure.y[3 * i + 2][at])}]` : null)
        .filter(Boolean).join("; ");
  }

  function steer(plot, figure, event) {
    const last = figure.x.length - 1, now = figure.at;
    if (event.key === "Escape") { plot.setScale("x", { min: figure.x[0], max: figure.x[last] }); return; }
    const goal = { ArrowLeft: (now ?? last + 1) - 1, ArrowRight: (now ?? -1) + 1, Home: 0, End: last }[event.key];
    if (goal === undefined) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(last, goal));
    plot.setCursor({ left: plot.valToPos(figure.x[next], "x"), top: 10 });
    tell(figure, next); // the nearest place to a pixel may be its neighbour
  }

  data.figures.forEach((figure, n) => {
    const place = document.getElementById(`figure-${n}`);
    figure.output = place.querySelector("output");
    const target = place.querySelector(".plot");
    const plot = new uPlot(options(figure, target.clientWidth), [figure.x, ...figure.y], target);
    target.addEventListener("keydown", event => steer(plot, figure, event));
    new ResizeObserver(() => {
      const width = target.clientWidth;
      if (width && width !== plot.width) plot.setSize({ width, height: Math.max(220, Math.min(420, width * 0.5)) });
    }).observe(target);
    plots.push(plot);
  });

  document.querySelectorAll(".curves input").forEach((box, i) => box.addEventListener("change", () => {
    shown[i] = box.checked;
    plots.forEach(plot => [1, 2, 3].forEach(k => plot.setSeries(3 * i + k, { show: box.checked })));
  }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(plot => plot.redraw()));

  const value = cell => { const text = cell.dataset.value ?? cell.textContent; return text !== "" && !isNaN(text) ? Number(text) : text; };
  document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0], column = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    head.parentNode.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].map(row => [value(row.cells[column]), row]);
    const kind = each => each === "" || each === "-" ? 2 : typeof each === "number" ? 0 : 1;
    rows.sort(([a], [b]) => kind(a) - kind(b) || (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1));
    body.append(...rows.map(([, row]) => row));
  }));
})();
