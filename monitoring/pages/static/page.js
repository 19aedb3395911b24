"use strict";
// Theme before the first paint, charts, and links that lead out of Airflow's frame. Pages work without it, charts excepted.
(() => {
  const base = document.documentElement.dataset.base;
  let host = null; // Airflow's own document, when this page is shown inside it
  try {
    host = window.parent !== window ? window.parent.document : null;
  } catch {
    host = null;
  }

  const isDark = () => {
    if (host && host.documentElement.matches(".dark, .light")) return host.documentElement.classList.contains("dark");
    let kept = null;
    try {
      kept = localStorage.getItem("theme");
    } catch {
      kept = null; // a browser without storage: the system decides
    }
    return kept === "dark" || kept === "light" ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const paint = () => document.documentElement.classList.toggle("dark", isDark());
  paint();

  // Tokens hold both themes' colours: what the browser makes of one is read off an element that has it.
  const known = new Map();
  const style = (name) => {
    if (!known.has(name)) {
      const probe = document.body.appendChild(document.createElement("span"));
      probe.style.color = `var(${name})`;
      known.set(name, getComputedStyle(probe).color);
      probe.remove();
    }
    return known.get(name);
  };
  // "var:--bad" anywhere in an option is the theme's colour of that name.
  const coloured = (value) => {
    if (typeof value === "string" && value.startsWith("var:")) return style(value.slice(4));
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item)]));
    return value;
  };
  const number = (value) => (typeof value === "number" ? value.toLocaleString("en", { maximumSignificantDigits: 4 }) : value ?? "–");
  const percent = (value) => (typeof value === "number" ? `${(100 * value).toLocaleString("en", { maximumSignificantDigits: 3 })} %` : value ?? "–");

  const themed = () => {
    const axis = {
      axisLine: { lineStyle: { color: style("--line") } },
      axisTick: { lineStyle: { color: style("--line") } },
      axisLabel: { color: style("--soft") },
      nameTextStyle: { color: style("--soft") },
      splitLine: { lineStyle: { color: style("--line") } },
    };
    return {
      color: [1, 2, 3, 4, 5, 6].map((index) => style(`--series-${index}`)),
      backgroundColor: "transparent",
      textStyle: { color: style("--ink"), fontFamily: "system-ui, sans-serif" },
      legend: { textStyle: { color: style("--ink") }, pageTextStyle: { color: style("--ink") }, pageIconColor: style("--link") },
      tooltip: { backgroundColor: style("--sheet"), borderColor: style("--line"), textStyle: { color: style("--ink") } },
      visualMap: { textStyle: { color: style("--soft") } },
      calendar: {
        itemStyle: { color: style("--sheet"), borderColor: style("--line") },
        splitLine: { lineStyle: { color: style("--soft") } },
        dayLabel: { color: style("--soft") },
        monthLabel: { color: style("--soft") },
        yearLabel: { color: style("--soft") },
      },
      categoryAxis: axis, valueAxis: axis, timeAxis: axis, logAxis: axis,
    };
  };

  const formats = { percent, number };
  const listed = (value) => (Array.isArray(value) ? value : value ? [value] : []);
  // What JSON cannot say: `axisLabel.format` and a series' `tooltip.format` are percent or number (`name`: the point's name alone), and
  // `matrix`, rows of a heat map from below, stands for its points.
  const spelledOut = (option) => {
    const axes = [...listed(option.xAxis), ...listed(option.yAxis)];
    axes.forEach((axis) => { if (formats[axis.axisLabel?.format]) axis.axisLabel.formatter = formats[axis.axisLabel.format]; });
    const category = (all, index, place) => listed(all)[index ?? 0]?.data?.[place] ?? place;
    listed(option.series).forEach((series) => {
      if (formats[series.tooltip?.format]) series.tooltip.valueFormatter = formats[series.tooltip.format];
      if (series.tooltip?.format === "name") series.tooltip.formatter = (point) => point.name;
      if (!series.matrix) return;
      series.data = series.matrix.flatMap((row, y) => row.map((value, x) => [x, y, value ?? "-"]));
      delete series.matrix;
      const words = ({ value: [x, y, value] }) => `${category(option.yAxis, series.yAxisIndex, y)}\n${category(option.xAxis, series.xAxisIndex, x)}: ${number(value)} ${series.name}`;
      series.tooltip = { ...series.tooltip, formatter: words };
    });
    return option;
  };
  // A click anywhere above or below a night leads to it, whatever is drawn there.
  const followColumns = (chart, option, links) => {
    const axes = listed(option.xAxis);
    const at = (point) => {
      const grid = axes.findIndex((axis) => chart.containPixel({ gridIndex: axis.gridIndex ?? 0 }, point));
      if (grid < 0) return undefined;
      const [column] = chart.convertFromPixel({ xAxisIndex: grid, yAxisIndex: grid }, point);
      return links[axes[grid].data[Math.round(column)]];
    };
    const surface = chart.getZr();
    surface.on("click", (event) => { const address = at([event.offsetX, event.offsetY]); if (address) window.location.assign(address); });
    surface.on("mousemove", (event) => { if (at([event.offsetX, event.offsetY])) surface.setCursorStyle("pointer"); });
  };

  const draw = (place) => {
    const { option: given, links } = JSON.parse(document.getElementById(`${place.id}-data`).textContent);
    const { columnLinks, ...option } = spelledOut(given);
    place.style.height = `${place.dataset.height}px`;
    echarts.getInstanceByDom(place)?.dispose();
    const chart = echarts.init(place, themed(), { renderer: "canvas" });
    const { format, ...tooltip } = option.tooltip ?? {};
    chart.setOption({
      animation: false,
      ...coloured(option),
      // Text, never HTML: what comes from data stays data.
      tooltip: { confine: true, valueFormatter: format === "percent" ? percent : number, ...coloured(tooltip), renderMode: "richText" },
      aria: { enabled: false }, // the element has its own label, in words
    });
    if (columnLinks) followColumns(chart, option, links);
    else chart.on("click", (event) => {
      const key = String(Array.isArray(event.value) ? event.value[0] : event.name);
      const address = links[event.name] ?? links[key];
      if (address) window.location.assign(address);
    });
    place.dataset.width = place.clientWidth;
    place.dataset.drawn = "yes";
  };
  const places = () => [...document.querySelectorAll("[data-chart]")];
  const drawAll = () => typeof echarts !== "undefined" && places().forEach(draw);

  // Airflow's frame may neither open windows nor move the page around it: the click is made in Airflow's own document.
  const leave = (event) => {
    const link = event.target.closest("a[href]");
    if (!link || event.defaultPrevented || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const target = new URL(link.href, window.location.href);
    const elsewhere = target.origin !== window.location.origin;
    if (!elsewhere && (target.pathname === base || target.pathname.startsWith(`${base}/`))) return;
    if (!["http:", "https:", "mailto:"].includes(target.protocol)) return;
    event.preventDefault();
    const outer = host.createElement("a");
    outer.href = target.href;
    outer.rel = "noopener";
    if (elsewhere) outer.target = "_blank";
    host.body.append(outer);
    outer.click();
    outer.remove();
  };

  document.addEventListener("DOMContentLoaded", () => {
    drawAll();
    // Drawn anew, not resized: a heat map that ECharts resizes loses rows.
    const fit = () => typeof echarts !== "undefined" && places().forEach((place) => { if (place.clientWidth && place.clientWidth !== Number(place.dataset.width)) draw(place); });
    let waiting = 0;
    window.addEventListener("resize", () => {
      clearTimeout(waiting);
      waiting = setTimeout(fit, 100);
    });
    if (host) document.addEventListener("click", leave);
    // Folded parts with charts have no width until they are opened.
    document.addEventListener("toggle", fit, true);
    const repaint = () => {
      const before = document.documentElement.classList.contains("dark");
      paint();
      if (before === isDark()) return;
      known.clear();
      drawAll();
    };
    if (host) new MutationObserver(repaint).observe(host.documentElement, { attributes: true, attributeFilter: ["class"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
    window.addEventListener("storage", repaint);
    // A reason has to be given before the button does anything; the browser says so by itself.
    document.querySelectorAll("form[data-once]").forEach((form) => form.addEventListener("submit", () => form.querySelectorAll("button").forEach((button) => { button.disabled = true; })));
    // A select that is the whole question needs no button.
    document.querySelectorAll("select[data-go]").forEach((select) => select.addEventListener("change", () => window.location.assign(select.value)));
  });
})();
