// Pictures open large, beside their input; the slider; charts are drawn.
const shots = [...document.querySelectorAll(".shot")];
const find = (frame, system) => shots.find(({ dataset }) => dataset.frame === frame && dataset.system === system);
const copy = (shot) => shot.firstElementChild.cloneNode();

const viewer = document.querySelector("dialog");
const [left, right] = viewer.querySelectorAll("figure");
let shown = 0;

function show(place) {
  shown = (place + shots.length) % shots.length;
  const shot = shots[shown];
  const input = shot.dataset.frame && find(shot.dataset.frame, shot.dataset.input);
  left.hidden = !input || input === shot;
  for (const [figure, each] of [[left, input], [right, shot]]) {
    if (!each) continue;
    const caption = document.createElement("figcaption");
    caption.textContent = each.firstElementChild.alt;
    figure.replaceChildren(copy(each), caption);
  }
  if (!viewer.open) viewer.showModal();
}

shots.forEach((shot, place) => shot.addEventListener("click", () => show(place)));
viewer.querySelector(".previous").addEventListener("click", () => show(shown - 1));
viewer.querySelector(".next").addEventListener("click", () => show(shown + 1));
viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
viewer.addEventListener("keydown", ({ key }) => {
  if (key === "ArrowLeft") show(shown - 1);
  if (key === "ArrowRight") show(shown + 1);
});

const compare = document.querySelector(".compare");
if (compare) {
  const stage = compare.querySelector(".stage");
  const slider = stage.querySelector("input");
  const pose = () => {
    const { frame, system } = Object.fromEntries(new FormData(compare));
    const restored = find(frame, system);
    stage.querySelector(".input").replaceChildren(copy(find(frame, restored.dataset.input)));
    stage.querySelector(".restored").replaceChildren(copy(restored));
    stage.querySelector(".right").textContent = system;
    const { width, height } = copy(restored);
    stage.style.aspectRatio = `${width} / ${height}`;
  };
  for (const radio of compare.querySelectorAll(".frames input")) {
    radio.after(copy(shots.find(({ dataset }) => dataset.frame === radio.value)));
  }
  slider.addEventListener("input", () => stage.style.setProperty("--at", `${slider.value}%`));
  compare.addEventListener("change", pose);
  pose();
}

// Level 1 is errors. Vega looks at the width of a chart's place when the window changes, and places change with more than that.
for (const text of document.querySelectorAll("script[type='application/json']")) {
  vegaEmbed(text.previousElementSibling, JSON.parse(text.textContent), { renderer: "svg", actions: false, logLevel: 1 });
}
new ResizeObserver(() => dispatchEvent(new Event("resize"))).observe(document.querySelector("main"));

const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const watch = new IntersectionObserver(
  (entries) => entries.forEach(({ target, isIntersecting }) => links.get(target.id).classList.toggle("here", isIntersecting)),
  { rootMargin: "-20% 0px -75%" },
);
document.querySelectorAll("section").forEach((section) => watch.observe(section));
