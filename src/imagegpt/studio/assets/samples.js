// Pictures that are being drawn, each of which can be picked.
// props.value: {pictures: [{src, alt}], status, picked}
const list = element.querySelector("ul");
const status = element.querySelector("p");

function show() {
  const { pictures = [], status: told = "", picked = null } = props.value || {};
  while (list.children.length > pictures.length) list.lastChild.remove();
  while (list.children.length < pictures.length) list.append(item(list.children.length));
  pictures.forEach(({ src, alt }, i) => {
    const button = list.children[i].firstChild, image = button.firstChild;
    if (image.src !== src) image.src = src;
    image.alt = alt;
    button.setAttribute("aria-pressed", String(i === picked));
  });
  status.textContent = told;
}

function item(index) {
  const place = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  button.append(new Image());
  button.addEventListener("click", () => {
    props.value = { ...props.value, picked: index };
    show();
    trigger("select");
  });
  place.append(button);
  return place;
}

watch("value", show);
show();
