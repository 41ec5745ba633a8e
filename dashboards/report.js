"use strict";
(async () => {
  const root = document.documentElement;
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const comparison = read("comparison"), figures = read("figures"), facts = read("facts");
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
  let stored = null;
  try { stored = localStorage.getItem("vispco-theme"); } catch { /* files may have no storage */ }
  if (stored === "dark" || stored === "light") root.dataset.theme = stored;
  const isDark = () => (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";

  // Plotly does not break titles.
  function wrapped(text, width) {
    const most = Math.max(16, Math.floor((width - 80) / 8.5)), lines = [""];
    for (const word of text.split(" ")) {
      const last = lines[lines.length - 1];
      if (last && last.length + word.length + 1 > most) lines.push(word);
      else lines[lines.length - 1] = last ? `${last} ${word}` : word;
    }
    return lines.join("<br>");
  }

  function themed(figure, width) {
    const style = getComputedStyle(root), ink = (name) => style.getPropertyValue(name).trim();
    const layout = structuredClone(figure.layout);
    delete layout.template;
    layout.font = { ...layout.font, color: ink("--soft") };
    layout.title.text = wrapped(layout.title.text, width);
    layout.title.font = { ...layout.title.font, color: ink("--ink") };
    layout.hoverlabel = { ...layout.hoverlabel, bgcolor: ink("--ground"), font: { color: ink("--ink") } };
    layout.colorway = undefined;
    for (const key of Object.keys(layout)) if (/^[xy]axis/.test(key)) layout[key].gridcolor = ink("--line");
    return layout;
  }

  // --- figures -----------------------------------------------------------------------------------
  const places = [...document.querySelectorAll(".figure")];
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  // It comes after this script, so that text and slider need not wait for it.
  const library = document.readyState === "loading"
    ? new Promise((done) => addEventListener("DOMContentLoaded", done)) : Promise.resolve();
  const pause = () => new Promise((done) => setTimeout(done));

  async function draw(place) {
    await library;
    const figure = figures[place.dataset.figure];
    const layout = themed(figure, printing ? 680 : place.clientWidth);
    if (place.id === "overlay") layout.shapes = [...(layout.shapes ?? []), budgetLine()];
    if (printing) layout.width = 680;
    place.style.height = `${layout.height}px`;
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", figure.layout.title.text);
    await Plotly.react(place, figure.data, layout, config);
    place.dataset.drawn = place.dataset.figure;
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
  const slider = document.getElementById("budget");
  const budget = () => Number(slider.value);
  const budgetLine = () => ({
    type: "line", xref: "x", yref: "paper", x0: budget(), x1: budget(), y0: 0, y1: 1,
    line: { color: getComputedStyle(root).getPropertyValue("--accent").trim(), width: 2 },
  });

  const share = (point) => point.cost_ratio ?? point.flops_ratio;

  // The front is sorted by cost, and its accuracy on the search split grows with it.
  function choose(front, within) {
    const fitting = front.filter((point) => share(point) <= within + FITS);
    return fitting[fitting.length - 1];
  }

  function cell(row, text, swatch) {
    const made = row.insertCell(), named = document.createElement("bdi");
    if (swatch) {
      const dot = document.createElement("span");
      dot.className = "swatch";
      dot.style.background = swatch;
      made.append(dot);
    }
    named.textContent = text.replace(/[\u202a-\u202e\u2066-\u2069]/g, "?");
    made.append(named);
  }

  function showBudget() {
    const within = budget(), body = document.querySelector("#chosen tbody");
    document.getElementById("budget-shown").textContent = percent(within);
    const fits = facts.export.filter((row) => row.flops_ratio <= within + FITS);
    const exported = fits[fits.length - 1];
    body.replaceChildren();
    for (const search of comparison.searches) {
      const point = choose(search.front, within), row = body.insertRow();
      if (!point) {
        cell(row, search.name, facts.colors[search.name]);
        cell(row, percent(comparison.no_image.accuracy));
        cell(row, "-");
        cell(row, "-");
        cell(row, "missed: the model without the picture");
        continue;
      }
      const interval = point.accuracy_ci;
      row.dataset.trial = point.trial;
      row.className = exported && exported.search === search.name && exported.trial === point.trial ? "best" : "";
      cell(row, search.name, facts.colors[search.name]);
      cell(row, percent(point.accuracy_held_out));
      cell(row, interval ? `${percent(interval[0])} to ${percent(interval[1])}` : "-");
      cell(row, fixed(share(point), 3));
      cell(row, point.schedule ?? `trial ${point.trial}`);
    }
    const [command, experiment, storage] = facts.command, given = Math.floor((within + FITS) * 1e4) / 1e4;
    const usable = facts.export.filter((row) => row.flops_ratio <= given + FITS).pop();
    document.getElementById("export-note").textContent = usable
      ? `Recommended: ${usable.schedule}, of ${usable.search}: the cheapest within one standard error of the most accurate on the search split.`
      : "No schedule fits this budget.";
    document.getElementById("export").textContent = usable
      ? `${command} --budget ${given} -o schedule.json ${storage}${experiment}` : "";
    document.getElementById("copy").hidden = !usable;
    const overlay = document.getElementById("overlay");
    if (overlay.dataset.drawn) {
      const last = overlay.layout.shapes.length - 1;
      Plotly.relayout(overlay, { [`shapes[${last}].x0`]: within, [`shapes[${last}].x1`]: within });
    }
  }

  document.getElementById("copy").addEventListener("click", async (event) => {
    const shown = document.getElementById("export");
    getSelection().selectAllChildren(shown);
    try {
      await navigator.clipboard.writeText(shown.textContent);
      event.target.textContent = "Copied";
      setTimeout(() => { event.target.textContent = "Copy"; }, 1500);
    } catch { /* it is selected, to be copied by hand */ }
  });

  // --- start -------------------------------------------------------------------------------------
  let printing = false;
  const again = () => places.filter((place) => place.dataset.drawn).forEach(draw);
  function showTheme() {
    button.textContent = isDark() ? "Light" : "Dark";
    again();
  }
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("vispco-theme", root.dataset.theme); } catch { /* it lasts until the page is closed */ }
    showTheme();
  });
  dark.addEventListener("change", showTheme);
  addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll("details")) folded.open = true;
    printing = true;
    root.classList.add("print");
    again();
  });
  addEventListener("afterprint", () => { printing = false; root.classList.remove("print"); again(); });

  slider.addEventListener("input", showBudget);
  slider.value = slider.defaultValue;
  document.getElementById("chooser").hidden = !comparison.searches.length;
  const numbers = document.getElementById("numbers");
  numbers.hidden = false;
  numbers.querySelector("a").href = URL.createObjectURL(
    new Blob([document.getElementById("comparison").textContent], { type: "application/json" }));
  button.hidden = false;
  showTheme();
  showBudget();
  for (const place of places) {
    await draw(place);
    performance.mark(`drawn ${place.id}`);
    await pause();
  }
  root.dataset.ready = "true";
})();
