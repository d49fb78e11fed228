"use strict";
/* Where the numbers come from: a server on this machine, or, in an exported page, the page. */
const widelimit = { page: JSON.parse(document.getElementById("page").textContent) };

(() => {
  const KINDS = { float64: Float64Array, float32: Float32Array, int16: Int16Array };

  function unpacked(value) {
    const kind = Object.keys(KINDS).find((name) => name in value);
    const bytes = Uint8Array.from(atob(value[kind]), (c) => c.charCodeAt(0));
    const flat = new KINDS[kind](bytes.buffer);
    return { shape: value.shape, flat: value.unit ? Float64Array.from(flat, (v) => v * value.unit) : flat };
  }

  /* Arrays become {shape, flat}; all else stays. */
  widelimit.decode = (document) =>
    Object.fromEntries(Object.entries(document).map(([name, v]) => [name, v && v.shape ? unpacked(v) : v]));

  /* The part of an array at the given leading indices. */
  widelimit.row = (array, ...indices) => {
    let size = array.flat.length, start = 0;
    indices.forEach((index, axis) => { size /= array.shape[axis]; start += index * size; });
    return array.flat.subarray(start, start + size);
  };

  async function ask(path, body, type = "application/json") {
    let answer;
    try {
      answer = await fetch(path, { method: "POST", headers: { "Content-Type": type }, body });
    } catch {
      throw new Error("The server does not answer. Is `widelimit explore` still running?");
    }
    const found = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
    if (answer.status === 503) {  /* busy: another page asks, too */
      await new Promise((go) => setTimeout(go, 1500));
      return ask(path, body, type);
    }
    if (!answer.ok) throw new Error(found.error);
    return widelimit.decode(found);
  }

  const used = ["inputs", "depth", "activation", "weight_std", "bias_std"];

  function stored(settings, last) {
    const found = widelimit.page.numbers[[...used.map((name) => settings[name]), ...last].join(" ")];
    return found ? widelimit.decode(found) : null;
  }

  const of = (s) => Object.fromEntries([...used, "rule", "noise_std", "points"].map((name) => [name, s[name]]));

  widelimit.source = widelimit.page.numbers
    ? {
        live: false,
        scene: async (s) => stored(s, s.rule === "bayes" ? ["bayes", s.noise_std] : ["descent"]),
        networks: async (s) => stored(s, ["width", s.width]),
      }
    : {
        live: true,
        scene: (s) => ask("api/scene", JSON.stringify(of(s))),
        networks: (s) => ask("api/networks", JSON.stringify({ ...of(s), width: s.width })),
        table: async (file) => ask("api/table", await file.arrayBuffer(), "text/csv"),
      };

  /* A function that runs `work` for the last call only, after a pause, and never twice at a time. */
  widelimit.latest = (work, pause) => {
    let timer = 0, running = false, again = false;
    async function run() {
      if (running) { again = true; return; }
      running = true;
      try { await work(); } finally { running = false; }
      if (again) { again = false; run(); }
    }
    return () => { clearTimeout(timer); timer = setTimeout(run, pause); };
  };
})();
