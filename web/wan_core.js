// The colour of the model wire: its slots and its links on the classic canvas, and both in Vue nodes.
import { app } from "../../scripts/app.js";

const TYPE = "WAN_CORE_MODEL";
const COLOUR = "#7c5cff";

app.registerExtension({
  name: "WanCore.wires",
  // The page's palette resets all three after setup(), so they are written whenever a graph has been opened.
  afterConfigureGraph() {
    app.canvas.default_connection_color_byType[TYPE] = COLOUR;
    app.canvas.constructor.link_type_colors[TYPE] = COLOUR;
    document.documentElement.style.setProperty(`--color-datatype-${TYPE}`, COLOUR);
  },
});
