"use strict";
(() => {
  const root = document.documentElement;
  const text = (id) => document.getElementById(id).textContent;
  const read = (id) => JSON.parse(text(id));
  const FITS = 1e-9;

  // Digits as the command line prints them: ties to even.
  function fixed(value, digits) {
    if (Math.abs(value * 2 ** (digits + 1)) % 2 !== 1) return value.toFixed(digits);
    const scale = 10 ** digits, low = Math.floor(value * scale);
    return ((low % 2 === 0 ? low : low + 1) / scale).toFixed(digits);
  }
  const percent = (value) => (value === null ? "-" : `${fixed(100 * value, 1)} %`);

  // --- theme -------------------------------------------------------------------------------------
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  let printing = false, stored = null;
  try { stored = localStorage.getItem("vispco-theme"); } catch { /* files may have no storage */ }
  if (stored === "dark" || stored === "light") root.dataset.theme = stored;
  const isDark = () => !printing && (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const ink = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // --- the library -------------------------------------------------------------------------------
  // It comes after this script and is compressed, so that text and slider need not wait for it.
  const parsed = document.readyState === "loading"
    ? new Promise((done) => addEventListener("DOMContentLoaded", done)) : Promise.resolve();
  const pause = () => new Promise((done) => setTimeout(done));
  let loading = null;
  function library() {
    loading ??= (async () => {
      await parsed;
      await pause();
      const packed = Uint8Array.from(atob(text("library")), (character) => character.charCodeAt(0));
      const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      const script = document.createElement("script");
      script.textContent = await new Response(unpacked).text();
      document.head.append(script);
    })();
    return loading;
  }

  // --- figures -----------------------------------------------------------------------------------
  const places = [...document.querySelectorAll(".figure")];
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  const known = {};
  const figure = (id) => (known[id] ??= read(`figure-${id}`));

  // Plotly does not break titles. An entity counts as one character, and is never broken.
  function wrapped(title, width, size) {
    const most = Math.max(14, Math.floor(width / (size * 0.58))), lines = [""];
    const long = new RegExp(`(?:&[^;\\s]+;|\\S){1,${most}}`, "gu");
    for (const word of title.split(" ").flatMap((one) => one.match(long) ?? [""])) {
      const last = lines[lines.length - 1];
      if (last && last.length + word.length + 1 > most) lines.push(word);
      else lines[lines.length - 1] = last ? `${last} ${word}` : word;
    }
    return lines.join("<br>");
  }

  function themed(source, width) {
    const layout = structuredClone(source.layout), narrow = width < 500;
    delete layout.template;
    layout.font = { ...layout.font, color: ink("--soft"), size: narrow ? 12 : 13 };
    layout.title.text = wrapped(layout.title.text, width - 24, 16);
    layout.title.font = { ...layout.title.font, color: ink("--ink") };
    const more = 21 * (layout.title.text.split("<br>").length - 1);
    Object.assign(layout.title, { xref: "container", x: 0, yref: "container", y: 1, yanchor: "top", pad: { t: 10 + 0.55 * more } });
    layout.margin.t += more;
    layout.height += more;
    layout.hoverlabel = { ...layout.hoverlabel, bgcolor: ink("--ground"), font: { color: ink("--ink") } };
    layout.colorway = undefined;
    for (const key of Object.keys(layout)) {
      if (!/^[xy]axis/.test(key)) continue;
      const axis = layout[key], length = key[0] === "x" ? width - 130 : layout.height - 150;
      axis.gridcolor = axis.zerolinecolor = ink("--line");
      if (axis.title?.text) axis.title.text = wrapped(axis.title.text, length, layout.font.size);
    }
    return layout;
  }

  // Heat maps have a scale for each ground.
  const scaled = (data) => data.map((trace) => (
    isDark() && trace.meta?.dark ? { ...trace, colorscale: trace.meta.dark } : { ...trace }));

  const sheets = new Map();

  async function draw(place) {
    const named = place.dataset.figure;
    await library();
    const source = figure(named), layout = themed(source, printing ? 680 : place.clientWidth);
    const sheet = sheets.get(place.closest(".sheet"));
    if (sheet?.overlay === place) layout.shapes = [...(layout.shapes ?? []), sheet.line()];
    if (printing) layout.width = 680;
    place.style.height = `${layout.height}px`;
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", source.layout.title.text);
    const first = !place.dataset.drawn;
    await Plotly.react(place, scaled(source.data), layout, config);
    if (first && source.data.some((trace) => trace.meta?.band)) showBands(place);
    place.dataset.drawn = named;
  }

  // The band of the search that is pointed at.
  function band(place, entry) {
    place.data.forEach((trace, number) => {
      const meta = trace.meta;
      if (!meta?.band) return;
      const opacity = meta.band === entry ? meta.opacity : 0;
      if (trace.opacity !== opacity) Plotly.restyle(place, { opacity }, [number]);
    });
  }
  function showBands(place) {
    place.on("plotly_hover", (event) => band(place, event.points[0].data.legendgroup));
    place.on("plotly_unhover", () => band(place, null));
  }

  for (const select of document.querySelectorAll("select[data-for]")) {
    const place = document.getElementById(select.dataset.for);
    select.value = place.dataset.figure; // browsers restore form fields on reload
    select.addEventListener("change", () => {
      place.dataset.figure = select.value;
      draw(place);
    });
  }

  // --- one budget --------------------------------------------------------------------------------
  const share = (point) => point.cost_ratio ?? point.flops_ratio;

  // The front is sorted by cost, and its accuracy on the search split grows with it.
  function choose(front, within) {
    const fitting = front.filter((point) => share(point) <= within + FITS);
    return fitting[fitting.length - 1];
  }

  function cell(row, label, parts) {
    const made = row.insertCell();
    made.dataset.label = label;
    const shown = document.createElement("span");
    parts.forEach(({ name, color, hollow }, number) => {
      if (number) shown.append(", ");
      if (color) {
        const dot = document.createElement("span");
        dot.className = "swatch";
        dot.style.borderColor = color;
        if (!hollow) dot.style.background = color;
        shown.append(dot);
      }
      const named = document.createElement("bdi");
      named.textContent = name.replace(/[\u202a-\u202e\u2066-\u2069]/g, "?");
      shown.append(named);
    });
    made.append(shown);
  }

  function connect(section, comparison, facts) {
    const at = (name) => document.getElementById(section.dataset.prefix + name);
    const slider = at("budget"), body = at("chosen").tBodies[0], overlay = at("overlay");
    const labels = [...at("chosen").tHead.rows[0].cells].map((head) => head.textContent);
    const budget = () => Number(slider.value);
    const line = () => ({
      type: "line", xref: "x", yref: "paper", x0: 100 * budget(), x1: 100 * budget(), y0: 0, y1: 1,
      line: { color: ink("--accent"), width: 2 },
    });

    function addRow(names, texts, trial, className) {
      const row = body.insertRow(), hollow = className === "missed";
      row.dataset.trial = trial;
      row.className = className;
      cell(row, labels[0], names.map((name) => ({ name, color: facts.colors[name], hollow })));
      texts.forEach((shown, number) => cell(row, labels[number + 1], [{ name: shown }]));
    }

    const interval = (low, high) => `${percent(low)} to ${percent(high)}`;
    const ofOne = (point) => (point ? [
      percent(point.accuracy_held_out),
      point.accuracy_ci ? interval(...point.accuracy_ci) : "-",
      percent(share(point)),
      point.schedule ?? `trial ${point.trial}`,
    ] : [percent(comparison.no_image.accuracy), "-", "-", "missed: no image"]);

    // A seed that misses the budget counts as the no-image accuracy.
    function overSeeds(chosen) {
      const points = chosen.map(({ point }) => point).filter(Boolean), missed = chosen.length - points.length;
      if (!points.length) return ofOne(null);
      const accuracies = chosen.map(({ point }) => (point ? point.accuracy_held_out : comparison.no_image.accuracy));
      const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
      const known = accuracies.every((value) => value !== null);
      return [
        known ? percent(mean(accuracies)) : "-",
        known ? `${interval(Math.min(...accuracies), Math.max(...accuracies))} over seeds` : "-",
        percent(mean(points.map(share))),
        missed ? `missed by ${missed} of ${chosen.length} seeds` : `mean of ${chosen.length} seeds`,
      ];
    }

    function show() {
      const within = budget(), rows = new Map(), runs = new Map();
      at("budget-shown").textContent = percent(within);
      const upTo = (bound) => facts.export.filter((row) => row.flops_ratio <= bound + FITS).pop();
      const exported = upTo(within);
      for (const search of comparison.searches) {
        const entry = facts.entries[search.name], point = choose(search.front, within);
        runs.set(entry, [...(runs.get(entry) ?? []), { name: search.name, point }]);
      }
      for (const [entry, chosen] of runs) {
        const texts = chosen.length > 1 ? overSeeds(chosen) : ofOne(chosen[0].point);
        const key = JSON.stringify(texts), row = rows.get(key) ?? { names: [], texts, trial: chosen[0].point?.trial ?? "" };
        row.names.push(entry);
        row.best ||= chosen.some(({ name, point }) => (
          point && exported?.search === name && exported.trial === point.trial));
        row.missed = chosen.every(({ point }) => !point);
        rows.set(key, row);
      }
      body.replaceChildren();
      for (const row of rows.values()) {
        addRow(row.names, row.texts, row.trial, row.best ? "best" : row.missed ? "missed" : "");
      }
      const [command, experiment, storage] = facts.command, short = Math.floor((within + FITS) * 1e4) / 1e4;
      // Fewer digits read better, where the command exports the same with them.
      const given = upTo(short) === exported ? short : within;
      at("export-note").textContent = exported
        ? `Recommended: ${exported.schedule}, of ${exported.search}: the cheapest within one standard error of the most accurate on the search split.`
        : "No schedule fits this budget: it is below the floor of what was measured.";
      at("export").textContent = exported
        ? `${command} --budget ${given} -o schedule.json ${storage}${experiment}` : "";
      at("export").parentElement.hidden = !exported;
      if (overlay.dataset.drawn) {
        const last = overlay.layout.shapes.length - 1;
        Plotly.relayout(overlay, { [`shapes[${last}].x0`]: 100 * within, [`shapes[${last}].x1`]: 100 * within });
      }
    }

    sheets.set(section, { overlay, line });
    slider.value = slider.defaultValue;
    slider.addEventListener("input", show);
    at("chooser").hidden = !comparison.searches.length;
    show();
  }

  for (const copy of document.querySelectorAll("button.copy")) {
    copy.addEventListener("click", async () => {
      const shown = document.getElementById(copy.dataset.for);
      getSelection().selectAllChildren(shown);
      try {
        await navigator.clipboard.writeText(shown.textContent);
        copy.textContent = "Copied";
        setTimeout(() => { copy.textContent = "Copy"; }, 1500);
      } catch { /* it is selected, to be copied by hand */ }
    });
  }

  // --- start -------------------------------------------------------------------------------------
  const again = () => Promise.all(places.filter((place) => place.dataset.drawn).map(draw));
  const nameTheme = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("vispco-theme", root.dataset.theme); } catch { /* it lasts until the page is closed */ }
    nameTheme();
    again();
  });
  dark.addEventListener("change", () => { nameTheme(); again(); });
  addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll("details")) folded.open = true;
    printing = true;
    root.classList.add("print");
    places.forEach(draw);
  });
  addEventListener("afterprint", () => { printing = false; root.classList.remove("print"); again(); });
  for (const term of document.querySelectorAll("a.term")) {
    term.addEventListener("click", () => { document.getElementById("glossary").open = true; });
  }

  const comparison = read("comparison"), facts = read("facts");
  const every = comparison.experiments ?? [comparison];
  [...document.querySelectorAll("section.sheet")].forEach((section, number) => {
    connect(section, every[number], facts[number]);
  });
  const numbers = document.getElementById("numbers");
  numbers.hidden = false;
  numbers.querySelector("a").href = URL.createObjectURL(
    new Blob([text("comparison")], { type: "application/json" }));
  button.hidden = false;
  nameTheme();
  performance.mark("interactive");
  root.dataset.interactive = "true";

  // A figure is drawn when it comes near, so a folded one costs nothing.
  const near = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      draw(target).then(() => performance.mark(`drawn ${target.id}`));
    }
  }, { rootMargin: "300px" });
  for (const place of places) near.observe(place);
})();
