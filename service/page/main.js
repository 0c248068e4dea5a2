import * as checkpoints from "./checkpoints.js";
import * as metrics from "./metrics.js";
import * as recommend from "./recommend.js";

recommend.start();
checkpoints.start();
metrics.start();
