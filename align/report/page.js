"use strict";

const filter = document.getElementById("filter");
if (filter)
  filter.addEventListener("input", event => {
    const wanted = event.target.value.toLowerCase();
    for (const body of document.querySelectorAll("#answers tbody"))
      body.hidden = !body.textContent.toLowerCase().includes(wanted);
  });

for (const box of document.querySelectorAll(".lineage g"))
  for (const kind of ["mouseenter", "mouseleave"])
    box.addEventListener(kind, () => {
      for (const edge of document.querySelectorAll(".edge"))
        edge.classList.toggle("near", kind == "mouseenter" && edge.dataset.ends.split(" ").includes(box.dataset.key));
    });

const follow = document.getElementById("follow");
if (follow) {
  const [said, button] = follow.children;
  let timer = setTimeout(again, follow.dataset.seconds * 1000);
  function again() {
    const reads = document.activeElement.tagName == "INPUT" || String(getSelection()) != "";
    if (reads) timer = setTimeout(again, 1000); else location.reload();
  }
  button.addEventListener("click", () => {
    clearTimeout(timer);
    said.textContent = "This page does not reload itself any more.";
    button.hidden = true;
  });
  const age = Math.round(Date.now() / 1000 - follow.dataset.written);
  if (age > 60)
    said.textContent = `Nothing wrote this page for ${Math.round(age / 60)} min: align report --follow no longer runs.`;
}
