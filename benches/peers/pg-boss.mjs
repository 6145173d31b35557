// pg-boss: fetch and complete from as many callers as there are workers, which is what its own workers do between their polls.

import { createRequire } from "node:module";
import PgBoss from "pg-boss";
import { answer, atOnce, batch, batched, enqueue, jobs, perSecond, url, workers } from "./measure.mjs";

const { version } = createRequire(import.meta.url)("pg-boss/package.json");
const boss = new PgBoss({ connectionString: url, max: workers, supervise: false, schedule: false });
boss.on("error", (error) => console.error(error));
await boss.start();
await boss.createQueue("noop");
const enqueue_per_s = await enqueue(
  () => boss.send("noop", {}),
  (many) => boss.insert(Array.from({ length: many }, () => ({ name: "noop", data: {} }))),
);

let done = 0;
const drain_per_s = await perSecond(jobs, () =>
  atOnce(workers, async () => {
    for (;;) {
      const taken = await boss.fetch("noop", { batchSize: batched ? batch : 1 });
      if (!taken || taken.length === 0) return;
      await boss.complete("noop", taken.map((job) => job.id));
      done += taken.length;
    }
  }),
);
if (done !== jobs) throw new Error(`${done} of ${jobs} jobs were done`);
await boss.stop({ graceful: false });
answer({ version, enqueue_per_s, drain_per_s });
process.exit(0);
