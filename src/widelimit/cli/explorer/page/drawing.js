"use strict";
/* Plots in SVG. */
(() => {
  const MARGIN = { left: 52, right: 10, top: 8, bottom: 36 };

  const nice = (span, count) => {
    const rough = span / count, power = 10 ** Math.floor(Math.log10(rough));
    return power * [1, 2, 5, 10].find((f) => f * power >= rough);
  };

  /* Ticks of an axis as [[place, text], ...]; value = center + scale * place where the axis has units of a table. */
  widelimit.ticks = ([low, high], count, unit = { center: 0, scale: 1 }) => {
    const a = unit.center + unit.scale * low, b = unit.center + unit.scale * high, step = nice(b - a, count);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9)), found = [];
    for (let k = Math.ceil(a / step - 1e-9); k * step <= b + 1e-9 * step; k++) {
      const value = k * step;
      found.push([(value - unit.center) / unit.scale, value.toFixed(Math.min(digits, 8)).replace("-", "\u2212")]);
    }
    return found;
  };

  const escape = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

  /* A plot of the svg element; what is added is shown by `finish`. axes: {x, y: ranges, xticks, yticks, xname, yname}. */
  widelimit.plot = (svg, axes) => {
    const box = svg.getBoundingClientRect(), width = Math.max(box.width, 120), height = Math.max(box.height, 100);
    const right = width - MARGIN.right, bottom = height - MARGIN.bottom, parts = [];
    const X = (v) => MARGIN.left + ((v - axes.x[0]) / (axes.x[1] - axes.x[0])) * (right - MARGIN.left);
    const Y = (v) => bottom - ((v - axes.y[0]) / (axes.y[1] - axes.y[0])) * (bottom - MARGIN.top);
    const clamp = (v) => Math.min(4 * height, Math.max(-4 * height, v));
    const path = (xs, ys) => {
      let text = "";
      for (let i = 0; i < ys.length; i++) text += `${i ? "L" : "M"}${X(xs[i]).toFixed(1)} ${clamp(Y(ys[i])).toFixed(1)}`;
      return text;
    };
    const plot = {
      X, Y, right, bottom, top: MARGIN.top, left: MARGIN.left,
      xAt: (pixel) => axes.x[0] + ((pixel - MARGIN.left) / (right - MARGIN.left)) * (axes.x[1] - axes.x[0]),
      yAt: (pixel) => axes.y[0] + ((bottom - pixel) / (bottom - MARGIN.top)) * (axes.y[1] - axes.y[0]),
      line: (xs, ys, kind) => parts.push(`<path class="${kind}" d="${path(xs, ys)}"/>`),
      band: (xs, low, high) => {
        const back = path([...xs].reverse(), [...high].reverse()).replace("M", "L");
        parts.push(`<path class="band" d="${path(xs, low)}${back}Z"/>`);
      },
      bar: (from, to, y) => parts.push(
        `<rect class="bar" x="${X(from).toFixed(1)}" y="${clamp(Y(y)).toFixed(1)}" width="${Math.max(0.5, X(to) - X(from) - 1).toFixed(1)}" height="${Math.max(0, Y(0) - Y(y)).toFixed(1)}"/>`),
      vertical: (x, kind) => parts.push(`<path class="${kind}" d="M${X(x)} ${MARGIN.top}V${bottom}"/>`),
      point: (x, y, index) => parts.push(`<circle class="point" data-index="${index}" cx="${X(x)}" cy="${clamp(Y(y))}" r="6"/>`),
      cross: (x, y) => parts.push(`<path class="cross" d="M${X(x) - 9} ${Y(y)}h18M${X(x)} ${Y(y) - 9}v18"/>`),
      finish: () => {
        const frame = axes.xticks.map(([v, text]) =>
          `<path class="grid" d="M${X(v)} ${MARGIN.top}V${bottom}"/><text class="tick" text-anchor="middle" x="${X(v)}" y="${bottom + 15}">${text}</text>`);
        frame.push(...axes.yticks.map(([v, text]) =>
          `<path class="grid" d="M${MARGIN.left} ${Y(v)}H${right}"/><text class="tick" text-anchor="end" x="${MARGIN.left - 6}" y="${Y(v) + 4}">${text}</text>`));
        frame.push(`<path class="axis" d="M${MARGIN.left} ${bottom}H${right}"/>`);
        const names = `<text class="axis-name" text-anchor="middle" x="${(MARGIN.left + right) / 2}" y="${height - 4}">${escape(axes.xname)}</text>`
          + `<text class="axis-name" text-anchor="middle" transform="translate(10 ${(MARGIN.top + bottom) / 2}) rotate(-90)">${escape(axes.yname)}</text>`;
        const clip = `clip-${svg.id}`;
        svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
        svg.innerHTML = `<clipPath id="${clip}"><rect x="${MARGIN.left}" y="0" width="${right - MARGIN.left}" height="${bottom}"/></clipPath>`
          + frame.join("") + names + `<g clip-path="url(#${clip})">${parts.join("")}</g>`;
        return plot;
      },
    };
    return plot;
  };
})();
