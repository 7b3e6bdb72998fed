// The colour of the model wire, on the classic canvas and in Vue nodes.
import { app } from "../../scripts/app.js";

const TYPE = "WAN_CORE_MODEL";
const COLOUR = "#7c5cff";

app.registerExtension({
  name: "WanCore.wires",
  setup() {
    document.documentElement.style.setProperty(`--color-datatype-${TYPE}`, COLOUR);
  },
  afterConfigureGraph() {
    app.canvas.default_connection_color_byType[TYPE] = COLOUR;
  },
});
