// Draws every SVG of a folder, 256 pixels wide: node emoji_render.mjs RESVG_WASM_PACKAGE SVG_FOLDER PNG_FOLDER

import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [resvg, drawings, images] = process.argv.slice(2);
const { initWasm, Resvg } = await import(pathToFileURL(path.join(resvg, "index.mjs")));
await initWasm(fs.readFileSync(path.join(resvg, "index_bg.wasm")));

for (const file of fs.readdirSync(drawings)) {
  const drawing = new Resvg(fs.readFileSync(path.join(drawings, file), "utf8"), { fitTo: { mode: "width", value: 256 } });
  const image = drawing.render();
  fs.writeFileSync(path.join(images, `${path.parse(file).name}.png`), image.asPng());
  image.free(); // WebAssembly's memory is not collected
  drawing.free();
}
