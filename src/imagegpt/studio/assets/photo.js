// Says beside the picture that a chosen file is too large, which Gradio finds before anything is sent.
// props.value: a sentence in HTML; props.most: bytes of one file.
const told = `<p class="problem" role="alert">The file is larger than ${props.most / 2 ** 20} MiB: choose a smaller one.</p>`;

function choose(event) {
  const files = event.target.files || (event.dataTransfer || event.clipboardData)?.files || [];
  if (files.length) props.value = [...files].some((file) => file.size > props.most) ? told : "";
}

for (const kind of ["change", "drop", "paste"]) element.closest(".column").addEventListener(kind, choose, true);
