"use strict";
/* The page: choices, points, and the plots that follow from them. */
(() => {
  const { page, source, row } = widelimit;
  const by = (id) => document.getElementById(id);
  const minus = (text) => String(text).replace("-", "\u2212");
  const show = (v, digits = 2) => minus(Number(v).toFixed(digits));
  const stage = by("stage"), EDGE = Math.PI, PLAIN = { name: "", center: 0, scale: 1 };
  const SLIDERS = ["depth", "weight_std", "bias_std", "noise_std", "width"];
  const NAMES = {
    line: "x itself", circle: "cos x and sin x", relu: "ReLU", leaky_relu: "leaky ReLU",
    gelu: "GELU", silu: "SiLU", tanh: "tanh", erf: "erf", sin: "sin", identity: "none (a linear network)", "": "choose \u2026",
  };
  const EXAMPLES = {
    "five points": page.start.points,
    "two points": [[-1.5, -0.8], [1.5, 0.8]],
    "a step": [-2.4, -1.6, -0.8, -0.2, 0.2, 0.8, 1.6, 2.4].map((x) => [x, Math.sign(x) * 0.8]),
    "a noisy sine": Array.from({ length: 24 }, (_, k) => {
      const x = -2.8 + (5.6 * k) / 23;
      return [x, Math.sin(1.8 * x) + 0.25 * (((k * 7919) % 13) / 6 - 1)];
    }),
  };
  const state = {
    ...page.start, points: page.start.points.map((p) => [...p]), x: page.start.x || PLAIN, y: page.start.y || PLAIN,
    cursor: null, dragged: null, time: page.numbers ? 9 : 18, place: 66,
  };
  let scene = null, networks = null, plot = null, playing = 0;

  /* --- what is on the page in words */
  const timeText = (t) => (t === Infinity ? "\u221e" : t >= 100 ? t.toFixed(0) : t >= 1 ? t.toFixed(1) : t.toFixed(2));
  const valueX = (x) => show(state.x.center + state.x.scale * x, state.x.scale > 20 ? 0 : 2);
  const valueY = (y) => show(state.y.center + state.y.scale * y, state.y.scale > 20 ? 0 : 2);
  const descent = () => state.rule === "descent";

  function say(id, text) { if (by(id).textContent !== text) by(id).textContent = text; }

  function complain(text) { by("message").hidden = !text; say("message", text); }

  function labels() {
    for (const name of SLIDERS) {
      const input = by(name), value = page.choices[name][input.value];
      const text = name === "noise_std" && state.y.name ? String(+(value * state.y.scale).toPrecision(2)) : String(value);
      input.previousElementSibling.querySelector("output").textContent = text;
      input.setAttribute("aria-valuetext", text);
    }
    for (const part of document.querySelectorAll(".only-bayes")) part.hidden = descent();
    for (const part of document.querySelectorAll(".only-trained")) part.hidden = !descent() || !state.points.length;
    const last = descent() ? "training" : "seeing your points";
    by("stage-title").textContent = descent() ? "While the network learns" : "What the network believes after seeing your points";
    say("stage-words", !state.points.length
      ? "Add a point: click in the plot. Without points the networks are as random as at the start."
      : descent()
        ? "Trained by gradient descent from random weights. The thick line is the mean of all infinitely wide networks, the band holds about 95 % of them at each input; thin lines are single networks."
        : "The exact posterior of an infinitely wide network: its mean, and a band of 2 standard deviations that says where the network is sure. Thin lines are functions that agree with your points up to the noise." + (scene && scene.evidence ? ` Log evidence, the log density of your points${state.y.name ? ", scaled to standard deviation 1," : ""} under this network: ${show(scene.evidence.flat[0])}.` : ""));
    by("prior").setAttribute("aria-label", `Random networks before ${last}`);
  }

  function legend() {
    const end = networks ? networks.times.flat[networks.times.flat.length - 1] : 0;
    const late = networks && descent() && scene.times.flat[moment()] > end * 1.02;
    const keys = [["mean", "mean and 95 % band of the limit"], ["sample", "single infinitely wide networks"], ["network", late ? `finite networks, trained to t = ${timeText(end)} only` : "finite networks"], ["point", "your points"]];
    by("legend").innerHTML = keys.filter(([kind]) => kind !== "network" || shownNetworks(descent())).map(([kind, text]) =>
      `<span><svg viewBox="0 0 28 12">${kind === "mean" ? '<rect class="band" width="28" height="12"/>' : ""}${
        kind === "point" ? '<circle class="point" cx="14" cy="6" r="5"/>' : `<path class="${kind}" d="M0 6H28"/>`}</svg>${
        text}</span>`).join("");
  }

  /* --- asking for numbers */
  const settings = () => ({ ...state, points: state.points.map((p) => [...p]) });
  const sameNetworks = (s) => JSON.stringify([s.inputs, s.depth, s.activation, s.weight_std, s.bias_std, s.width, s.rule === "bayes" ? 0 : s.points]);

  const askScene = widelimit.latest(async () => {
    const slow = setTimeout(() => say("status", "Computing; a new depth or activation takes some seconds the first time \u2026"), 250);
    try {
      const found = await source.scene(settings());
      if (!found) throw new Error("This exported page has no numbers for these choices.");
      scene = found;
      complain("");
      labels();
      draw();
      const spent = found.milliseconds, words = spent < 1000 ? `Computed in ${spent.toFixed(0)} ms.` : "Ready: the next change of a scale is quick.";
      Object.assign(document.body.dataset, { ready: "", milliseconds: String(spent) });
      say("status", spent === undefined ? "" : words);
    } catch (error) {
      complain(error.message);
      say("status", "");
    } finally {
      clearTimeout(slow);
    }
  }, 15);

  const askNetworks = widelimit.latest(async () => {
    if (!by("finite").checked) return;
    const asked = settings(), count = page.counts[asked.width];
    say("histogram-words", `${descent() && asked.points.length ? "Training" : "Drawing"} ${count} networks of width ${asked.width} \u2026`);
    try {
      const found = await source.networks(asked);
      if (!found) { say("histogram-words", `Finite networks of this exported page have weight scale ${page.start.weight_std} and bias scale ${page.start.bias_std}.`); return; }
      if (sameNetworks(asked) !== sameNetworks(state)) return;
      networks = found;
      document.body.dataset.networks = sameNetworks(asked);
      draw();
    } catch (error) {
      say("histogram-words", error.message);
    }
  }, 350);

  function changed() {
    if (networks && document.body.dataset.networks !== sameNetworks(state)) {
      networks = null;
      say("histogram-words", "");
    }
    labels();
    askScene();
    if (!networks) askNetworks();
    numbersText();
  }

  /* --- drawing */
  const moment = () => (descent() && scene.times.flat.length > 1 ? Math.min(state.time, scene.times.flat.length - 1) : 0);
  const frame = (t) => {  /* the state of the finite networks at time t, or the last one before */
    const times = networks.times.flat;
    let k = 0;
    while (k + 1 < times.length && times[k + 1] <= t * 1.0001) k++;
    return k + 1 < times.length && t < Infinity && t - times[k] > times[k + 1] - t ? k + 1 : k;
  };
  const shownNetworks = (wanted) => wanted && by("finite").checked && networks;
  const reach = (value) => { const k = [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((f) => f * 10 ** Math.floor(Math.log10(value))); return k.find((v) => v >= value) || value; };
  const quantile = (values, share) => [...values].sort((a, b) => a - b)[Math.floor(share * (values.length - 1))];
  const sum = (a, b, factor) => Float64Array.from(a, (v, i) => v + factor * b[i]);

  function axesX(y) {
    return { x: [-EDGE, EDGE], y, xticks: widelimit.ticks([-EDGE, EDGE], stage.clientWidth < 500 ? 5 : 8, state.x), yticks: widelimit.ticks(y, 5, state.y), xname: state.x.name || (state.inputs === "circle" ? "input x (angle on the circle, radians)" : "input x"), yname: state.y.name || "output" };
  }

  function drawNetworks(target, xs, frameIndex, most) {
    const outputs = networks.outputs, count = Math.min(outputs.shape[1], most), step = (xs.length - 1) / (outputs.shape[2] - 1);
    const places = Array.from({ length: outputs.shape[2] }, (_, i) => xs[Math.round(i * step)]);
    for (let e = 0; e < count; e++) target.line(places, row(outputs, frameIndex, e), "network");
  }

  function drawStage(xs, k) {
    const mean = row(scene.mean, k), sd = row(scene.sd, k), low = sum(mean, sd, -2), high = sum(mean, sd, 2);
    const largest = Math.max(1, ...state.points.map((p) => 1.25 * Math.abs(p[1])), quantile(high, 0.9), -quantile(low, 0.1));
    if (state.dragged === null || !plot) state.reach = reach(Math.min(largest, 1000));
    const target = widelimit.plot(stage, axesX([-state.reach, state.reach]));
    target.band(xs, low, high);
    if (shownNetworks(descent() || !state.points.length)) drawNetworks(target, xs, frame(scene.times.flat[k]), 12);
    for (let s = 1; s < scene.samples.shape[1]; s++) target.line(xs, row(scene.samples, k, s), "sample");
    target.line(xs, row(scene.samples, k, 0), "sample one");
    target.line(xs, mean, "mean");
    target.vertical(xs[state.place], "look");
    state.points.forEach(([x, y], index) => target.point(x, y, index));
    if (state.cursor && document.activeElement === stage) target.cross(...state.cursor);
    plot = target.finish();
  }

  function drawPrior(xs) {
    const sd = scene.prior_sd.flat, zero = new Float64Array(xs.length), y = reach(2.6 * quantile(sd, 0.6));
    const target = widelimit.plot(by("prior"), axesX([-y, y]));
    target.band(xs, sum(zero, sd, -2), sum(zero, sd, 2));
    if (shownNetworks(true)) drawNetworks(target, xs, 0, 12);
    for (let s = 1; s < scene.prior_samples.shape[0]; s++) target.line(xs, row(scene.prior_samples, s), "sample");
    target.line(xs, row(scene.prior_samples, 0), "sample one");
    target.line(xs, zero, "mean");
    target.vertical(xs[state.place], "look");
    target.finish();
  }

  const gauss = (x, mean, sd) => Math.exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * Math.sqrt(2 * Math.PI));

  function outputsAt(frameIndex) {
    const { shape } = networks.outputs, place = Math.round((state.place * (shape[2] - 1)) / (scene.x.flat.length - 1));
    return Array.from({ length: shape[1] }, (_, e) => row(networks.outputs, frameIndex, e)[place]);
  }

  function drawHistogram(now) {
    /* Beside finite networks the limit is drawn at a time that they have reached. */
    const trained = descent(), until = trained && shownNetworks(true) ? networks.times.flat[networks.times.flat.length - 1] * 1.02 : Infinity;
    const k = scene.times.flat[now] <= until ? now : scene.times.flat.findLastIndex((v) => v <= until), t = trained ? scene.times.flat[k] : 0;
    const mean = trained ? row(scene.mean, k)[state.place] : 0;
    const sd = trained ? row(scene.sd, k)[state.place] : scene.prior_sd.flat[state.place];
    const index = shownNetworks(true) ? frame(t) : 0, values = shownNetworks(true) ? outputsAt(index) : [];
    const spread = values.length ? Math.sqrt(values.reduce((s, v) => s + (v - mean) ** 2, 0) / values.length) : sd;
    const half = Math.max(3.5 * Math.max(sd, Math.min(spread, 3 * sd)), 0.02 * state.reach), x = [mean - half, mean + half];
    const bins = Math.max(12, Math.min(30, Math.round(values.length / 5))), width = (2 * half) / bins, counts = new Array(bins).fill(0);
    for (const v of values) counts[Math.min(bins - 1, Math.max(0, Math.floor((v - x[0]) / width)))]++;
    const density = counts.map((c) => c / (values.length * width || 1)), sharp = sd < half / 200;
    const top = 1.15 * Math.max(...density, sharp ? 1 / width : gauss(mean, mean, sd));
    const shown = { center: 0, scale: 1 / (Math.abs(state.y.scale) || 1) };
    const target = widelimit.plot(by("histogram"), { x, y: [0, top], xticks: widelimit.ticks(x, 5, state.y), yticks: widelimit.ticks([0, top], 4, shown), xname: `${state.y.name || "output"} at input ${valueX(scene.x.flat[state.place])}`, yname: "density" });
    density.forEach((d, i) => d && target.bar(x[0] + i * width, x[0] + (i + 1) * width, d));
    const curve = Array.from({ length: 161 }, (_, i) => x[0] + (i * 2 * half) / 160);
    if (sharp) target.vertical(mean, "mean"); else target.line(curve, curve.map((v) => gauss(v, mean, sd)), "mean");
    target.finish();
    histogramWords(values, mean, sd, t, k < now);
  }

  function histogramWords(values, mean, sd, t, late) {
    const size = (v) => show(state.y.scale * v, state.y.scale > 20 ? 0 : 2);
    const when = !descent() ? "before learning" : t === 0 ? "at the start" : `at t = ${timeText(t)}`;
    const limit = `Blue: the limit's Gaussian ${when}, mean ${valueY(mean)}, standard deviation ${size(sd)}.`;
    if (!values.length) { if (!by("finite").checked) say("histogram-words", limit); return; }
    const own = values.reduce((s, v) => s + v, 0) / values.length;
    const off = Math.sqrt(values.reduce((s, v) => s + (v - own) ** 2, 0) / (values.length - 1));
    const until = descent() && state.points.length
      ? ` Each took ${Math.round(t / networks.rate.flat[0])} steps of gradient descent with learning rate ${networks.rate.flat[0].toPrecision(2)}${late ? "; finite networks are trained up to this time only" : ""}.`
      : descent() ? "" : " Bayes\u2019 rule has no simple form for finite networks, so they are shown as they start.";
    say("histogram-words", `${limit} Red: ${values.length} networks of width ${state.width}, mean ${valueY(own)}, standard deviation ${size(off)}.${until}`);
  }

  /* Position of a time on the axis of the time slider, whose times grow by a constant factor. */
  function position(t) {
    const times = scene.times.flat, last = times.length - 2;
    if (t === 0) return 0;
    return t === Infinity ? last + 1 : Math.max(0, 1 + ((last - 1) * Math.log(t / times[1])) / Math.log(times[last] / times[1]));
  }

  function drawPath() {
    const times = scene.times.flat, ks = [...times.keys()];
    if (!descent() || ks.length < 2) { by("path").innerHTML = ""; return; }
    const mean = ks.map((k) => row(scene.mean, k)[state.place]), sd = ks.map((k) => row(scene.sd, k)[state.place]);
    const low = sum(mean, sd, -2), high = sum(mean, sd, 2), y = [Math.min(...low), Math.max(...high)], pad = 0.06 * (y[1] - y[0]) || 1;
    const ticks = [[0, "0"], ...[0.1, 1, 10, 100, 1000].map((t) => [position(t), String(t)]), [ks.length - 1, "\u221e"]];
    const range = [y[0] - pad, y[1] + pad];
    const target = widelimit.plot(by("path"), { x: [0, ks.length - 1], y: range, xticks: ticks, yticks: widelimit.ticks(range, 5, state.y), xname: "training time t", yname: `${state.y.name || "output"} at ${valueX(scene.x.flat[state.place])}` });
    target.band(ks, low, high);
    if (shownNetworks(true)) {
      const frames = [...networks.times.flat.keys()], xs = frames.map((f) => position(networks.times.flat[f])), each = frames.map(outputsAt);
      for (let e = 0; e < Math.min(12, networks.outputs.shape[1]); e++) target.line(xs, each.map((v) => v[e]), "network");
    }
    for (let s = 0; s < scene.samples.shape[1]; s++) target.line(ks, ks.map((k) => row(scene.samples, k, s)[state.place]), s ? "sample" : "sample one");
    target.line(ks, mean, "mean");
    target.vertical(moment(), "look");
    target.finish();
  }

  function drawKernel() {
    const angles = Array.from(scene.angles.flat, (a) => (a * 180) / Math.PI), nngp = scene.nngp.flat, ntk = scene.ntk.flat;
    const high = Math.max(...ntk, ...nngp), low = Math.min(0, ...nngp, ...ntk), y = [low * 1.08, high * 1.12];
    const target = widelimit.plot(by("kernel"), { x: [-180, 180], y, xticks: [-180, -90, 0, 90, 180].map((v) => [v, minus(v) + "\u00b0"]), yticks: widelimit.ticks(y, 5), xname: "angle between the two inputs", yname: "kernel" });
    target.line(angles, nngp, "mean");
    target.line(angles, ntk, "tangent");
    target.finish();
  }

  function draw() {
    if (!scene) return;
    const xs = scene.x.flat, k = moment(), time = by("time");
    if (scene.times.flat.length > 1) time.max = String(scene.times.flat.length - 1);
    const t = scene.times.flat[k], text = t === 0 ? "t = 0 (start)" : t === Infinity ? "t = \u221e (the end)" : `t = ${timeText(t)}`;
    say("time-value", text);
    time.setAttribute("aria-valuetext", text);
    say("place-value", valueX(xs[state.place]));
    by("place").setAttribute("aria-valuetext", valueX(xs[state.place]));
    drawStage(xs, k);
    drawPrior(xs);
    drawHistogram(k);
    drawPath();
    drawKernel();
    legend();
  }

  /* --- points */
  const inside = ([x, y]) => [Math.max(-EDGE, Math.min(EDGE, x)), Math.max(-100, Math.min(100, y))];

  function setPoints(points, units) {
    state.points = points;
    if (units) { state.x = units.x; state.y = units.y; }
    changed();
  }

  function numbersText() {
    if (document.activeElement !== by("numbers"))
      by("numbers").value = state.points.map(([x, y]) => [state.x.center + state.x.scale * x, state.y.center + state.y.scale * y].map((v) => +v.toPrecision(6)).join(", ")).join("\n");
    by("undo").disabled = by("clear").disabled = !state.points.length;
  }

  function add(point) {
    if (!source.live) { say("status", "The points of an exported page are fixed."); return; }
    if (state.points.length >= 128) { complain("The page takes at most 128 points; remove one."); return; }
    setPoints([...state.points, inside(point).map((v) => +v.toFixed(4))]);
    say("status", `Point added at ${valueX(point[0])}, ${valueY(point[1])}.`);
  }

  function removeNearest([x, y]) {
    if (!source.live || !state.points.length) return;
    const far = (p) => Math.hypot(plot.X(p[0]) - plot.X(x), plot.Y(p[1]) - plot.Y(y));
    const near = state.points.reduce((best, p) => (far(p) < far(best) ? p : best));
    setPoints(state.points.filter((p) => p !== near));
  }

  function where(event) {
    const box = stage.getBoundingClientRect();
    return inside([plot.xAt(event.clientX - box.left), plot.yAt(event.clientY - box.top)]);
  }

  function pointer() {
    let moved = false;
    stage.addEventListener("pointerdown", (event) => {
      const index = event.target.dataset && event.target.dataset.index;
      moved = false;
      state.dragged = index === undefined || !source.live ? null : Number(index);
      if (state.dragged !== null) stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => {
      if (state.dragged === null || !plot || state.dragged >= state.points.length) return;
      moved = true;
      state.points = state.points.map((p, i) => (i === state.dragged ? where(event) : p));
      changed();
    });
    stage.addEventListener("click", (event) => {
      if (!plot) return;
      const grabbed = state.dragged;
      state.dragged = null;
      if (grabbed === null) add(where(event));
      else if (!moved) setPoints(state.points.filter((_, i) => i !== grabbed));
      else draw();
    });
    stage.addEventListener("pointercancel", () => { state.dragged = null; });
  }

  function keyboard() {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    stage.addEventListener("focus", () => { if (stage.matches(":focus-visible")) { state.cursor = state.cursor || [0, 0]; draw(); } });
    stage.addEventListener("blur", () => draw());
    stage.addEventListener("keydown", (event) => {
      if (!plot) return;
      const cursor = state.cursor || [0, 0], way = steps[event.key], size = event.shiftKey ? 5 : 1;
      if (way) {
        state.cursor = inside([cursor[0] + way[0] * size * 0.1, cursor[1] + way[1] * size * 0.05 * state.reach]);
        say("status", `Cross at ${valueX(state.cursor[0])}, ${valueY(state.cursor[1])}.`);
        draw();
      } else if (event.key === "Enter" || event.key === " ") add(cursor);
      else if (event.key === "Delete" || event.key === "Backspace") removeNearest(cursor);
      else return;
      event.preventDefault();
    });
  }

  function useNumbers() {
    const points = [];
    for (const [i, line] of by("numbers").value.split("\n").entries()) {
      if (!line.trim()) continue;
      const values = line.split(/[,;\s]+/).filter(Boolean).map(Number);
      if (values.length !== 2 || !values.every(Number.isFinite)) { complain(`Line ${i + 1} is not two numbers: ${line.slice(0, 40)}`); return; }
      points.push([(values[0] - state.x.center) / state.x.scale, (values[1] - state.y.center) / state.y.scale]);
    }
    setPoints(points);
  }

  async function upload() {
    const [file] = by("upload").files;
    if (!file) return;
    if (file.size > 1048576) { complain("The table may have 1 MiB; take fewer rows."); return; }
    try {
      const found = await source.table(file);
      setPoints(found.points, found);
      say("status", `${found.rows} rows of ${file.name}${found.rows > found.points.length ? `; ${found.points.length} of them are shown` : ""}.`);
    } catch (error) {
      complain(error.message);
    }
  }

  function play() {
    const stop = () => { clearInterval(playing); playing = 0; by("play-icon").setAttribute("d", "M4 2 L14 8 L4 14 Z"); by("play").setAttribute("aria-label", "Play the training"); };
    if (playing) { stop(); return; }
    if (state.time >= Number(by("time").max)) state.time = 0;
    by("play-icon").setAttribute("d", "M3 2 H7 V14 H3 Z M9 2 H13 V14 H9 Z");
    by("play").setAttribute("aria-label", "Pause");
    playing = setInterval(() => {
      state.time += 1;
      by("time").value = String(state.time);
      draw();
      if (state.time >= Number(by("time").max)) stop();
    }, 160);
  }

  /* --- the form */
  function fill(id, options) { by(id).innerHTML = options.map((o) => `<option value="${o}">${NAMES[o] || o}</option>`).join(""); }

  function form() {
    for (const name of SLIDERS) {
      const input = by(name), values = page.choices[name];
      Object.assign(input, { min: "0", max: String(values.length - 1), step: "1" });
      input.value = String(values.indexOf(state[name]));
      input.addEventListener("input", () => { state[name] = values[input.value]; changed(); });
    }
    for (const name of ["activation", "inputs"]) {
      fill(name, page.choices[name]);
      by(name).value = state[name];
      by(name).addEventListener("change", () => { state[name] = by(name).value; changed(); });
    }
    for (const input of document.querySelectorAll("[name=rule]")) {
      input.checked = input.value === state.rule;
      input.addEventListener("change", () => { state.rule = input.value; changed(); });
    }
    fill("preset", ["", ...Object.keys(EXAMPLES)]);
    by("preset").addEventListener("change", () => { const found = EXAMPLES[by("preset").value]; if (found) setPoints(found.map((p) => [...p]), { x: PLAIN, y: PLAIN }); });
    by("undo").addEventListener("click", () => setPoints(state.points.slice(0, -1)));
    by("clear").addEventListener("click", () => setPoints([]));
    by("use").addEventListener("click", useNumbers);
    by("upload").addEventListener("change", upload);
    by("finite").addEventListener("change", () => { changed(); draw(); });
    by("time").addEventListener("input", () => { state.time = Number(by("time").value); draw(); });
    by("place").addEventListener("input", () => { state.place = Number(by("place").value); draw(); });
    by("play").addEventListener("click", play);
    by("controls").addEventListener("submit", (event) => event.preventDefault());
  }

  for (const part of document.querySelectorAll(source.live ? ".only-export" : ".only-live")) part.remove();
  if (!source.live) for (const id of ["inputs", "preset", "undo", "clear", "use", "upload", "numbers"]) by(id) || document.body.insertAdjacentHTML("beforeend", `<input id="${id}" hidden>`);
  form();
  by("time").value = String(state.time);
  by("place").value = String(state.place);
  pointer();
  keyboard();
  window.addEventListener("resize", draw);
  changed();
})();
