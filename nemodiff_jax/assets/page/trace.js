// The page in one file: it plays the trace that it holds.

import { asked } from "./draw.js";
import { Lane } from "./lane.js";
import { still } from "./player.js";
import { Watch } from "./watch.js";

const trace = JSON.parse(document.getElementById("data").textContent);
const { mode, passes, pieces, output } = trace;
const lane = new Lane(mode, { passes, pieces, content: output.text, finish: output.finish_reason });
const watch = new Watch([lane], { pace: 3, playing: !still() });
document.getElementById("turn").append(asked(trace.prompt), watch.root);
watch.grow();
addEventListener("keydown", (e) => watch.key(e));
